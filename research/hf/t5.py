"""T5 (Raffel et al. 2020), T5 v1.1 and Flan-T5: encoder and decoder with bucketed relative positions, unscaled attention, no biases.

The original ties its head to the embeddings and scales the hidden states before it; v1.1 does neither and has a gated feed-forward. In
config.json both hang on tie_word_embeddings; folders written by transformers 5 say `scale_decoder_outputs` and always call the head tied.

In training T5 also drops inside the feed-forward network and after the last norm; here it does not.
"""

from __future__ import annotations

from typing import Any

from research.hf.config import ACTIVATIONS, EXPORTED, HfConfig
from research.hf.family import Described, Family, resolved
from research.hf.rules import SAME, Naming, Rule, each, linear
from research.model import transformer
from research.model.attention import grouped
from research.model.ffn import dense
from research.model.inputs import HeadConfig
from research.model.position import bias


def config(hf: HfConfig) -> Described:
  hf.only("is_encoder_decoder", True)
  hf.only("is_decoder", False)
  hf.skip("classifier_dropout", "output_past")  # of another head; an old name of use_cache
  width, layers = hf("d_model", 512, also="hidden_size"), _positive(hf, "num_layers", 6, also="num_hidden_layers")
  heads, rate = hf("num_heads", 8, also="num_attention_heads"), float(hf("dropout_rate", 0.1))
  tied = hf("tie_word_embeddings", True)
  activation, gated = _feed_forward(hf)
  cfg = transformer.Config(
      layers=layers if hf("num_decoder_layers", None) is None else _positive(hf, "num_decoder_layers", 6),
      encoder_layers=layers, width=width,
      # T5 takes 1/√d into the initialisation of the query kernels.
      attention=grouped.Config(heads=heads, head_dim=hf("d_kv", 64, also="head_dim"), scale=1.0, dropout=rate),
      ffn=dense.Config(hidden=hf("d_ff", 2048), activation=activation, gated=gated),
      position=_position(hf), norm="rms", epsilon=hf("layer_norm_epsilon", 1e-6), tie_head=tied, dropout=rate,
      head_scale=hf("scale_decoder_outputs", tied),
      # What T5 draws most of its kernels with; initializer_range, which it does not know, is our own deviation in folders that we wrote.
      deviation=hf("initializer_range", hf("initializer_factor", 1.0) / width**0.5),
  )  # fmt: skip
  headless = hf.architecture == "T5Model" and not tied
  objective = (None, {}) if headless else ("objectives.seq2seq", {"start": "pad"})
  return Described(cfg, {} if headless else {"lm": HeadConfig()}, hf("vocab_size", 32128), hf("n_positions", 512), *objective)


def _positive(hf: HfConfig, key: str, default: int, also: str = "") -> int:
  value = hf(key, default, also=also)
  if value < 1:
    raise hf.unsupported(key, value, "it must be at least 1")
  return value


def _feed_forward(hf: HfConfig) -> tuple[str, bool]:
  """Our activation, and whether it gates: of 'relu', 'gated-gelu' and their like."""
  named = hf("feed_forward_proj", "relu")
  gated, activation = named.startswith("gated-"), named.removeprefix("gated-")
  theirs = "gelu_new" if named == "gated-gelu" else activation  # the one name that does not mean what it says
  if theirs not in ACTIVATIONS:
    names = ", ".join(sorted(ACTIVATIONS))
    raise hf.unsupported("feed_forward_proj", named, f"supported, each with 'gated-' before it or without: {names}")
  hf.only("dense_act_fn", theirs)  # both follow from feed_forward_proj and would override it
  hf.only("is_gated_act", gated)
  return ACTIVATIONS[theirs], gated


def _position(hf: HfConfig) -> bias.Config:
  buckets, distance = hf("relative_attention_num_buckets", 32), hf("relative_attention_max_distance", 128)
  if buckets < 4:
    raise hf.unsupported("relative_attention_num_buckets", buckets, "it must be at least 4: half of the encoder's serve each direction")
  if distance <= buckets // 2:
    raise hf.unsupported("relative_attention_max_distance", distance, f"it must be more than half of the buckets, {buckets // 2}")
  return bias.Config(kind="buckets", buckets=buckets, max_distance=distance)


