"""Reading: prompts and sources of unequal length at once, then one token after the other, each with the scores of what may follow.

What sampling and beam search share. A source is encoded once, and its keys and values are projected once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from research.core.types import Array, PyTree
from research.decode.rules import Rules
from research.model import transformer
from research.model.cache import Cache
from research.model.inputs import Inputs, Projection


class Rows(NamedTuple):
  """Texts as arrays, padded on the right."""

  tokens: Array  # int32 [B, L]
  lengths: Array  # int32 [B]


class Read(NamedTuple):
  """A model that has read some tokens of every row."""

  scores: Array  # [B, V], of the next token
  places: Array  # int32 [B]: position of the next token
  cache: Cache
  kernel: Array  # [D, V]: the head's kernel, transposed once: a row-major product is faster token by token
  bias: Array | None


def rows(texts: list[np.ndarray]) -> Rows:
  lengths = np.array([len(text) for text in texts], np.int32)
  padded = np.zeros((len(texts), lengths.max()), np.int32)
  for row, text in zip(padded, texts):
    row[: len(text)] = text
  return Rows(padded, lengths)


def history(prompts: Rows) -> Array:
  """The prompts as `rules.Written` holds them, int32 [B, L]."""
  length = prompts.tokens.shape[1]
  place = jnp.arange(length) - (length - prompts.lengths[:, None])
  return jnp.where(place >= 0, jnp.take_along_axis(prompts.tokens, jnp.maximum(place, 0), axis=1), -1)


def checked(
  model: transformer.Transformer, rules: Rules, prompts: list[np.ndarray] | None, sources: list[np.ndarray] | None
) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
  """The prompts and sources of a call as int32 arrays; an encoder–decoder's prompt is its start token where none is given.

  Raises:
    ValueError: sources that are missing or that nobody reads, no start token, an empty text, or unequal numbers of them.
  """
  if model.cfg.encoder_layers:
    if not sources:
      raise ValueError("a model with an encoder needs sources, one for each text")
    if prompts is None:
      if rules.start is None:
        raise ValueError("the decoder of a model with an encoder needs prompts, or Rules.start")
      prompts = [np.array([rules.start], np.int32)] * len(sources)
    if len(prompts) != len(sources):
      raise ValueError(f"{len(sources)} sources need as many prompts; got {len(prompts)}")
    if min(map(len, sources)) < 1:
      raise ValueError("every source needs at least one token")
  elif sources is not None:
    raise ValueError("this model has no encoder, so nothing reads sources")
  if not prompts or min(map(len, prompts)) < 1:
    raise ValueError("every prompt needs at least one token")
  as_arrays = lambda texts: None if texts is None else [np.asarray(text, np.int32) for text in texts]
  return as_arrays(prompts), as_arrays(sources)


def prefill(model: transformer.Transformer, head: str, slots: int, params: PyTree, prompts: Rows, sources: Rows | None, prefix: bool = False) -> Read:
  """Reads the prompts, with `prefix` in both directions; there is room for `slots` more tokens."""
  B, L = prompts.tokens.shape
  segments = lambda of: (jnp.arange(of.tokens.shape[1]) < of.lengths[:, None]).astype(jnp.int32)
  source = None if sources is None else Inputs(sources.tokens, segments=segments(sources), kind="full")
  inputs = Inputs(prompts.tokens, segments=segments(prompts), source=source)
  if prefix:
    inputs = inputs.replace(kind="ordered", order=jnp.zeros((B, L), jnp.int32))
  cache = transformer.empty_cache(model, B, L + slots)
  output = transformer.bind(model)(params, inputs, read={head: prompts.lengths[:, None] - 1}, cache=cache)
  projection: Projection = output.heads[head]
  kernel = projection.kernel.T.astype(projection.hidden.dtype)
  return Read(projection.logits()[:, 0], prompts.lengths, output.cache, kernel, projection.bias)


def advance(model: transformer.Transformer, head: str, params: PyTree, read: Read, tokens: Array, prefix: bool = False) -> Read:
  """Reads one more token of every row, int32 [B]; `prefix`: as the prompts were read."""
  places = read.places[:, None]
  inputs = Inputs(tokens[:, None], positions=places, **(dict(kind="ordered", order=places) if prefix else {}))
  output = transformer.bind(model)(params, inputs, read={head: None}, cache=read.cache)
  hidden = output.heads[head].hidden[:, 0]
  scores = jnp.matmul(hidden, read.kernel, preferred_element_type=read.scores.dtype)
  scores = scores if read.bias is None else scores + read.bias
  return read._replace(scores=scores, places=read.places + 1, cache=output.cache)
