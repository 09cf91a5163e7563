"""A vector for each text of a row, as objectives on sentence embeddings read it."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax

from research.core.types import Array, PyTree
from research.model.inputs import EMBEDDING, HeadConfig, Inputs


@dataclasses.dataclass(frozen=True)
class Embedding:
  """Keys of an objective whose model gives a text one vector."""

  pool: Literal["mean", "first"] = "mean"  # the vector is the mean over the text, or that of its first token
  transform: bool = False  # dense and tanh before it, as in BERT's pooler

  def heads(self) -> dict[str, HeadConfig]:
    """The head `embedding`: vectors of length 1."""
    return {EMBEDDING: HeadConfig(kind="vector", pool=self.pool, transform=self.transform, activation="tanh", normalize=True)}


def vectors(apply, params: PyTree, inputs: Inputs, key: Array | None = None, train: bool = False) -> Array:
  """The vectors of rows that hold several texts, [B, texts, L] -> [B, texts, D]."""
  rows, texts = inputs.tokens.shape[:2]
  each = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), inputs)
  return apply(params, each, read={EMBEDDING: None}, key=key, train=train).heads[EMBEDDING].reshape(rows, texts, -1)
