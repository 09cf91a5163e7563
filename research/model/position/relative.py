"""Transformer-XL's relative positions (Dai et al. 2019, section 3.3) with XLNet's relative segments (Yang et al. 2019, section 2.5).

A query scores a key by ((q + u)·k + (q + v)·R[i − j] + (q + s)·S[same or other segment]) / √d. R is a projection of the sinusoids of the
distance; u, v, s, S and the projection belong to each layer. Distances are looked up in a table of 2K − 1 rows instead of shifting
rows, so any positions and any number of queries do.
"""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp

from research.core.types import Array
from research.model.inputs import Sight
from research.model.layers import Linear
from research.model.position.base import Position, Sizes


@dataclasses.dataclass(frozen=True)
class Config:
  base: float = 10000.0  # the longest wavelength is 2π · base
  clamp: int | None = None  # distances beyond it count as this one; None: as they are
  segments: bool = True  # scores depend on whether query and key have the same token type, where types are given


class Relative(Position):
  base: float
  clamp: int | None
  segments: bool
  sizes: Sizes

  @nn.compact  # not setup: the stack holds this scheme too, only for the other doors, and is to have no parameters of it
  def score_bias(self, q: Array, k: Array, sight: Sight) -> Array:
    z, (H, d), G, keys = self.sizes, q.shape[2:], k.shape[2], k.shape[1]
    wide, init = jnp.promote_types(jnp.float32, q.dtype), nn.initializers.normal(z.deviation)
    param = lambda name, *shape: self.param(  # a vector for each head, or two
        name, nn.with_logical_partitioning(init, (*[None] * (len(shape) - 2), "heads", "head_dim")), shape, z.param_dtype,
    ).astype(q.dtype)  # fmt: skip
    u, v = param("content_bias", H, d), param("distance_bias", H, d)
    distance = Linear((z.width,), (H, d), ("embed", "heads", "head_dim"), bias=False, deviation=z.deviation, dtype=z.dtype,
                      param_dtype=z.param_dtype, name="distance")  # fmt: skip
    table = distance(sinusoids(jnp.arange(1 - keys, keys), self.base, self.clamp, z.width).astype(q.dtype))  # [2K−1, H, d]
    scores_BxHxLxN = jnp.einsum("BLHd,NHd->BHLN", q + v, table, preferred_element_type=wide)
    distance_BxLxK = sight.q_positions[:, :, None] - sight.k_positions[:, None, :]
    index = jnp.broadcast_to(distance_BxLxK[:, None] + keys - 1, (*scores_BxHxLxN.shape[:3], keys))
    bias = jnp.take_along_axis(scores_BxHxLxN, index, axis=3, mode="clip")
    # A distance past the table would otherwise read its last row unnoticed; NaN shows it.
    bias = jnp.where((jnp.abs(distance_BxLxK) < keys)[:, None], bias, jnp.nan)
    bias = bias + jnp.einsum("GRd,BKGd->BGRK", u.reshape(G, H // G, d), k, preferred_element_type=wide).reshape(-1, H, 1, keys)
    if self.segments:
      s, S = param("segment_bias", H, d), param("segment_keys", 2, H, d)  # S: of the same segment, of another
      if sight.q_types is not None:
        both = jnp.einsum("BLHd,THd->BHLT", q + s, S, preferred_element_type=wide)
        other = (sight.q_types[:, :, None] != sight.k_types[:, None, :])[:, None]
        bias = bias + jnp.where(other, both[..., 1:], both[..., :1])
    return bias / math.sqrt(q.shape[-1])


def sinusoids(distance: Array, base: float, clamp: int | None, width: int) -> Array:
  """Sines, then cosines, of each distance: int [N] -> [N, D]."""
  distance = distance if clamp is None else jnp.clip(distance, -clamp, clamp)
  frequency = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  angle = distance[:, None].astype(jnp.float32) * frequency
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def make(cfg: Config, sizes: Sizes) -> Relative:
  return Relative(cfg.base, cfg.clamp, cfg.segments, sizes)
