"""The key/value cache of decoding: S slots for every row, the order rule telling which of them are visible.

All rows write the same slots, so a write is one slice. A prompt's padding is written too, with the order UNSEEN, and never seen:
prompts of unequal length need no other care.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.core.types import Array
from research.model.inputs import UNSEEN, Inputs, Sight


class LayerCache(NamedTuple):
  keys: Array  # [B, S, G, d]; with scanned layers [layers, B, S, G, d]
  values: Array


class Cache(NamedTuple):
  layers: LayerCache | tuple[LayerCache, ...]  # stacked for scanned layers, a tuple otherwise
  positions: Array  # int32 [B, S]
  order: Array  # int32 [B, S]; UNSEEN where nothing is written
  length: Array  # int32 []: slots written


def empty(layers: LayerCache | tuple[LayerCache, ...], batch: int, slots: int) -> Cache:
  unseen = jnp.full((batch, slots), UNSEEN, jnp.int32)
  return Cache(layers, jnp.zeros((batch, slots), jnp.int32), unseen, jnp.zeros((), jnp.int32))


def write(cache: Cache, inputs: Inputs) -> tuple[Cache, Sight]:
  """Enters the new tokens' positions and order; returns how these tokens see all slots. Padding has segment 0."""
  positions = inputs.place()
  order = positions if inputs.segments is None else jnp.where(inputs.segments > 0, positions, UNSEEN)
  start = (0, cache.length)
  cache = cache._replace(
      positions=jax.lax.dynamic_update_slice(cache.positions, positions, start),
      order=jax.lax.dynamic_update_slice(cache.order, order, start),
  )
  sight = Sight(positions, cache.positions, q_order=positions, k_order=cache.order, kind="ordered")
  return cache, sight


def advance(cache: Cache, layers: LayerCache | tuple[LayerCache, ...], count: int) -> Cache:
  """The cache after `count` new slots have been written in every layer."""
  return cache._replace(layers=layers, length=cache.length + count)
