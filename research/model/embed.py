"""The token embedding, which a tied head reads again as its kernel."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from research.core.types import Array
from research.model.layers import constrain


class Embed(nn.Module):
  """Rows of a table [entries, D] by id."""

  entries: int
  width: int
  deviation: float
  dtype: str
  param_dtype: str
  axes: tuple[str | None, str | None] = ("vocab", "embed")

  def setup(self):
    init = nn.with_logical_partitioning(nn.initializers.normal(self.deviation), self.axes)
    self.embedding = self.param("embedding", init, (self.entries, self.width), self.param_dtype)

  def __call__(self, ids: Array) -> Array:
    """int [..., L] -> [..., L, D]."""
    # Gathered along its sharded width first: a lookup in a table that is split both ways would be replicated on every device.
    table = constrain(self.embedding, self.axes[0], None)
    return jnp.take(table, ids, axis=0).astype(self.dtype)
