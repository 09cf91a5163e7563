"""BART (Lewis et al. 2020) and Marian (Junczys-Dowmunt et al. 2018): the Transformer of Vaswani et al. 2017, norms after the residual sums.

Encoder, decoder and head share one table of embeddings. BART has learned positions and a norm after the embeddings; Marian has sinusoids,
and without its biases of the vocabulary it is the original.

`final_logits_bias`, a constant of theirs, is a parameter here. torch gives no gradient to the embedding of the padding token, which is
also what Marian's decoder starts from; here it learns like any other. Dropout inside the feed-forward network (`activation_dropout`) has
no counterpart.
"""

from __future__ import annotations

from typing import Any

from research.core.config import Component
from research.hf.config import EXPORTED, HfConfig
from research.hf.family import Described, Family, resolved
from research.hf.rules import FLAT, SAME, Naming, Rule, each, linear
from research.model import transformer
from research.model.attention import grouped
from research.model.ffn import dense
from research.model.inputs import HeadConfig
from research.model.position import learned, sinusoidal

EPSILON = 1e-5  # of every norm; no key says it
PADDING = 58100  # Marian's pad_token_id where config.json has none
OFFSET = 2  # rows of a table of positions before that of position 0


def bart_config(hf: HfConfig) -> Described:
  hf.only("normalize_embedding", True)
  hf.only("static_position_embeddings", False)
  hf.only("extra_pos_embeddings", OFFSET)
  hf.skip("force_bos_token_to_be_generated")  # of generating, long since another key
  length = hf("max_position_embeddings", 1024)
  return _config(hf, "BartModel", 50265, learned.Config(length=length, offset=OFFSET), length, embed_norm=True)


def marian_config(hf: HfConfig) -> Described:
  hf.only("normalize_embedding", False)
  hf.only("static_position_embeddings", True)
  hf.skip("extra_pos_embeddings")  # rows of a table that is not learned
  if not hf("share_encoder_decoder_embeddings", True):
    raise hf.unsupported("share_encoder_decoder_embeddings", False, "it must be true, as the model has one table for source and target")
  described = _config(hf, "MarianModel", 58101, sinusoidal.Config(), hf("max_position_embeddings", 1024), embed_norm=False)
  target = hf("decoder_vocab_size", None)
  if target not in (None, described.vocab_size):
    mend = f"it must be vocab_size, {described.vocab_size}, as source and target share one table"
    raise hf.unsupported("decoder_vocab_size", target, mend)
  if described.cfg.width % 2:
    raise hf.unsupported("d_model", described.cfg.width, "it must be even, half of it for sines and half for cosines")
  return described


def _config(hf: HfConfig, headless: str, vocab: int, position: Component, length: int, embed_norm: bool) -> Described:
  hf.only("is_encoder_decoder", True)
  hf.only("is_decoder", False)
  hf.only("normalize_before", False)
  hf.only("add_final_layer_norm", False)
  hf.only("add_bias_logits", False)  # another bias than final_logits_bias
  hf.only("do_blenderbot_90_layernorm", False)
  for key in ("encoder_layerdrop", "decoder_layerdrop"):
    hf.only(key, 0.0, 0)
  hf.skip("activation_dropout", "classifier_dropout", "classif_dropout", "_num_labels", "output_past")
  if not hf("tie_word_embeddings", True):
    raise hf.unsupported("tie_word_embeddings", False, "it must be true, as encoder, decoder and head would each have a table of their own")
  layers = hf("encoder_layers", 12, also="num_hidden_layers")
  if layers < 1:
    raise hf.unsupported("encoder_layers", layers, "it must be at least 1")
  cfg = transformer.Config(
      layers=hf("decoder_layers", 12), encoder_layers=layers, width=hf("d_model", 1024, also="hidden_size"),
      attention=grouped.Config(
          heads=_same(hf, "attention_heads", 16, also="num_attention_heads"), bias=True, dropout=float(hf("attention_dropout", 0.0)),
      ),
      ffn=dense.Config(hidden=_same(hf, "ffn_dim", 4096), activation=hf.activation("activation_function", "gelu"), bias=True),
      position=position, norm="layer", norm_place="post", norm_bias=True, epsilon=EPSILON, embed_norm=embed_norm,
      embed_scale=hf("scale_embedding", False), dropout=float(hf("dropout", 0.1)), deviation=hf("init_std", 0.02), residual_init="same",
  )  # fmt: skip
  # A folder of the model without its head has no final_logits_bias; the tied head reads the embeddings.
  bias = hf.architecture != headless
  keys = {"start": "eos" if headless == "BartModel" else "pad", "head_bias": bias}  # by default; decoder_start_token_id may say otherwise
  return Described(cfg, {"lm": HeadConfig(bias=bias)}, hf("vocab_size", vocab), length, "objectives.seq2seq", keys)


def _same(hf: HfConfig, what: str, default: int, also: str = "") -> int:
  """A size that both stacks must share."""
  encoder, decoder = hf(f"encoder_{what}", default, also=also), hf(f"decoder_{what}", default)
  if encoder != decoder:
    raise hf.unsupported(f"decoder_{what}", decoder, f"it must be encoder_{what}, {encoder}, as both stacks are built alike")
  return encoder


