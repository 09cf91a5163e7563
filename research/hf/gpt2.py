"""GPT-2 (Radford et al. 2019): a decoder with learned positions, norms before the sublayers and tanh-GELU.

Its matrices are stored [in, out], query, key and value in one.
"""

from __future__ import annotations

from typing import Any

from research.hf.config import EXPORTED, HfConfig
from research.hf.family import Described, Family
from research.hf.rules import FLAT, SAME, Naming, Rule, each, fused, matrix
from research.model import transformer
from research.model.attention import grouped
from research.model.ffn import dense
from research.model.inputs import HeadConfig
from research.model.position import learned


def config(hf: HfConfig) -> Described:
  hf.only("add_cross_attention", False)
  hf.only("scale_attn_by_inverse_layer_idx", False)
  hf.skip("reorder_and_upcast_attn", "n_ctx")  # our softmax is in float32 anyway; n_ctx is an old twin of n_positions
  hf.skip("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout")  # of another head
  length = hf("n_positions", 1024, also="max_position_embeddings")
  dropout = hf("resid_pdrop", 0.1)
  if hf("embd_pdrop", 0.1) != dropout:
    raise hf.unsupported("embd_pdrop", hf("embd_pdrop", 0.1), f"it must be resid_pdrop, {dropout}, as the model has one rate for both")
  attention = grouped.Config(
      heads=hf("n_head", 12, also="num_attention_heads"), bias=True, dropout=float(hf("attn_pdrop", 0.1)),
      scale=None if hf.only("scale_attn_weights", True, False) else 1.0,
  )  # fmt: skip
  cfg = transformer.Config(
      layers=hf("n_layer", 12, also="num_hidden_layers"), width=hf("n_embd", 768, also="hidden_size"), attention=attention,
      ffn=dense.Config(hidden=hf("n_inner", None), activation=hf.activation("activation_function", "gelu_new"), bias=True),
      position=learned.Config(length=length), norm="layer", norm_bias=True, epsilon=hf("layer_norm_epsilon", 1e-5), tie_head=hf("tie_word_embeddings", True),
      dropout=float(dropout), deviation=hf("initializer_range", 0.02),
  )  # fmt: skip
  headless = hf.architecture == "GPT2Model" and not cfg.tie_head
  return Described(cfg, {} if headless else {"lm": HeadConfig()}, hf("vocab_size", 50257), length, None if headless else "objectives.causal_lm")


def export_config(model: Described) -> dict[str, Any]:
  cfg, attention = model.cfg, model.cfg.attention
  return {
      "architectures": ["GPT2LMHeadModel" if model.heads else "GPT2Model"],
      "model_type": "gpt2",
      "vocab_size": model.vocab_size,
      "n_positions": model.length,
      "n_embd": cfg.width,
      "n_layer": cfg.layers,
      "n_head": attention.heads,
      "n_inner": None if cfg.ffn.hidden == 4 * cfg.width else cfg.ffn.hidden,
      "activation_function": EXPORTED[cfg.ffn.activation],
      "resid_pdrop": cfg.dropout,
      "embd_pdrop": cfg.dropout,
      "attn_pdrop": attention.dropout,
      "layer_norm_epsilon": cfg.epsilon,
      "initializer_range": cfg.deviation,
      "scale_attn_weights": attention.scale is None,
      "tie_word_embeddings": cfg.tie_head,
  }


def rules(model: Described) -> list[Rule]:
  block = "stack/block_{i}/"
  qkv = lambda kind: tuple(f"{block}self_attention/{part}/{kind}" for part in ("query", "key", "value"))
  found = [
      Rule("transformer.wte.weight", "embed/embedding", SAME, ("lm_head.weight",) if model.cfg.tie_head else ()),
      Rule("transformer.wpe.weight", "position/table/embedding", SAME),
      *each(
          model.cfg.layers,
          Rule("transformer.h.{i}.ln_1.weight", block + "attention_norm/scale", SAME),
          Rule("transformer.h.{i}.ln_1.bias", block + "attention_norm/bias", SAME),
          Rule("transformer.h.{i}.attn.c_attn.weight", qkv("kernel"), fused(matrix(), axis=1)),
          Rule("transformer.h.{i}.attn.c_attn.bias", qkv("bias"), fused(FLAT)),
          Rule("transformer.h.{i}.attn.c_proj.weight", block + "self_attention/out/kernel", matrix(inputs=2)),
          Rule("transformer.h.{i}.attn.c_proj.bias", block + "self_attention/out/bias", SAME),
          Rule("transformer.h.{i}.ln_2.weight", block + "ffn_norm/scale", SAME),
          Rule("transformer.h.{i}.ln_2.bias", block + "ffn_norm/bias", SAME),
          Rule("transformer.h.{i}.mlp.c_fc.weight", block + "feed_forward/up/kernel", matrix()),
          Rule("transformer.h.{i}.mlp.c_fc.bias", block + "feed_forward/up/bias", SAME),
          Rule("transformer.h.{i}.mlp.c_proj.weight", block + "feed_forward/down/kernel", matrix()),
          Rule("transformer.h.{i}.mlp.c_proj.bias", block + "feed_forward/down/bias", SAME),
      ),
      Rule("transformer.ln_f.weight", "final_norm/scale", SAME),
      Rule("transformer.ln_f.bias", "final_norm/bias", SAME),
  ]
  if model.heads and not model.cfg.tie_head:
    found.append(Rule("lm_head.weight", "head_lm/kernel", SAME))
  return found


FAMILIES = (
    Family(
        name="gpt2",
        architectures=("GPT2LMHeadModel", "GPT2Model"),
        config=config,
        rules=rules,
        export_config=export_config,
        naming=Naming(prefix="transformer.", ignored={r"\.attn\.(masked_)?bias$": "the causal mask, which the order of tokens gives"}),
    ),
)
