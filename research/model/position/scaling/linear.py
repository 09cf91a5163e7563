"""Position interpolation (Chen et al. 2023): every plane turns more slowly by one factor."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from research.core.types import Array


@dataclasses.dataclass(frozen=True)
class Config:
  factor: float = 1.0  # how many times longer the texts become


def make(cfg: Config, base: float, d: int, longest: Array) -> tuple[Array, float]:
  del longest
  return base ** (-jnp.arange(0, d, 2, dtype=jnp.float32) / d) / cfg.factor, 1.0
