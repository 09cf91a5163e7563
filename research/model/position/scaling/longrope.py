"""LongRoPE (Ding et al. 2024): a searched factor for every plane, one set for short texts and one for long ones.

A row is as long as the longest document in it; transformers takes the longest of all rows of a batch.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp

from research.core.types import Array


@dataclasses.dataclass(frozen=True)
class Config:
  short: tuple[float, ...] = ()  # a factor for each of the d/2 planes, for texts of up to `length` tokens
  long: tuple[float, ...] = ()  # and for longer ones
  length: int = 2048  # tokens of pretraining's texts
  factor: float = 1.0  # how many times longer the texts become
  attention_factor: float | None = None  # of queries and keys; None: √(1 + ln(factor) / ln(length))


def make(cfg: Config, base: float, d: int, longest: Array) -> tuple[Array, float]:
  for name, factors in (("short", cfg.short), ("long", cfg.long)):
    if len(factors) != d // 2:
      raise ValueError(f"model.position.scaling.{name} has {len(factors)} factors; a head of width {d} has {d // 2} planes")
  factors = jnp.where(longest > cfg.length, jnp.array(cfg.long, jnp.float32), jnp.array(cfg.short, jnp.float32))
  factor = cfg.attention_factor
  if factor is None:
    factor = math.sqrt(1 + math.log(cfg.factor) / math.log(cfg.length)) if cfg.factor > 1 else 1.0
  return base ** (-jnp.arange(0, d, 2, dtype=jnp.float32) / d) / factors, factor
