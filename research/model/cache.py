"""The key/value cache of decoding: S slots for every row, the order rule telling which of them are visible.

All rows write the same slots, so a write is one slice. A prompt's padding is written too, with the order UNSEEN, and never seen:
prompts of unequal length need no other care.

The keys and values of an encoder's output enter with the first tokens. From then on neither the source nor the encoder is read again.
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
  source: LayerCache | None = None  # of the encoder's output, a slot for each of its places; None before the first tokens


class Cache(NamedTuple):
  layers: LayerCache | tuple[LayerCache, ...]  # stacked for scanned layers, a tuple otherwise
  positions: Array  # int32 [B, S]
  order: Array  # int32 [B, S]; UNSEEN where nothing is written
  length: Array  # int32 []: slots written
  source: Array | None = None  # int32 [B, K]: the source's segments, once its keys are in the layers


def empty(layers: LayerCache | tuple[LayerCache, ...], batch: int, slots: int) -> Cache:
  unseen = jnp.full((batch, slots), UNSEEN, jnp.int32)
  return Cache(layers, jnp.zeros((batch, slots), jnp.int32), unseen, jnp.zeros((), jnp.int32))


def write(cache: Cache, inputs: Inputs) -> tuple[Cache, Sight]:
  """Enters the new tokens' positions and order; returns how these tokens see all slots. Padding has segment 0.

  Of kind 'ordered' they have an order of their own, as a prefix that is read in both directions; else it is their position.
  """
  positions, ordered = inputs.place(), inputs.kind == "ordered"
  own = inputs.order if ordered else positions
  order = own if inputs.segments is None else jnp.where(inputs.segments > 0, own, UNSEEN)
  start = (0, cache.length)
  cache = cache._replace(
      positions=jax.lax.dynamic_update_slice(cache.positions, positions, start),
      order=jax.lax.dynamic_update_slice(cache.order, order, start),
  )
  sight = Sight(positions, cache.positions, q_order=own, k_order=cache.order, kind="ordered", both_ways=ordered)
  return cache, sight


def source_sight(cache: Cache, inputs: Inputs) -> Sight:
  """How the new tokens see the source whose keys are cached: all of its document 1, unless they have segments of their own."""
  place, segments = inputs.place(), inputs.segments
  own = jnp.ones_like(place) if segments is None else segments
  k_positions = jnp.broadcast_to(jnp.arange(cache.source.shape[1], dtype=jnp.int32), cache.source.shape)
  return Sight(place, k_positions, own, cache.source, kind="full", blind=segments is not None, both_ways=True)


def advance(cache: Cache, layers: LayerCache | tuple[LayerCache, ...], count: int) -> Cache:
  """The cache after `count` new slots have been written in every layer."""
  return cache._replace(layers=layers, length=cache.length + count)
