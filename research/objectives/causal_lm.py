"""Causal language modelling: predict each token from those before it (Radford et al. 2018, GPT).

A row holds one token more than the model sees: inputs are all but the last, targets all but the first. Targets never cross from one
document of a packed row to the next.

With `prefix` it is prefix language modelling (Raffel et al. 2020, T5, section 3.2.1): each document of a row is cut at a place drawn
uniformly, one token at least on either side. A token of the prefix sees the whole prefix, a later one all tokens up to itself; only tokens
after the prefix are targets, the first of them predicted at the prefix's last place. T5's prefixes were spans of their own, read by the same
rule.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from research.core.types import Field, Mean, Vocab
from research.model.inputs import HeadConfig, Inputs, positions_within
from research.objectives.base import ROW_AXES, SEGMENTS_MEANING, Example, Objective, row_metrics, token_metrics
from research.objectives.cross_entropy import token_loss


@dataclasses.dataclass(frozen=True)
class Config:
  head_bias: bool = False  # a bias for each vocabulary entry
  prefix: bool = False  # prefix LM: the beginning of each document is read in both directions, the rest predicted
  z_loss: float = 0.0  # factor of log² Z (Chowdhery et al. 2022, PaLM, section 5: 1e-4); in training only
  label_smoothing: float = 0.0  # share of each target that is spread over the vocabulary (Szegedy et al. 2016, section 7); in training only

  def __post_init__(self):
    if self.z_loss < 0:
      raise ValueError(f"z_loss must be at least 0; got {self.z_loss}")
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(f"label_smoothing must lie in [0, 1); got {self.label_smoothing}")


def make(cfg: Config, vocab: Vocab, length: int) -> Objective:
  byte_length = jnp.asarray(vocab.byte_length)

  def next_tokens(row) -> Example:
    tokens, segments = row["tokens"], row["segments"]
    inputs = Inputs(tokens[:-1], positions=positions_within(segments[:-1]), segments=segments[:-1], kind="causal")
    follows = (segments[1:] == segments[:-1]) & (segments[1:] > 0)
    return Example(inputs, {"lm": tokens[1:]}, {"lm": follows.astype(jnp.float32)}, {})

  def corrupt(key, row, step) -> Example:
    del step
    example = next_tokens(row)
    if not cfg.prefix:
      return example
    place = positions_within(row["segments"])  # [L + 1], in the document
    start = jnp.arange(length + 1) - place
    size = jnp.zeros((length + 1,), jnp.int32).at[start].add(1)[start]
    drawn = jax.random.uniform(key, (length + 1,))[start]  # one number for each document
    prefix = 1 + jnp.minimum((drawn * (size - 1)).astype(jnp.int32), size - 2)  # its tokens, 1 … size − 1
    place, prefix = place[:-1], prefix[:-1]
    inputs = example.inputs.replace(kind="ordered", order=jnp.where(place < prefix, 0, place - prefix + 1))
    return example._replace(inputs=inputs, weights={"lm": example.weights["lm"] * (place >= prefix - 1)})

  def loss(apply, params, example, key, train):
    output = apply(params, example.inputs, read={"lm": None}, key=key, train=train)
    targets, weights = example.targets["lm"], example.weights["lm"]
    more = dict(z_loss=cfg.z_loss, label_smoothing=cfg.label_smoothing) if train else {}
    total, nll, correct = token_loss(output.heads["lm"], targets, weights, **more)
    metrics = token_metrics(nll, correct, targets, weights, byte_length)
    if any(more.values()):  # the loss is then no likelihood
      metrics["nll"] = Mean.of(nll, weights)
    if cfg.prefix:
      metrics |= row_metrics(weights, example.inputs.segments)
    return {"lm": Mean(total, jnp.sum(weights))}, metrics

  def logprob(apply, params, rows, key):
    """Of all tokens of a document but its first; for a prefix LM that token is the prefix, so the factors are those of a causal model."""
    del key
    example = jax.vmap(next_tokens)(rows)
    output = apply(params, example.inputs, read={"lm": None})
    _, nll, _ = token_loss(output.heads["lm"], example.targets["lm"], example.weights["lm"])
    return -jnp.sum(nll * example.weights["lm"], axis=-1)

  def scored(rows):
    example = jax.vmap(next_tokens)(rows)
    return example.targets["lm"], example.weights["lm"]

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
      scored=scored,
      causal=True,
  )
