"""YaRN (Peng et al. 2023): interpolation plane by plane, by how often it turns over the texts of pretraining, and sharper scores.

The boundaries lie between planes by their number, as in the authors' code, not by their speed as in the paper's formula.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp

from research.core.types import Array


@dataclasses.dataclass(frozen=True)
class Config:
  factor: float = 1.0  # how many times longer the texts become
  length: int = 2048  # tokens of pretraining's texts
  fast: float = 32.0  # planes with more turns than this over `length` keep their speed
  slow: float = 1.0  # planes with fewer are slowed down by the factor
  truncate: bool = True  # the boundaries are whole planes
  attention_factor: float | None = None  # of queries and keys; None: 0.1 ln(factor) + 1


def make(cfg: Config, base: float, d: int, longest: Array) -> tuple[Array, float]:
  del longest
  plane = lambda turns: d * math.log(cfg.length / (turns * 2 * math.pi)) / (2 * math.log(base))
  low, high = plane(cfg.fast), plane(cfg.slow)
  if cfg.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, d - 1)
  slowed = jnp.clip((jnp.arange(d // 2, dtype=jnp.float32) - low) / (high - low or 0.001), 0.0, 1.0)
  frequency = base ** (-jnp.arange(0, d, 2, dtype=jnp.float32) / d)
  factor = cfg.attention_factor
  if factor is None:
    factor = 0.1 * math.log(cfg.factor) + 1.0 if cfg.factor > 1 else 1.0
  return slowed * frequency / cfg.factor + (1 - slowed) * frequency, factor
