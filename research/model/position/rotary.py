"""Rotary positions (Su et al. 2021, RoFormer, section 3.2): queries and keys turn with their position, so scores depend on distance.

The two coordinates of a plane are i and i + d/2 (as in GPT-NeoX and Llama), where the paper pairs 2i and 2i + 1.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from research.core.config import Component
from research.core.config import make as make_component
from research.core.types import Array
from research.model.position.base import Position, Sizes


@dataclasses.dataclass(frozen=True)
class Config:
  base: float = 10000.0  # plane i turns by base^(−2i/d) radians a position
  scaling: Component | None = None  # other speeds, for longer texts than those of pretraining: model.position.scaling.llama3, …


class Rotary(Position):
  base: float
  scaling: Component | None = None

  def rotate(self, q: Array, k: Array, q_positions: Array, k_positions: Array) -> tuple[Array, Array]:
    d, factor = q.shape[-1], 1.0
    if self.scaling is None:
      frequency = self.base ** (-jnp.arange(d // 2, dtype=jnp.float32) / (d // 2))
    else:
      longest = jnp.max(k_positions, axis=-1)[:, None, None, None] + 1
      frequency, factor = make_component(self.scaling, self.base, d, longest)
    return _turn(q, q_positions, frequency, factor), _turn(k, k_positions, frequency, factor)


def _turn(x: Array, positions: Array, frequency: Array, factor: float) -> Array:
  """x [B, L, H, d] turned by position · frequency [d/2] (or one for each row, [B, 1, 1, d/2]), and times `factor`."""
  angle = positions[:, :, None, None].astype(jnp.float32) * frequency  # [B, L, 1, d/2]
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  if factor != 1.0:
    sin, cos = sin * factor, cos * factor
  a, b = jnp.split(x.astype(jnp.promote_types(jnp.float32, x.dtype)), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def make(cfg: Config, sizes: Sizes) -> Rotary:
  del sizes
  return Rotary(base=cfg.base, scaling=cfg.scaling)
