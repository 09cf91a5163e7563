"""Tagging: a class for each word, read at the word's first token (Devlin et al. 2019, section 5.3)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from research.core.types import Field, Mean, Vocab
from research.model.inputs import HeadConfig, Inputs, positions_within
from research.objectives.base import ROW_AXES, SEGMENTS_MEANING, Example, Objective, class_loss


@dataclasses.dataclass(frozen=True)
class Config:
  classes: int = 9  # kinds of tags; 9: O, and B- and I- of four types

  def __post_init__(self):
    if self.classes < 2:
      raise ValueError(f"classes must be at least 2; got {self.classes}")


def make(cfg: Config, vocab: Vocab, length: int) -> Objective:
  del vocab

  def corrupt(key, row, step) -> Example:
    del key, step
    inputs = Inputs(row["tokens"], positions=positions_within(row["segments"]), segments=row["segments"], kind="full")
    return Example(inputs, {"tags": jnp.maximum(row["tags"], 0)}, {"tags": (row["tags"] >= 0).astype(jnp.float32)}, {})

  def scores(apply, params, example, key=None, train=False):
    """[B, L, classes]: any number of places may be tagged, so the head reads all of them; the weights tell which count."""
    return apply(params, example.inputs, read={"tags": None}, key=key, train=train).heads["tags"]

  def loss(apply, params, example, key, train):
    weights = example.weights["tags"]
    total, _, correct = class_loss(scores(apply, params, example, key, train), example.targets["tags"], weights)
    return {"tags": Mean(total, jnp.sum(weights))}, {"accuracy": Mean.of(correct, weights)}

  def predict(apply, params, example):
    return {"tags": jnp.argmax(scores(apply, params, example), axis=-1)}

  return Objective(
      element_spec={
          "tokens": Field((length,), "int32", ROW_AXES, "the text"),
          "segments": Field((length,), "int32", ROW_AXES, SEGMENTS_MEANING),
          "tags": Field((length,), "int32", ROW_AXES, "the tag's number at the first token of a word, −1 elsewhere"),
      },
      heads={"tags": HeadConfig(kind="vector", outputs=cfg.classes, bias=True)},
      corrupt=corrupt,
      loss=loss,
      factors={"tags": 1.0},
      predict=predict,
      classes=cfg.classes,
  )