def bart_export(model: Described) -> dict[str, Any]:
  length = resolved(model.cfg, model.length).position.length
  return {
      "model_type": "bart",
      "architectures": [_class(model, "BartForConditionalGeneration", "BartModel")],
      "max_position_embeddings": length,
      **_export(model),
  }


def marian_export(model: Described) -> dict[str, Any]:
  return {
      "model_type": "marian",
      "architectures": [_class(model, "MarianMTModel", "MarianModel")],
      "decoder_vocab_size": model.vocab_size,
      "share_encoder_decoder_embeddings": True,
      "max_position_embeddings": model.length,
      # transformers' default is the padding of the published vocabularies; past the end of a smaller one, its Marian cannot be built.
      **({"pad_token_id": None} if model.vocab_size <= PADDING else {}),
      **_export(model),
  }


def _class(model: Described, biased: str, headless: str) -> str:
  return biased if all(head.bias for head in model.heads.values()) else headless


def _export(model: Described) -> dict[str, Any]:
  cfg = resolved(model.cfg, model.length)
  sizes = {"attention_heads": cfg.attention.heads, "ffn_dim": cfg.ffn.hidden}
  return {
      "is_encoder_decoder": True,
      "vocab_size": model.vocab_size,
      "d_model": cfg.width,
      "encoder_layers": cfg.encoder_layers,
      "decoder_layers": cfg.layers,
      **{f"{stack}_{key}": size for stack in ("encoder", "decoder") for key, size in sizes.items()},
      "activation_function": EXPORTED[cfg.ffn.activation],
      "dropout": cfg.dropout,
      "attention_dropout": cfg.attention.dropout,
      "init_std": cfg.deviation,
      "scale_embedding": cfg.embed_scale,
      "tie_word_embeddings": cfg.tie_head,
  }


def rules(model: Described) -> list[Rule]:
  cfg = model.cfg
  copies = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
  found = [Rule("model.shared.weight", "embed/embedding", SAME, copies)]
  if isinstance(cfg.position, learned.Config):
    found += [
        Rule("model.encoder.embed_positions.weight", "encoder_position/table/embedding", SAME),
        Rule("model.decoder.embed_positions.weight", "position/table/embedding", SAME),
    ]
  if cfg.embed_norm:
    found += [*_norm("model.encoder.layernorm_embedding", "encoder_embed_norm"), *_norm("model.decoder.layernorm_embedding", "embed_norm")]
  found += each(
      cfg.encoder_layers,
      *_attention("encoder", "self_attn", "encoder", "self_attention", "attention_norm"),
      *_ffn("encoder", "encoder"),
  )
  found += each(
      cfg.layers,
      *_attention("decoder", "self_attn", "stack", "self_attention", "attention_norm"),
      *_attention("decoder", "encoder_attn", "stack", "cross_attention", "cross_norm"),
      *_ffn("decoder", "stack"),
  )
  if model.heads["lm"].bias:
    found.append(Rule("final_logits_bias", "head_lm/bias", linear()))  # [1, V] there, a Linear of one output
  return found


def _attention(theirs: str, kind: str, ours: str, attention: str, norm: str) -> list[Rule]:
  theirs, ours = f"model.{theirs}.layers.{{i}}.{kind}", f"{ours}/block_{{i}}/"
  found = _norm(f"{theirs}_layer_norm", ours + norm)
  for a, b in {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}.items():
    found += [
        Rule(f"{theirs}.{a}.weight", f"{ours}{attention}/{b}/kernel", linear(inputs=2 if b == "out" else 1)),
        Rule(f"{theirs}.{a}.bias", f"{ours}{attention}/{b}/bias", SAME if b == "out" else FLAT),
    ]
  return found


def _ffn(theirs: str, ours: str) -> list[Rule]:
  theirs, ours = f"model.{theirs}.layers.{{i}}.", f"{ours}/block_{{i}}/"
  found = _norm(f"{theirs}final_layer_norm", f"{ours}ffn_norm")
  for a, b in {"fc1": "up", "fc2": "down"}.items():
    found += [
        Rule(f"{theirs}{a}.weight", f"{ours}feed_forward/{b}/kernel", linear()),
        Rule(f"{theirs}{a}.bias", f"{ours}feed_forward/{b}/bias", SAME),
    ]
  return found


def _norm(theirs: str, ours: str) -> list[Rule]:
  return [Rule(f"{theirs}.weight", f"{ours}/scale", SAME), Rule(f"{theirs}.bias", f"{ours}/bias", SAME)]


FAMILIES = (
    Family(
        name="bart",
        architectures=("BartForConditionalGeneration", "BartModel"),
        config=bart_config,
        rules=rules,
        export_config=bart_export,
        naming=Naming(prefix="model.", ignored={r"(en|de)coder\.version$": "the version of the program that trained it"}),
    ),
    Family(
        name="marian",
        architectures=("MarianMTModel", "MarianModel"),
        config=marian_config,
        rules=rules,
        export_config=marian_export,
        naming=Naming(prefix="model.", ignored={r"(en|de)coder\.embed_positions\.weight$": "sinusoids, which are computed"}),
    ),
)
