"""Positions as a bias of the attention scores, the same in every layer of a stack: T5's learned buckets, and ALiBi's fixed slopes.

Neither changes embeddings, queries or keys; relative distance is all that is seen.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp

from research.core.types import Array
from research.model.embed import Embed
from research.model.inputs import Sight
from research.model.position.base import Position, Sizes


@dataclasses.dataclass(frozen=True)
class Config:
  kind: Literal["buckets", "alibi"] = "buckets"  # learned biases of T5; fixed slopes of ALiBi
  buckets: int = 32  # buckets: how many biases a head has
  max_distance: int = 128  # buckets: distances from here on share the last bucket


class Buckets(Position):
  """A learned bias for each head and bucket of k_position − q_position (Raffel et al. 2020, T5, section 2.1).

  Near distances have a bucket each, farther ones share buckets whose bounds grow as a logarithm. Where queries see in both directions,
  half of the buckets serve each; otherwise all serve the past.
  """

  buckets: int
  max_distance: int
  sizes: Sizes

  def setup(self):
    s = self.sizes
    self.table = Embed(self.buckets, s.heads, s.deviation, "float32", s.param_dtype, axes=(None, "heads"))

  def stack_bias(self, sight: Sight) -> Array:
    distance = sight.k_positions[:, None, :] - sight.q_positions[:, :, None]
    return self.table(bucket(distance, self.buckets, self.max_distance, sight.both_ways)).transpose(0, 3, 1, 2)


def bucket(distance: Array, buckets: int, max_distance: int, both_ways: bool) -> Array:
  """The bucket of each k_position − q_position, int32."""
  start = 0
  if both_ways:
    buckets //= 2
    start = jnp.where(distance > 0, buckets, 0)
    distance = jnp.abs(distance)
  else:
    distance = jnp.maximum(-distance, 0)
  exact = buckets // 2
  far = jnp.log(jnp.maximum(distance, 1) / exact) / math.log(max_distance / exact) * (buckets - exact)
  far = jnp.minimum(exact + far.astype(jnp.int32), buckets - 1)
  return start + jnp.where(distance < exact, distance, far)


class Alibi(Position):
  """−slope · |q_position − k_position| (Press et al. 2022, ALiBi, section 3), the slopes a geometric series over the heads."""

  heads: int

  def stack_bias(self, sight: Sight) -> Array:
    distance = jnp.abs(sight.q_positions[:, :, None] - sight.k_positions[:, None, :]).astype(jnp.float32)
    return -jnp.asarray(slopes(self.heads), jnp.float32)[None, :, None, None] * distance[:, None]


def slopes(heads: int) -> list[float]:
  """2^(−8/n), 2^(−16/n), … for n heads; where n is no power of two, those of the power below and every other one of the power above."""
  power = 1 << (heads.bit_length() - 1)
  first = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
  between = [2.0 ** (-8 * (i + 0.5) / power) for i in range(power)]
  return first + between[::2][: heads - power] if heads > power else first


def make(cfg: Config, sizes: Sizes) -> Position:
  if cfg.kind == "alibi":
    return Alibi(sizes.heads)
  return Buckets(cfg.buckets, cfg.max_distance, sizes)
