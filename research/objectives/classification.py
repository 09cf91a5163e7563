"""Classification of a text or a pair of texts, or regression: a projection of one vector of the row (Devlin et al. 2019, section 4.1).

The loss is the cross-entropy of the class, or, with one output, the squared error of a number. Unlike transformers' classes there is no dropout
of its own before the projection, only the model's.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp

from research.core.types import Field, Mean, Vocab
from research.model.inputs import HeadConfig, Inputs, positions_within
from research.objectives.base import ROW_AXES, SEGMENTS_MEANING, Example, Objective, class_loss, squared_error


@dataclasses.dataclass(frozen=True)
class Config:
  classes: int = 2  # classes of the label; 1: regression, the label is a number
  pool: Literal["first", "mean"] = "first"  # what is classified: the first token's last hidden state (BERT's [CLS]), or the mean over the row
  head_transform: bool = True  # dense and activation before the projection, as BERT's pooler
  activation: str = "tanh"  # of the transform; tanh: BERT, RoBERTa; relu: DistilBERT; gelu: ELECTRA

  def __post_init__(self):
    if self.classes < 1:
      raise ValueError(f"classes must be at least 1; got {self.classes}")


def make(cfg: Config, vocab: Vocab, length: int) -> Objective:
  del vocab
  regression = cfg.classes == 1

  def corrupt(key, row, step) -> Example:
    del key, step
    inputs = Inputs(row["tokens"], positions=positions_within(row["segments"]), segments=row["segments"], types=row["types"], kind="full")
    return Example(inputs, {"class": row["label"][None]}, {"class": jnp.ones((1,), jnp.float32)}, {"class": jnp.zeros((1,), jnp.int32)})

  def scores(apply, params, example, key=None, train=False):
    """[B, 1, classes]."""
    return apply(params, example.inputs, read={"class": example.positions["class"]}, key=key, train=train).heads["class"]

  def loss(apply, params, example, key, train):
    found, targets, weights = scores(apply, params, example, key, train), example.targets["class"], example.weights["class"]
    if regression:
      term, metrics = squared_error(found[..., 0], targets, weights)
      return {"class": term}, metrics
    total, _, correct = class_loss(found, targets, weights)
    return {"class": Mean(total, jnp.sum(weights))}, {"accuracy": Mean.of(correct, weights)}

  def predict(apply, params, example):
    found = scores(apply, params, example)[:, 0]
    return {"score": found[:, 0]} if regression else {"class": jnp.argmax(found, axis=-1), "scores": found}

  meaning = "the number that belongs to the text" if regression else "the class's number"
  return Objective(
      element_spec={
          "tokens": Field((length,), "int32", ROW_AXES, "the text, or the pair"),
          "segments": Field((length,), "int32", ROW_AXES, SEGMENTS_MEANING),
          "types": Field((length,), "int32", ROW_AXES, "0, of the second text of a pair 1"),
          "label": Field((), "float32" if regression else "int32", (), meaning),
      },
      heads={"class": HeadConfig(kind="vector", pool=cfg.pool, transform=cfg.head_transform, activation=_activation(cfg), outputs=cfg.classes, bias=True)},
      corrupt=corrupt,
      loss=loss,
      factors={"class": 1.0},
      predict=predict,
      classes=None if regression else cfg.classes,
  )


def _activation(cfg: Config) -> str:
  return cfg.activation if cfg.head_transform else HeadConfig._field_defaults["activation"]
