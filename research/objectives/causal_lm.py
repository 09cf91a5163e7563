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

from research.core.types import Field, Vocab
from research.model.inputs import Inputs, positions_within
from research.objectives import next_token
from research.objectives.base import ROW_AXES, SEGMENTS_MEANING, Example, Objective


@dataclasses.dataclass(frozen=True)
class Config(next_token.NextToken):
  prefix: bool = False  # prefix LM: the beginning of each document is read in both directions, the rest predicted


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
    return cfg.loss(apply, params, example, key, train, byte_length)

  def logprob(apply, params, rows, key):
    """Of all tokens of a document but its first; for a prefix LM that token is the prefix, so the factors are those of a causal model."""
    del key
    return next_token.logprob(apply, params, jax.vmap(next_tokens)(rows))

  def scored(rows):
    example = jax.vmap(next_tokens)(rows)
    return example.targets["lm"], example.weights["lm"]

  return Objective(
      element_spec={
          "tokens": Field((length + 1,), "int32", ROW_AXES, "the text, one token longer than the model sees"),
          "segments": Field((length + 1,), "int32", ROW_AXES, SEGMENTS_MEANING),
      },
      heads=cfg.heads,
      corrupt=corrupt,
      loss=loss,
      factors={"lm": 1.0},
      logprob=logprob,
      scored=scored,
      causal=True,
      prefix=cfg.prefix,
  )
