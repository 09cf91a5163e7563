"""Sentence similarity: the cosine of two texts' vectors is to be the score that people gave the pair.

The loss is the squared error of the score (Reimers and Gurevych 2019, Sentence-BERT, section 3, regression objective). Unlike a classification
of the pair, which reads both texts in one row, each text gets a vector of its own, so a model that embeds texts goes on as what it is.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from research.core.types import Field, Vocab
from research.model.inputs import Inputs
from research.objectives.base import ROW_AXES, SEGMENTS_MEANING, Example, Objective, squared_error
from research.objectives.embedding import Embedding, vectors


@dataclasses.dataclass(frozen=True)
class Config(Embedding):
  low: float = 0.0  # the score of a pair whose vectors are orthogonal
  high: float = 5.0  # of a pair whose vectors are the same

  def __post_init__(self):
    if self.low >= self.high:
      raise ValueError(f"low must be below high; got {self.low} and {self.high}")


def make(cfg: Config, vocab: Vocab, length: int) -> Objective:
  del vocab

  def corrupt(key, row, step) -> Example:
    del key, step
    inputs = Inputs(row["tokens"], segments=(row["segments"] > 0).astype(jnp.int32), kind="full")
    return Example(inputs, {"similarity": row["label"][None]}, {"similarity": jnp.ones((1,), jnp.float32)}, {})

  def scores(apply, params, example, key=None, train=False):
    """[B, 1], on people's scale."""
    first, second = jnp.moveaxis(vectors(apply, params, example.inputs, key, train), 1, 0)
    return (cfg.low + (cfg.high - cfg.low) * jnp.sum(first * second, axis=-1))[:, None]

  def loss(apply, params, example, key, train):
    term, metrics = squared_error(scores(apply, params, example, key, train), example.targets["similarity"], example.weights["similarity"])
    return {"similarity": term}, metrics

  def predict(apply, params, example):
    return {"score": scores(apply, params, example)[:, 0]}

  shape, axes = (2, length), (None, *ROW_AXES)
  return Objective(
      element_spec={
          "tokens": Field(shape, "int32", axes, "the two texts"),
          "segments": Field(shape, "int32", axes, SEGMENTS_MEANING),
          "label": Field((), "float32", (), "the score of the pair"),
      },
      heads=cfg.heads(),
      corrupt=corrupt,
      loss=loss,
      factors={"similarity": 1.0},
      predict=predict,
  )
