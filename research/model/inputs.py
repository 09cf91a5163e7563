"""What goes into the model and what comes out of it, and the one rule of who sees whom.

Query i sees key j iff their segments match and `k_order[j] <= q_order[i]` (and, with a window,
`|q_position[i] - k_position[j]| < window`). Two integer vectors say every pattern:

  bidirectional, cross-attention      all 0
  causal                              place in the row
  prefix LM                           0 in the prefix, then 1, 2, …
  permutation LM, content stream      place in the factorisation order
  permutation LM, query stream        that place − 1: a query may not see itself
  KV cache                            position; unwritten slots hold UNSEEN

A static `kind` names the two common patterns, so that a fused kernel can be picked and no order vector is needed. A query that sees
nothing outputs zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from research.core.types import Array

Kind = Literal["full", "causal", "ordered"]
UNSEEN = np.iinfo(np.int32).max  # the order of a key that no query may see


@flax.struct.dataclass
class Inputs:
  """The rows of a batch (or, without the leading axis B, one row)."""

  tokens: Array  # int32 [B, L]
  positions: Array | None = None  # int32 [B, L]; None: 0 … L−1
  segments: Array | None = None  # int32 [B, L]: 0 padding, 1, 2, … documents packed into the row; None: one document, no padding
  order: Array | None = None  # int32 [B, L]: for kind 'ordered' only
  types: Array | None = None  # int32 [B, L]: token types (BERT's sentence A and B)
  source: "Inputs | None" = None  # what the encoder of an encoder–decoder reads
  kind: Kind = flax.struct.field(pytree_node=False, default="causal")

  def place(self) -> Array:
    """Positions, filled in where they were left out, int32 [B, L]."""
    if self.positions is not None:
      return self.positions
    return jnp.broadcast_to(jnp.arange(self.tokens.shape[-1], dtype=jnp.int32), self.tokens.shape)


class HeadConfig(NamedTuple):
  """A head that an objective reads; the model is built with exactly these."""

  kind: Literal["token"] = "token"  # token: a score for each entry of the vocabulary
  transform: bool = False  # dense, activation and norm before the scores (BERT's masked-LM head, Devlin et al. 2019)
  bias: bool = False  # a bias for each entry


class Projection(NamedTuple):
  """Scores not yet computed: `logits` makes them, a fused loss never needs all of them at once."""

  hidden: Array  # [B, P, D]
  kernel: Array  # [V, D]
  bias: Array | None  # [V]

  def logits(self) -> Array:
    """[B, P, V] in at least float32."""
    dtype = jnp.promote_types(jnp.float32, self.hidden.dtype)
    kernel = self.kernel.astype(self.hidden.dtype)
    logits = jnp.einsum("BPD,VD->BPV", self.hidden, kernel, preferred_element_type=dtype)
    return logits if self.bias is None else logits + self.bias.astype(dtype)


class Output(NamedTuple):
  heads: Mapping[str, Any]  # name -> what that head gives, at the positions that were asked for
  hidden: Array  # [B, L, D] after the last norm
  cache: Any  # the KV cache with the new keys written, or None
  aux: Mapping[str, Array]  # losses of the model's own (load balancing)
  updates: Mapping[str, Array]  # changes of parameters that have no gradient


@flax.struct.dataclass
class Sight:
  """The vectors of the visibility rule for one attention call; either side may have a leading axis of 1."""

  q_positions: Array  # int32 [B, L]
  k_positions: Array  # int32 [B, K]
  q_segments: Array | None = None  # int32 [B, L]
  k_segments: Array | None = None
  q_order: Array | None = None
  k_order: Array | None = None
  kind: Kind = flax.struct.field(pytree_node=False, default="causal")
  blind: bool = flax.struct.field(pytree_node=False, default=False)  # some query may see nothing

  def mask(self, window: int | None = None, start: int = 0, end: int | None = None) -> Array | None:
    """bool [B or 1, L, K], True where the query sees the key; None where every query sees every key.

    With `start` and `end`: the part for these queries; of causal rows, for the keys up to `end`, as no others are seen.
    """
    queries, keys = slice(start, end), slice(None, end if self.kind == "causal" else None)
    q_positions, k_positions = self.q_positions[:, queries], self.k_positions[:, keys]
    seen = []
    if self.kind == "causal":
      place = jnp.arange(self.q_positions.shape[-1], dtype=jnp.int32)
      seen.append(place[None, queries, None] >= place[None, None, keys])
    elif self.kind == "ordered":
      seen.append(self.k_order[:, None, keys] <= self.q_order[:, queries, None])
    if self.q_segments is not None:
      seen.append(self.q_segments[:, queries, None] == self.k_segments[:, None, keys])
    if window is not None:
      seen.append(jnp.abs(q_positions[:, :, None] - k_positions[:, None, :]) < window)
    if not seen:
      return None
    mask = seen[0]
    for other in seen[1:]:
      mask = mask & other
    return mask


def self_sight(inputs: Inputs) -> Sight:
  """How the positions of a row see each other."""
  place = inputs.place()
  order = inputs.order if inputs.kind == "ordered" else None
  return Sight(place, place, inputs.segments, inputs.segments, order, order, kind=inputs.kind, blind=inputs.kind == "ordered")


def cross_sight(inputs: Inputs, source: Inputs) -> Sight:
  """How a decoder's positions see the encoder's: all of the same segment."""
  if (inputs.segments is None) != (source.segments is None):
    raise ValueError("segments must be given for both the decoder's input and its source, or for neither")
  return Sight(inputs.place(), source.place(), inputs.segments, source.segments, kind="full", blind=inputs.segments is not None)


def positions_within(segments: Array) -> Array:
  """Positions that restart at every document of packed rows, int32, for segments [..., L] (each document contiguous)."""
  place = jnp.arange(segments.shape[-1], dtype=jnp.int32)
  before = jnp.concatenate([jnp.full_like(segments[..., :1], -1), segments[..., :-1]], axis=-1)
  starts = jnp.where(segments != before, place, 0)
  return place - jax.lax.cummax(starts, axis=starts.ndim - 1)
