"""What an attention call asks of a kernel, and what the kernels share.

A kernel is a file with two functions: `refuses(call)` says in words what it cannot honour of a call, or None, and `attend` computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from research.core.types import Array
from research.model.inputs import Kind

BLOCK = 128  # least number of queries of a block of causal attention
BLOCKS = 8  # most blocks: with 8, 9/16 of the scores are made


class Call(NamedTuple):
  """What is static of an attention call."""

  platform: str  # cpu, gpu or tpu
  dtype: str
  queries: int
  keys: int
  head_dim: int
  kind: Kind
  segments: bool
  window: bool
  bias: bool
  dropout: bool
  split: bool  # the places of a row are spread over devices
  stacked: bool = False  # of several runs side by side (layers.side_by_side)


class Drop(NamedTuple):
  """Dropout of the probabilities, where there is any."""

  rate: float
  layer: Callable[[Array], Array]  # zeroes a share of an array and scales the others up, each time with other draws
  key: Callable[[], Array]  # for kernels that must draw the same in the backward pass


def blocks(kind: Kind, length: int, whole: bool = False) -> list[tuple[int, int]]:
  """Bounds of the blocks of queries: causal ones each need the keys up to their own end only. With `whole` it is one."""
  count = max(1, min(BLOCKS, length // BLOCK)) if kind == "causal" and not whole else 1
  bounds = [length * i // count for i in range(count + 1)]
  return list(zip(bounds, bounds[1:]))


def heads_first(q: Array, k: Array, v: Array, split: bool) -> tuple[Array, Array, Array]:
  """[B, L, heads, d] -> [B, heads, L, d]. Where places are spread over devices each query head has a key head of its own.

  Heads that share a key head are rows of one product otherwise, [R·L], which no sharding along L can express.
  """
  q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
  if split and q.shape[1] > k.shape[1]:
    k, v = (jnp.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k, v))
  return q, k, v
