"""Sinusoidal positions (Vaswani et al. 2017, section 3.5), added to the embeddings.

Sines fill the first half of the width and cosines the second, as in the authors' code; the paper's formula interleaves them. The two
differ by a fixed permutation of the width.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from research.core.types import Array
from research.model.position.base import Position, Sizes


@dataclasses.dataclass(frozen=True)
class Config:
  base: float = 10000.0  # the longest wavelength is 2π · base


class Sinusoidal(Position):
  base: float

  def embed(self, x: Array, positions: Array) -> Array:
    half = x.shape[-1] // 2
    frequency = self.base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None].astype(jnp.float32) * frequency
    table = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return x + jnp.pad(table, ((0, 0), (0, 0), (0, x.shape[-1] - 2 * half))).astype(x.dtype)


def make(cfg: Config, sizes: Sizes) -> Sinusoidal:
  del sizes
  return Sinusoidal(base=cfg.base)
