"""Rotary positions (Su et al. 2021, RoFormer, section 3.2): queries and keys turn with their position, so scores depend on distance.

The two coordinates of a plane are i and i + d/2 (as in GPT-NeoX and Llama), where the paper pairs 2i and 2i + 1.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from research.core.types import Array
from research.model.position.base import Position


@dataclasses.dataclass(frozen=True)
class Config:
  base: float = 10000.0  # plane i turns by base^(−2i/d) radians a position


class Rotary(Position):
  base: float

  def rotate(self, q: Array, k: Array, q_positions: Array, k_positions: Array) -> tuple[Array, Array]:
    return _turn(q, q_positions, self.base), _turn(k, k_positions, self.base)


def _turn(x: Array, positions: Array, base: float) -> Array:
  half = x.shape[-1] // 2
  frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions[:, :, None, None].astype(jnp.float32) * frequency  # [B, L, 1, d/2]
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  a, b = jnp.split(x.astype(jnp.promote_types(jnp.float32, x.dtype)), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def make(cfg: Config, *, width: int, length: int, deviation: float, dtype: str, param_dtype: str) -> Rotary:
  del width, length, deviation, dtype, param_dtype
  return Rotary(base=cfg.base)
