"""Llama 2 and 3 (Touvron et al. 2023, Grattafiori et al. 2024), Code Llama, and Mistral (Jiang et al. 2023).

Decoders with rotary positions, root-mean-square norms, gated feed-forward networks and grouped key/value heads. Mistral's window W lets a
query see the W latest tokens, itself among them: distances less than W, which is what our `window` means too.
"""

from __future__ import annotations

import math
from typing import Any

from research.core.errors import UserError
from research.hf.config import EXPORTED, HfConfig
from research.hf.family import Described, Family
from research.hf.rules import FLAT, SAME, Naming, Rule, each, linear
from research.model import transformer
from research.model.attention import grouped
from research.model.ffn import dense
from research.model.inputs import HeadConfig
from research.model.position import rotary
from research.model.position.scaling import dynamic, llama3, longrope, yarn
from research.model.position.scaling import linear as interpolated


def llama_config(hf: HfConfig) -> Described:
  hf.skip("pretraining_tp")  # cuts a product into parts that are summed
  attention_bias, mlp_bias = hf("attention_bias", False), hf("mlp_bias", False)
  return _config(hf, "LlamaModel", None, hf("num_key_value_heads", None), 11008, 2048, attention_bias, mlp_bias)


def mistral_config(hf: HfConfig) -> Described:
  window = hf.nullable("sliding_window", 4096)  # null: none
  return _config(hf, "MistralModel", window, hf("num_key_value_heads", 8), hidden=14336, length=131072, attention_bias=False, mlp_bias=False)


def _config(hf: HfConfig, headless: str, window: int | None, kv_heads: int | None, hidden: int, length: int, attention_bias: bool, mlp_bias: bool) -> Described:
  heads, width, length = hf("num_attention_heads", 32), hf("hidden_size", 4096), hf("max_position_embeddings", length)
  head_dim = hf("head_dim", None)
  attention = grouped.Config(
      heads=heads, kv_heads=kv_heads or heads, head_dim=None if head_dim in (None, width / heads) else head_dim, bias=attention_bias,
      window=window, dropout=float(hf("attention_dropout", 0.0)),
  )  # fmt: skip
  cfg = transformer.Config(
      layers=hf("num_hidden_layers", 32), width=width, attention=attention,
      ffn=dense.Config(hidden=hf("intermediate_size", hidden), activation=hf.activation("hidden_act", "silu"), gated=True, bias=mlp_bias),
      position=rope(hf, length), norm="rms", epsilon=hf("rms_norm_eps", 1e-6), tie_head=hf("tie_word_embeddings", False),
      deviation=hf("initializer_range", 0.02), residual_init="same",
  )  # fmt: skip
  bare = hf.architecture == headless and not cfg.tie_head
  return Described(cfg, {} if bare else {"lm": HeadConfig()}, hf("vocab_size", 32000), length, None if bare else "objectives.causal_lm")


def rope(hf: HfConfig, length: int) -> rotary.Config:
  """Rotary positions from `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling` (before)."""
  hf.only("partial_rotary_factor", 1.0, 1, None)
  theta = float(hf("rope_theta", 10000.0))
  keys = [key for key in ("rope_parameters", "rope_scaling") if hf.has(key)]
  hf.skip("rope_parameters", "rope_scaling")
  if not keys:
    return rotary.Config(theta)
  if len(keys) == 2:
    raise hf.unsupported("rope_scaling", "given beside rope_parameters", "leave one of the two out")
  inner = hf.inner(keys[0])
  inner.only("partial_rotary_factor", 1.0, 1, None)
  theta, kind = float(inner("rope_theta", theta)), inner("rope_type", "default", also="type")
  read = {"default": lambda: None, "linear": lambda: interpolated.Config(float(inner("factor"))),
          "dynamic": lambda: dynamic.Config(float(inner("factor")), length), "llama3": lambda: _llama3(inner, length),
          "yarn": lambda: _yarn(inner, length), "longrope": lambda: _longrope(inner, length)}  # fmt: skip
  if kind not in read:
    raise inner.unsupported("rope_type", kind, f"supported: {', '.join(read)}")
  try:
    scaling = read[kind]()
  except ValueError as error:
    raise inner.unsupported("rope_type", kind, str(error)) from error
  inner.finish()
  return rotary.Config(theta, scaling)


def _llama3(rope: HfConfig, length: int) -> llama3.Config:
  return llama3.Config(float(rope("factor")), float(rope("low_freq_factor")), float(rope("high_freq_factor")),
                       rope("original_max_position_embeddings", length))  # fmt: skip


def _factor(rope: HfConfig, length: int, original: int) -> float:
  return float(rope("factor", None) or length / original)


def _yarn(rope: HfConfig, length: int) -> yarn.Config:
  original = rope("original_max_position_embeddings", length)
  factor, attention = _factor(rope, length, original), rope("attention_factor", None)
  scale, scale_all = rope("mscale", None), rope("mscale_all_dim", None)
  if attention is None and scale and scale_all and factor > 1:
    attention = (0.1 * scale * math.log(factor) + 1) / (0.1 * scale_all * math.log(factor) + 1)
  fast, slow = float(rope("beta_fast", None) or 32), float(rope("beta_slow", None) or 1)
  return yarn.Config(factor, original, fast, slow, rope("truncate", True), None if attention is None else float(attention))


