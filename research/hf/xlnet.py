"""XLNet (Yang et al. 2019): two streams over Transformer-XL's relative positions, with relative segments and a memory of earlier rows.

Who sees whom, the rows say. Kind 'full' is transformers without a perm_mask. Kind 'ordered' is its perm_mask: `order` is a token's place in
the factorisation order, the lowest for all tokens of the context, and row i of the mask hides the keys that come at i's place or later (for
a token of the context: later). `queries`, the places that are predicted, are its target_mapping; their hidden states follow those of the L
tokens and are read at L, L + 1, …. Its `mems` are `Past.hidden` with positions −M … −1; a memory without types has type 0, as there.

Ours differs in training: there the sinusoids and the inner states of the feed-forward network are dropped out too. And a query that sees
nothing gives zeros here; there it sees all tokens alike, its own too, for masking subtracts a large number.
"""

from __future__ import annotations

from typing import Any

from research.hf.config import EXPORTED, HfConfig
from research.hf.family import Described, Family
from research.hf.rules import SAME, Naming, Rule, each, leading, linear, permuted
from research.model import transformer
from research.model.attention import grouped
from research.model.ffn import dense
from research.model.inputs import HeadConfig
from research.model.position import relative

LENGTH = 512  # of the rows that it was pretrained on; relative positions have no limit


def config(hf: HfConfig) -> Described:
  if hf("attn_type", "bi") != "bi":
    raise hf.unsupported("attn_type", hf("attn_type"), "set it to \"bi\" and give rows of kind 'causal', for here the rows say who sees whom")
  hf.only("bi_data", False)
  hf.only("same_length", False)
  hf.only("untie_r", True)
  hf.skip("mem_len", "reuse_len", "use_mems_eval", "use_mems_train")  # how much of a row is kept for the next one: an argument here
  hf.skip("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout", "start_n_top", "end_n_top")  # of other heads
  width, heads = hf("d_model", 1024, also="hidden_size"), hf("n_head", 16, also="num_attention_heads")
  head_dim = hf("d_head", None)
  if head_dim is not None and head_dim * heads != width:
    raise hf.unsupported("d_head", head_dim, f"it must be d_model / n_head, {width} / {heads}, as transformers has it")
  dropout, clamp = float(hf("dropout", 0.1)), hf("clamp_len", -1)
  cfg = transformer.Config(
      layers=hf("n_layer", 24, also="num_hidden_layers"), width=width,
      attention=grouped.Config(heads=heads, head_dim=head_dim, dropout=dropout),
      ffn=dense.Config(hidden=hf("d_inner", 4096), activation=hf.activation("ff_activation", "gelu"), bias=True),
      position=relative.Config(clamp=clamp if clamp > 0 else None), norm="layer", norm_place="post", norm_bias=True,
      epsilon=hf("layer_norm_eps", 1e-12), queries=True, tie_head=hf("tie_word_embeddings", True), dropout=dropout,
      deviation=hf("initializer_range", 0.02), residual_init="same",
  )  # fmt: skip
  read = {} if hf.architecture == "XLNetModel" else {"lm": HeadConfig(bias=True)}
  return Described(cfg, read, hf("vocab_size", 32000, also="n_token"), LENGTH, "objectives.permutation_lm" if read else None)


def export_config(model: Described) -> dict[str, Any]:
  cfg = model.cfg
  return {
      "architectures": ["XLNetLMHeadModel" if model.heads else "XLNetModel"],
      "model_type": "xlnet",
      "vocab_size": model.vocab_size,
      "d_model": cfg.width,
      "n_layer": cfg.layers,
      "n_head": cfg.attention.heads,
      "d_head": grouped.head_dim(cfg.attention, cfg.width),
      "d_inner": cfg.ffn.hidden or 4 * cfg.width,
      "ff_activation": EXPORTED[cfg.ffn.activation],
      "attn_type": "bi",
      "clamp_len": -1 if cfg.position.clamp is None else cfg.position.clamp,
      "layer_norm_eps": cfg.epsilon,
      "initializer_range": cfg.deviation,
      "dropout": cfg.dropout,
      "tie_word_embeddings": cfg.tie_head,
  }


def rules(model: Described) -> list[Rule]:
  prefix = "transformer." if model.heads else ""  # of the model inside the class with the head
  block, theirs = "stack/block_{i}/", prefix + "layer.{i}."
  attention = block + "self_attention/"
  found = [
      Rule(prefix + "word_embedding.weight", "embed/embedding", SAME, ("lm_loss.weight",) if model.heads and model.cfg.tie_head else ()),
      Rule(prefix + "mask_emb", "query_embedding", leading(2)),
      *each(
          model.cfg.layers,
          Rule(theirs + "rel_attn.q", attention + "query/kernel", SAME),
          Rule(theirs + "rel_attn.k", attention + "key/kernel", SAME),
          Rule(theirs + "rel_attn.v", attention + "value/kernel", SAME),
          Rule(theirs + "rel_attn.o", attention + "out/kernel", permuted(2, 0, 1)),  # stored [D, H, d] too
          Rule(theirs + "rel_attn.r", attention + "scheme/distance/kernel", SAME),
          Rule(theirs + "rel_attn.r_w_bias", attention + "scheme/content_bias", SAME),
          Rule(theirs + "rel_attn.r_r_bias", attention + "scheme/distance_bias", SAME),
          Rule(theirs + "rel_attn.r_s_bias", attention + "scheme/segment_bias", SAME),
          Rule(theirs + "rel_attn.seg_embed", attention + "scheme/segment_keys", SAME),
          Rule(theirs + "rel_attn.layer_norm.weight", block + "attention_norm/scale", SAME),
          Rule(theirs + "rel_attn.layer_norm.bias", block + "attention_norm/bias", SAME),
          Rule(theirs + "ff.layer_1.weight", block + "feed_forward/up/kernel", linear()),
          Rule(theirs + "ff.layer_1.bias", block + "feed_forward/up/bias", SAME),
          Rule(theirs + "ff.layer_2.weight", block + "feed_forward/down/kernel", linear()),
          Rule(theirs + "ff.layer_2.bias", block + "feed_forward/down/bias", SAME),
          Rule(theirs + "ff.layer_norm.weight", block + "ffn_norm/scale", SAME),
          Rule(theirs + "ff.layer_norm.bias", block + "ffn_norm/bias", SAME),
      ),
  ]
  if model.heads:
    found.append(Rule("lm_loss.bias", "head_lm/bias", SAME))
    if not model.cfg.tie_head:
      found.append(Rule("lm_loss.weight", "head_lm/kernel", SAME))
  return found


FAMILIES = (
    Family(
        name="xlnet",
        architectures=("XLNetLMHeadModel", "XLNetModel"),
        config=config,
        rules=rules,
        export_config=export_config,
        naming=Naming(prefix="transformer."),
    ),
)
