"""Where positions enter: three doors, each the identity unless a scheme uses it."""

from __future__ import annotations

import flax.linen as nn

from research.core.types import Array


class Position(nn.Module):
  """The scheme of a stack. A subclass overrides the doors that it uses."""

  def embed(self, x: Array, positions: Array) -> Array:
    """Adds to the embeddings x [B, L, D]; positions int [B, L]."""
    del positions
    return x

  def rotate(self, q: Array, k: Array, q_positions: Array, k_positions: Array) -> tuple[Array, Array]:
    """Turns queries [B, L, H, d] and keys [B, K, G, d]."""
    del q_positions, k_positions
    return q, k

  def score_bias(self, q: Array, k: Array, q_positions: Array, k_positions: Array) -> Array | None:
    """What is added to the scaled scores, [B or 1, H, L, K]."""
    del q, k, q_positions, k_positions
    return None