def export_config(model: Described) -> dict[str, Any]:
  cfg = resolved(model.cfg, model.length)
  # 'gated-gelu' is the tanh form; gelu_python is transformers' other name of the exact one.
  activation = {"gelu_tanh": "gelu", "gelu": "gelu_python"}.get(cfg.ffn.activation) if cfg.ffn.gated else None
  return {
      "architectures": ["T5ForConditionalGeneration" if model.heads else "T5Model"],
      "model_type": "t5",
      "is_encoder_decoder": True,
      "vocab_size": model.vocab_size,
      "n_positions": model.length,
      "d_model": cfg.width,
      "d_kv": cfg.attention.head_dim,
      "d_ff": cfg.ffn.hidden,
      "num_layers": cfg.encoder_layers,
      "num_decoder_layers": cfg.layers,
      "num_heads": cfg.attention.heads,
      "relative_attention_num_buckets": cfg.position.buckets,
      "relative_attention_max_distance": cfg.position.max_distance,
      "dropout_rate": cfg.dropout,
      "layer_norm_epsilon": cfg.epsilon,
      "initializer_range": cfg.deviation,
      "feed_forward_proj": "gated-" * cfg.ffn.gated + (activation or EXPORTED[cfg.ffn.activation]),
      "tie_word_embeddings": cfg.tie_head,
      "scale_decoder_outputs": cfg.head_scale,
  }


def rules(model: Described) -> list[Rule]:
  """Layer 0 of a block is its self-attention, layer 1 of the decoder's its cross-attention, the last its feed-forward."""
  cfg = model.cfg
  copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", *(("lm_head.weight",) if cfg.tie_head else ()))
  found = [
      Rule("shared.weight", "embed/embedding", SAME, copies),
      # The first block of a stack holds the biases that all of its blocks add.
      Rule("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "encoder_position/table/embedding", SAME),
      Rule("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "position/table/embedding", SAME),
      *each(
          cfg.encoder_layers,
          *_attention("encoder", 0, "SelfAttention", "encoder", "self_attention", "attention_norm"),
          *_ffn(cfg, "encoder", 1, "encoder"),
      ),
      *each(
          cfg.layers,
          *_attention("decoder", 0, "SelfAttention", "stack", "self_attention", "attention_norm"),
          *_attention("decoder", 1, "EncDecAttention", "stack", "cross_attention", "cross_norm"),
          *_ffn(cfg, "decoder", 2, "stack"),
      ),
      Rule("encoder.final_layer_norm.weight", "encoder_norm/scale", SAME),
      Rule("decoder.final_layer_norm.weight", "final_norm/scale", SAME),
  ]
  if model.heads and not cfg.tie_head:
    found.append(Rule("lm_head.weight", "head_lm/kernel", SAME))
  return found


def _attention(theirs: str, layer: int, kind: str, ours: str, attention: str, norm: str) -> list[Rule]:
  theirs, ours = f"{theirs}.block.{{i}}.layer.{layer}.", f"{ours}/block_{{i}}/"
  return [
      Rule(f"{theirs}layer_norm.weight", f"{ours}{norm}/scale", SAME),
      Rule(f"{theirs}{kind}.q.weight", f"{ours}{attention}/query/kernel", linear()),
      Rule(f"{theirs}{kind}.k.weight", f"{ours}{attention}/key/kernel", linear()),
      Rule(f"{theirs}{kind}.v.weight", f"{ours}{attention}/value/kernel", linear()),
      Rule(f"{theirs}{kind}.o.weight", f"{ours}{attention}/out/kernel", linear(inputs=2)),
  ]


def _ffn(cfg: transformer.Config, theirs: str, layer: int, ours: str) -> list[Rule]:
  theirs, ours = f"{theirs}.block.{{i}}.layer.{layer}.", f"{ours}/block_{{i}}/"
  inner = {"wi_0": "gate", "wi_1": "up", "wo": "down"} if cfg.ffn.gated else {"wi": "up", "wo": "down"}
  return [
      Rule(f"{theirs}layer_norm.weight", f"{ours}ffn_norm/scale", SAME),
      *(Rule(f"{theirs}DenseReluDense.{a}.weight", f"{ours}feed_forward/{b}/kernel", linear()) for a, b in inner.items()),
  ]


UNUSED = "old folders give the cross-attention position biases, which no version of T5 reads"

FAMILIES = (
    Family(
        name="t5",
        architectures=("T5ForConditionalGeneration", "T5Model", "T5WithLMHeadModel"),  # the last is an old name of the first
        config=config,
        rules=rules,
        export_config=export_config,
        naming=Naming(ignored={r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$": UNUSED}),
    ),
)