def _longrope(rope: HfConfig, length: int) -> longrope.Config:
  original = rope("original_max_position_embeddings", length)
  attention = rope("attention_factor", None)
  factors = [tuple(map(float, rope(key, []))) for key in ("short_factor", "long_factor")]
  return longrope.Config(*factors, original, _factor(rope, length, original), None if attention is None else float(attention))


def export_rope(position: rotary.Config, length: int) -> dict[str, Any]:
  """`rope_theta` and `rope_scaling`, which transformers of every age understands."""
  scaling = position.scaling
  if scaling is None:
    return {"rope_theta": position.base}
  if isinstance(scaling, interpolated.Config):
    found = {"rope_type": "linear", "factor": scaling.factor}
  elif isinstance(scaling, dynamic.Config):
    found = {"rope_type": "dynamic", "factor": scaling.factor}
  elif isinstance(scaling, llama3.Config):
    found = {"rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
  elif isinstance(scaling, yarn.Config):
    found = {"rope_type": "yarn", "factor": scaling.factor, "beta_fast": scaling.fast, "beta_slow": scaling.slow, "truncate": scaling.truncate}
  elif isinstance(scaling, longrope.Config):
    found = {"rope_type": "longrope", "factor": scaling.factor, "short_factor": list(scaling.short), "long_factor": list(scaling.long)}
  else:
    raise UserError(f"no published family has the scaling {type(scaling).__module__} of rotary positions.")
  if not isinstance(scaling, (interpolated.Config, dynamic.Config)):
    found["original_max_position_embeddings"] = scaling.length
  if getattr(scaling, "attention_factor", None) is not None:
    found["attention_factor"] = scaling.attention_factor
  return {"rope_theta": position.base, "rope_scaling": found}


def llama_export(model: Described) -> dict[str, Any]:
  cfg = model.cfg
  return _export(model, "Llama") | {"model_type": "llama", "attention_bias": cfg.attention.bias, "mlp_bias": cfg.ffn.bias}


def mistral_export(model: Described) -> dict[str, Any]:
  return _export(model, "Mistral") | {"model_type": "mistral", "sliding_window": model.cfg.attention.window}


def _export(model: Described, name: str) -> dict[str, Any]:
  cfg, attention = model.cfg, model.cfg.attention
  return {
      "architectures": [f"{name}ForCausalLM" if model.heads else f"{name}Model"],
      "vocab_size": model.vocab_size,
      "hidden_size": cfg.width,
      "intermediate_size": cfg.ffn.hidden,
      "num_hidden_layers": cfg.layers,
      "num_attention_heads": attention.heads,
      "num_key_value_heads": attention.kv_heads,
      "head_dim": attention.head_dim,
      "hidden_act": EXPORTED[cfg.ffn.activation],
      "max_position_embeddings": model.length,
      "rms_norm_eps": cfg.epsilon,
      "initializer_range": cfg.deviation,
      "attention_dropout": attention.dropout,
      "tie_word_embeddings": cfg.tie_head,
      **export_rope(cfg.position, model.length),
  }


def rules(model: Described) -> list[Rule]:
  cfg, layer, block = model.cfg, "model.layers.{i}.", "stack/block_{i}/"
  tied = cfg.tie_head
  layers = [
      Rule(layer + "input_layernorm.weight", block + "attention_norm/scale", SAME),
      Rule(layer + "post_attention_layernorm.weight", block + "ffn_norm/scale", SAME),
  ]
  for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
    how, bias = (linear(inputs=2), SAME) if theirs == "o" else (linear(), FLAT)
    layers.append(Rule(f"{layer}self_attn.{theirs}_proj.weight", f"{block}self_attention/{ours}/kernel", how))
    if cfg.attention.bias:
      layers.append(Rule(f"{layer}self_attn.{theirs}_proj.bias", f"{block}self_attention/{ours}/bias", bias))
  for part in ("gate", "up", "down"):
    layers.append(Rule(f"{layer}mlp.{part}_proj.weight", f"{block}feed_forward/{part}/kernel", linear()))
    if cfg.ffn.bias:
      layers.append(Rule(f"{layer}mlp.{part}_proj.bias", f"{block}feed_forward/{part}/bias", SAME))
  found = [
      Rule("model.embed_tokens.weight", "embed/embedding", SAME, ("lm_head.weight",) if tied else ()),
      *each(cfg.layers, *layers),
      Rule("model.norm.weight", "final_norm/scale", SAME),
  ]
  if model.heads and not tied:
    found.append(Rule("lm_head.weight", "head_lm/kernel", SAME))
  return found


NAMING = Naming(prefix="model.", ignored={r"rotary_emb\.inv_freq$": "the speeds of the rotary planes, which config.json gives"})

FAMILIES = (
    Family("llama", ("LlamaForCausalLM", "LlamaModel"), llama_config, rules, llama_export, NAMING),
    Family("mistral", ("MistralForCausalLM", "MistralModel"), mistral_config, rules, mistral_export, NAMING),
)
