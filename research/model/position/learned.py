"""A learned vector for every position (Gehring et al. 2017; BERT, GPT-2), added to the embeddings."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from research.core.types import Array
from research.model.embed import Embed
from research.model.position.base import Position, Sizes


@dataclasses.dataclass(frozen=True)
class Config:
  length: int = 0  # positions of the table; 0: the length of the rows
  offset: int = 0  # unused rows before that of position 0 (RoBERTa, BART: 2)


class Learned(Position):
  length: int
  offset: int
  width: int
  deviation: float
  dtype: str
  param_dtype: str

  def setup(self):
    self.table = Embed(self.offset + self.length, self.width, self.deviation, self.dtype, self.param_dtype, axes=(None, "embed"))

  def embed(self, x: Array, positions: Array) -> Array:
    # A position past the table would otherwise read its last row unnoticed; NaN shows it.
    rows = self.table(positions + self.offset)
    return x + jnp.where((positions < self.length)[..., None], rows, jnp.nan).astype(x.dtype)


def make(cfg: Config, sizes: Sizes) -> Learned:
  return Learned(cfg.length or sizes.length, cfg.offset, sizes.width, sizes.deviation, sizes.dtype, sizes.param_dtype)
