"""Classification of images: a projection of the class token's last hidden state (Dosovitskiy et al. 2021, ViT, section 3.1)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from research.core.types import Field, Mean, Vocab
from research.model.inputs import HeadConfig, Inputs
from research.objectives.base import Example, Objective, class_loss
from research.objectives.pixels import Pixels


@dataclasses.dataclass(frozen=True)
class Config(Pixels):
  classes: int = 10  # classes of the label

  def __post_init__(self):
    super().__post_init__()
    if self.classes < 2:
      raise ValueError(f"classes must be at least 2; got {self.classes}")


def make(cfg: Config, vocab: Vocab, length: int) -> Objective:
  del vocab, length

  def corrupt(key, row, step) -> Example:
    del step
    inputs = Inputs(images=cfg.seen(key, row["images"]), kind="full")
    return Example(inputs, {"class": row["label"][None]}, {"class": jnp.ones((1,), jnp.float32)}, {"class": jnp.zeros((1,), jnp.int32)})

  def scores(apply, params, example, key=None, train=False):
    """[B, 1, classes]."""
    return apply(params, example.inputs, read={"class": example.positions["class"]}, key=key, train=train).heads["class"]

  def loss(apply, params, example, key, train):
    targets, weights = example.targets["class"], example.weights["class"]
    total, _, correct = class_loss(scores(apply, params, example, key, train), targets, weights)
    return {"class": Mean(total, jnp.sum(weights))}, {"accuracy": Mean.of(correct, weights)}

  def predict(apply, params, example):
    found = scores(apply, params, example)[:, 0]
    return {"class": jnp.argmax(found, axis=-1), "scores": found}

  return Objective(
      element_spec={"images": cfg.field(), "label": Field((), "int32", (), "the class's number")},
      heads={"class": HeadConfig(kind="vector", pool="first", outputs=cfg.classes, bias=True)},
      corrupt=corrupt,
      loss=loss,
      factors={"class": 1.0},
      predict=predict,
      classes=cfg.classes,
  )
