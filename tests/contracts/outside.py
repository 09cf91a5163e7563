"""An objective from outside the package, as a user writes one: predict the token after the next one."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from research.core.types import Field, Mean, Vocab
from research.model.inputs import HeadConfig, Inputs, positions_within
from research.objectives.base import ROW_AXES, SEGMENTS_MEANING, Example, Objective, token_metrics
from research.objectives.cross_entropy import token_loss


@dataclasses.dataclass(frozen=True)
class Config:
  ahead: int = 2  # how many tokens further on the target lies


def make(cfg: Config, vocab: Vocab, length: int) -> Objective:
  byte_length = jnp.asarray(vocab.byte_length)

  def corrupt(key, row, step) -> Example:
    del key, step
    tokens, segments = row["tokens"], row["segments"]
    inputs = Inputs(tokens[:length], positions=positions_within(segments[:length]), segments=segments[:length], kind="causal")
    follows = (segments[cfg.ahead :] == segments[:length]) & (segments[:length] > 0)
    return Example(inputs, {"ahead": tokens[cfg.ahead :]}, {"ahead": follows.astype(jnp.float32)}, {})

  def loss(apply, params, example, key, train):
    output = apply(params, example.inputs, read={"ahead": None}, key=key, train=train)
    targets, weights = example.targets["ahead"], example.weights["ahead"]
    total, nll, correct = token_loss(output.heads["ahead"], targets, weights)
    metrics = token_metrics(nll, correct, targets, weights, byte_length)
    return {"ahead": Mean(total, jnp.sum(weights))}, {"accuracy": metrics["accuracy"]}

  field = lambda meaning: Field((length + cfg.ahead,), "int32", ROW_AXES, meaning)
  return Objective(
      element_spec={"tokens": field("the text, longer than the model sees"), "segments": field(SEGMENTS_MEANING)},
      heads={"ahead": HeadConfig()},
      corrupt=corrupt,
      loss=loss,
      factors={"ahead": 1.0},
  )
