"""Where positions enter: four doors, each the identity unless a scheme uses it."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn

from research.core.types import Array
from research.model.inputs import Sight


class Sizes(NamedTuple):
  """What a scheme may need to know of the model around it."""

  width: int  # of the residual stream
  length: int  # of the rows: the size of a learned table that names none
  heads: int
  head_dim: int
  deviation: float  # of the normal that kernels and tables are drawn from
  dtype: str
  param_dtype: str


class Position(nn.Module):
  """The scheme of a stack. A subclass overrides the doors that it uses.

  `embed` and `stack_bias` are called once for a stack, `rotate` and `score_bias` in every layer's self-attention, where a scheme's own
  parameters are that layer's.
  """

  def embed(self, x: Array, positions: Array) -> Array:
    """Adds to the embeddings x [B, L, D]; positions int [B, L]."""
    del positions
    return x

  def stack_bias(self, sight: Sight) -> Array | None:
    """What every layer adds to its scaled scores, [B or 1, H, L, K]."""
    del sight
    return None

  def rotate(self, q: Array, k: Array, q_positions: Array, k_positions: Array) -> tuple[Array, Array]:
    """Turns queries [B, L, H, d] and keys [B, K, G, d]."""
    del q_positions, k_positions
    return q, k

  def score_bias(self, q: Array, k: Array, sight: Sight) -> Array | None:
    """What this layer adds to its scaled scores, [B or 1, H, L, K]; q and k as they were before `rotate`."""
    del q, k, sight
    return None
