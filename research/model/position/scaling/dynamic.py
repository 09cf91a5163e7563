"""Dynamic NTK-aware scaling (bloc97 and emozilla 2023; Peng et al. 2023, YaRN, section 3.3): a base that grows with the text's length.

A row is as long as the longest document in it. transformers takes the longest of all rows of a batch; a batch of rows of one length comes
out the same. Keys in a cache keep the speed that was theirs when they were written, in both.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from research.core.types import Array


@dataclasses.dataclass(frozen=True)
class Config:
  factor: float = 1.0  # how steeply the base grows
  length: int = 2048  # tokens of pretraining's texts; up to here nothing changes


def make(cfg: Config, base: float, d: int, longest: Array) -> tuple[Array, float]:
  length = jnp.maximum(longest, cfg.length).astype(jnp.float32)
  grown = base * (cfg.factor * length / cfg.length - (cfg.factor - 1)) ** (d / (d - 2))
  return grown ** (-jnp.arange(0, d, 2, dtype=jnp.float32) / d), 1.0
