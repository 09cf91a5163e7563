"""Causal language modelling: predict each token from those before it (Radford et al. 2018, GPT).

A row holds one token more than the model sees: inputs are all but the last, targets all but the first. Targets never cross from one
document of a packed row to the next.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from research.core.types import Field, Mean, Vocab
from research.model.inputs import HeadConfig, Inputs, positions_within
from research.objectives.base import ROW_AXES, SEGMENTS_MEANING, Example, Objective, token_metrics
from research.objectives.cross_entropy import token_loss


@dataclasses.dataclass(frozen=True)
class Config:
  head_bias: bool = False  # a bias for each vocabulary entry


def make(cfg: Config, vocab: Vocab, length: int) -> Objective:
  byte_length = jnp.asarray(vocab.byte_length)

  def corrupt(key, row, step) -> Example:
    del key, step
    tokens, segments = row["tokens"], row["segments"]
    inputs = Inputs(tokens[:-1], positions=positions_within(segments[:-1]), segments=segments[:-1], kind="causal")
    follows = (segments[1:] == segments[:-1]) & (segments[1:] > 0)
    return Example(inputs, {"lm": tokens[1:]}, {"lm": follows.astype(jnp.float32)}, {})

  def loss(apply, params, example, key, train):
    output = apply(params, example.inputs, read={"lm": None}, key=key, train=train)
    targets, weights = example.targets["lm"], example.weights["lm"]
    total, nll, correct = token_loss(output.heads["lm"], targets, weights)
    terms = {"lm": Mean(total, jnp.sum(weights))}
    return terms, token_metrics(nll, correct, targets, weights, byte_length)

  def logprob(apply, params, rows, key):
    del key
    example = jax.vmap(lambda row: corrupt(None, row, 0))(rows)
    output = apply(params, example.inputs, read={"lm": None})
    _, nll, _ = token_loss(output.heads["lm"], example.targets["lm"], example.weights["lm"])
    return -jnp.sum(nll * example.weights["lm"], axis=-1)

  return Objective(
      element_spec={
          "tokens": Field((length + 1,), "int32", ROW_AXES, "the text, one token longer than the model sees"),
          "segments": Field((length + 1,), "int32", ROW_AXES, SEGMENTS_MEANING),
      },
      heads={"lm": HeadConfig(bias=cfg.head_bias)},
      corrupt=corrupt,
      loss=loss,
      factors={"lm": 1.0},
      logprob=logprob,
      causal=True,
  )
