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
EMBEDDING = "embedding"  # name of the head that gives a text's vector


@flax.struct.dataclass
class Inputs:
  """The rows of a batch (or, without the leading axis B, one row)."""

  tokens: Array | None = None  # int32 [B, L]; None where a model reads images
  positions: Array | None = None  # int32 [B, L]; None: 0 … L−1
  segments: Array | None = None  # int32 [B, L]: 0 padding, 1, 2, … documents packed into the row; None: one document, no padding
  order: Array | None = None  # int32 [B, L]: for kind 'ordered' only
  types: Array | None = None  # int32 [B, L]: token types (BERT's sentence A and B)
  queries: Array | None = None  # int32 [B, P]: places that a second stream asks about without seeing them (XLNet); for kind 'ordered' only
  images: Array | None = None  # [B, height, width, channels], for a model of patches
  source: "Inputs | None" = None  # what the encoder of an encoder–decoder reads
  kind: Kind = flax.struct.field(pytree_node=False, default="causal")

  def place(self) -> Array:
    """Positions, filled in where they were left out, int32 [B, L]."""
    if self.positions is not None:
      return self.positions
    return jnp.broadcast_to(jnp.arange(self.tokens.shape[-1], dtype=jnp.int32), self.tokens.shape)


class HeadConfig(NamedTuple):
  """A head that an objective reads; the model is built with exactly these.

  token   a score for each entry of the vocabulary, left as a Projection
  vector  a vector or scores of classes [B, P, ·], of a whole document or of each place
  scale   one learned positive number [], such as a temperature's inverse; it reads nothing
  """

  kind: Literal["token", "vector", "scale"] = "token"
  transform: bool = False  # dense and activation (token: and norm) first: BERT's masked-LM head and pooler (Devlin et al. 2019)
  activation: str = "gelu"  # of the transform
  bias: bool = False  # token: for each entry; vector: of the outputs
  outputs: int = 0  # vector: numbers it gives; 0: the width of what it reads
  pool: Literal["each", "first", "mean"] = "each"  # vector: of each place; of a document's first place; the mean of a document's places
  normalize: bool = False  # vector: to Euclidean length 1
  initial: float = 1.0  # scale: its first value
  tower: str | None = None  # of a model with towers: the one that it belongs to


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


class Aux(NamedTuple):
  """A loss of the model's own, which training adds to the objective's and evaluation leaves out."""

  values: Array  # [B]: of each row, which all weigh the same
  factor: float  # in the sum that is differentiated; 0: only reported


class Output(NamedTuple):
  heads: Mapping[str, Any]  # name -> what that head gives, at the positions that were asked for
  hidden: Array | None  # [B, L, D] after the last norm; None where heads were read, all at given places: the last block makes no others
  cache: Any  # the KV cache with the new keys written, or None
  past: Any  # with `past` given: what entered each layer, to be the next rows' past
  aux: Mapping[str, Aux]  # losses of the model's own (load balancing)
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
  q_types: Array | None = None
  k_types: Array | None = None
  kind: Kind = flax.struct.field(pytree_node=False, default="causal")
  blind: bool = flax.struct.field(pytree_node=False, default=False)  # some query may see nothing
  both_ways: bool = flax.struct.field(pytree_node=False, default=False)  # some query may see a later key

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

  def at(self, places: Array) -> "Sight":
    """The queries at `places` int [B, P] alone, with all keys."""
    pick = lambda x: None if x is None else jnp.take_along_axis(x, places, axis=1) if x.shape[0] == len(places) else x[0][places]
    k_order, q_order, kind = self.k_order, pick(self.q_order), self.kind
    if kind == "causal":  # the queries no longer stand at their places, so an order must tell what they see
      k_order, q_order, kind = jnp.arange(self.k_positions.shape[-1], dtype=jnp.int32)[None], places, "ordered"
    return self.replace(q_positions=pick(self.q_positions), q_segments=pick(self.q_segments), q_order=q_order, k_order=k_order,
                        q_types=pick(self.q_types), kind=kind)  # fmt: skip


class Past(NamedTuple):
  """Hidden states of earlier rows, which every query sees (Transformer-XL's memory). No gradient flows into them."""

  hidden: Any  # what entered each layer, [B, M, D]: a tuple of the layers, or stacked where they are scanned; None: nothing yet, M = 0
  positions: Array  # int32 [B, M], usually −M … −1
  segments: Array | None = None  # int32 [B, M]; given where the new rows have them
  types: Array | None = None  # int32 [B, M]; None: type 0


def self_sight(inputs: Inputs, past: Past | None = None) -> Sight:
  """How the positions of a row see each other, and the past; the queries of a second stream follow those of the first."""
  place, segments, order, types, kind = inputs.place(), inputs.segments, inputs.order, inputs.types, inputs.kind
  if (kind == "ordered") != (order is not None):
    raise ValueError("Inputs.order belongs to kind 'ordered', and to no other")
  if past is not None and kind == "causal":  # the past shifts the keys, so their places no longer tell the order
    order, kind = jnp.broadcast_to(jnp.arange(place.shape[-1], dtype=jnp.int32), place.shape), "ordered"
  q = k = (place, segments, order, types)
  if inputs.queries is not None:
    if kind != "ordered":
      raise ValueError("Inputs.queries needs kind 'ordered': what a query may see, the order tells")
    ask = lambda x: None if x is None else jnp.concatenate([x, jnp.take_along_axis(x, inputs.queries, axis=-1)], axis=-1)
    of_query = jnp.arange(place.shape[-1] + inputs.queries.shape[-1]) >= place.shape[-1]
    q = (ask(place), ask(segments), ask(order) - of_query, ask(types))  # an order lower by one: a query does not see its own place
  if past is not None:
    if (segments is None) != (past.segments is None):
      raise ValueError("segments must be given for both the rows and their past, or for neither")
    lead = lambda old, new: None if new is None else jnp.concatenate([old, new], axis=-1)
    zero = jnp.zeros_like(past.positions)
    k = (lead(past.positions, place), lead(past.segments, segments), lead(jnp.full_like(zero, np.iinfo(np.int32).min), order),
         lead(zero if past.types is None else past.types, types))  # fmt: skip
  return Sight(q[0], k[0], q[1], k[1], q[2], k[2], q[3], k[3], kind=kind, blind=kind == "ordered", both_ways=inputs.kind != "causal")


def cross_sight(inputs: Inputs, source: Inputs) -> Sight:
  """How a decoder's positions see the encoder's: all of the same segment."""
  if (inputs.segments is None) != (source.segments is None):
    raise ValueError("segments must be given for both the decoder's input and its source, or for neither")
  return Sight(inputs.place(), source.place(), inputs.segments, source.segments, kind="full", blind=inputs.segments is not None, both_ways=True)


def positions_within(segments: Array) -> Array:
  """Positions that restart at every document of packed rows, int32, for segments [..., L] (each document contiguous)."""
  place = jnp.arange(segments.shape[-1], dtype=jnp.int32)
  before = jnp.concatenate([jnp.full_like(segments[..., :1], -1), segments[..., :-1]], axis=-1)
  starts = jnp.where(segments != before, place, 0)
  return place - jax.lax.cummax(starts, axis=starts.ndim - 1)
