"""Llama 3.1's scaling (Grattafiori et al. 2024): slow planes are interpolated, fast ones stay, those between are mixed."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp

from research.core.types import Array


@dataclasses.dataclass(frozen=True)
class Config:
  factor: float = 8.0  # by which the slow planes slow down
  low: float = 1.0  # planes with fewer turns than this over `length` are slow
  high: float = 4.0  # planes with more are fast
  length: int = 8192  # tokens of pretraining's texts

  def __post_init__(self):
    if self.high <= self.low:
      raise ValueError(f"high must be greater than low; got {self.high} and {self.low}")


def make(cfg: Config, base: float, d: int, longest: Array) -> tuple[Array, float]:
  del longest
  frequency = base ** (-jnp.arange(0, d, 2, dtype=jnp.float32) / d)
  turns = cfg.length * frequency / (2 * math.pi)
  kept = jnp.clip((turns - cfg.low) / (cfg.high - cfg.low), 0.0, 1.0)
  return (1 - kept) * frequency / cfg.factor + kept * frequency, 1.0
