"""Contrastive sentence embeddings: a text's vector lies nearer to its partner's than to those of the batch's other texts.

With one text a row, its partner is the same text under another dropout (Gao et al. 2021, SimCSE, section 3). With more, a row is an anchor, its
positive and hard negatives, which are negatives of all anchors (section 4). The vector is the head `embedding`, of length 1, so scores are
cosines over the temperature.

A row's text is all of it, whatever documents it was cut from. The loss depends on how many rows are told apart: values of unlike batch
sizes cannot be compared. Without dropout (in evaluation) the two views of one text are equal, and what the loss tells is how far apart
unlike texts lie.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from research.core.types import Field, Mean, Vocab
from research.model.inputs import Inputs
from research.objectives.base import ROW_AXES, SEGMENTS_MEANING, Example, Objective
from research.objectives.embedding import Embedding, vectors
from research.objectives.in_batch import info_nce


@dataclasses.dataclass(frozen=True)
class Config(Embedding):
  texts: int = 1  # of a row: 1, seen twice under dropout; 2, anchor and positive; more, hard negatives as well
  temperature: float = 0.05  # cosines are divided by it
  symmetric: bool = False  # positives look for their anchors too
  causal: bool = False  # tokens see the past only

  def __post_init__(self):
    if self.texts < 1:
      raise ValueError(f"texts must be at least 1; got {self.texts}")
    if self.temperature <= 0:
      raise ValueError(f"temperature must be positive; got {self.temperature}")
    if self.causal and self.pool == "first":
      raise ValueError("pool 'first' reads nothing but the first token of a causal model: take 'mean'")


def make(cfg: Config, vocab: Vocab, length: int) -> Objective:
  del vocab
  shape, axes = ((length,), ROW_AXES) if cfg.texts == 1 else ((cfg.texts, length), (None, *ROW_AXES))
  views = max(2, cfg.texts)

  def corrupt(key, row, step) -> Example:
    del key, step
    tokens, segments = (jnp.broadcast_to(row[name], (views, length)) for name in ("tokens", "segments"))
    inputs = Inputs(tokens, segments=(segments > 0).astype(jnp.int32), kind="causal" if cfg.causal else "full")
    pair = jnp.all(jnp.any(segments[:2] > 0, axis=1))  # rows without one of the two are padding
    return Example(inputs, {}, {"contrastive": pair.astype(jnp.float32)}, {})

  def loss(apply, params, example, key, train):
    inputs, weights = example.inputs, example.weights["contrastive"]
    rows, found = weights.shape[0], vectors(apply, params, inputs, key, train)
    present = (weights > 0)[:, None] & jnp.any(inputs.segments > 0, axis=2)
    anchors, others = found[:, 0], found[:, 1:].reshape(rows * (views - 1), -1)
    own, scale = jnp.arange(rows), 1 / cfg.temperature
    nll, correct = info_nce(anchors, others, own * (views - 1), present[:, 1:].reshape(-1), scale)
    if cfg.symmetric:
      nll = (nll + info_nce(found[:, 1], anchors, own, present[:, 0], scale).nll) / 2
    metrics = {
        "accuracy": Mean.of(correct, weights),
        "positive_cosine": Mean.of(jnp.sum(anchors * found[:, 1], axis=-1), weights),
    }
    return {"contrastive": Mean.of(nll, weights)}, metrics

  def predict(apply, params, example):
    found = vectors(apply, params, example.inputs)
    return {"anchor": found[:, 0], "positive": found[:, 1]}

  meaning = "the text" if cfg.texts == 1 else "the texts: an anchor, its positive, then hard negatives"
  return Objective(
      element_spec={"tokens": Field(shape, "int32", axes, meaning), "segments": Field(shape, "int32", axes, SEGMENTS_MEANING)},
      heads=cfg.heads(),
      corrupt=corrupt,
      loss=loss,
      factors={"contrastive": 1.0},
      predict=predict if cfg.texts > 1 else None,
      partners=cfg.texts > 1,
      whole_batch=True,
  )
