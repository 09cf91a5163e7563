"""Losses that tell a row's own partner from those of the other rows of the batch.

Everything is written over the whole batch; on a mesh the partitioner gathers the vectors of all devices, so every row has all others as
negatives.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.core.types import Array

ABSENT = -1e30  # the score of a key that is not there: e to its power is 0, its gradient is 0


class Matched(NamedTuple):
  nll: Array  # [N] −log p(own key), nats
  correct: Array  # bool [N]: the own key scores highest; a tie, as of vectors that have all become one, counts as wrong


def info_nce(queries: Array, keys: Array, own: Array, present: Array, scale: Array | float) -> Matched:
  """−log of softmax_j(scale · queries·keysᵀ) at the own key (van den Oord et al. 2018, equation 4), as log(1 + Σ over the negatives e^margin).

  A margin is what a negative's score has above the own one, a difference that is taken before the scale multiplies it. Of two scores near 20, which float32
  rounds to 1e-6, a small loss would be a difference with few digits, and so would its gradient.

  Args:
    queries: [N, D].
    keys: [K, D]; the negatives of a query are all keys but its own.
    own: int [N], each query's key.
    present: bool [K]; keys that are not there are nobody's negatives.
    scale: [], the inverse of the temperature.

  Returns:
    Loss and hits of each query, in at least float32; of no meaning where the own key is not there.
  """
  products = jnp.einsum("ND,KD->NK", queries, keys, preferred_element_type=jnp.promote_types(jnp.float32, queries.dtype))
  margins = (products - jnp.take_along_axis(products, own[:, None], axis=1)) * scale
  negatives = present[None, :] & (jnp.arange(len(keys))[None, :] != own[:, None])
  margins = jnp.where(negatives, margins, ABSENT)
  return Matched(jax.nn.softplus(jax.nn.logsumexp(margins, axis=1)), jnp.max(margins, axis=1) < 0)


def pairwise_sigmoid(queries: Array, keys: Array, present: Array, scale: Array, bias: Array) -> Matched:
  """−Σⱼ log σ(±(scale · queries·keysᵀ + bias)), plus for the own key and minus for the others (Zhai et al. 2023, SigLIP, equation 2).

  Args:
    queries, keys: [N, D]; key i belongs to query i.
    present: bool [N]; pairs with a row that is not there count nothing.
    scale, bias: [].
  """
  scores = jnp.einsum("ND,KD->NK", queries, keys, preferred_element_type=jnp.promote_types(jnp.float32, queries.dtype)) * scale + bias
  own = jnp.eye(len(keys), dtype=bool)
  sign = jnp.where(own, 1, -1)
  loss = jnp.sum(jnp.where(present[None, :], -jax.nn.log_sigmoid(sign * scores), 0.0), axis=1)
  return Matched(loss, jnp.diagonal(scores) > jnp.max(jnp.where(present[None, :] & ~own, scores, ABSENT), axis=1))
