"""The vector of each of many texts, one Transformer's own or the mean of its last hidden states: what similarity and probing start from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.core import FrozenDict

from research.core.errors import UserError
from research.core.types import Array, PyTree
from research.data import groups
from research.data.tokenizer import Tokenizer
from research.evals import by_length
from research.model import transformer
from research.model.inputs import EMBEDDING, HeadConfig, Inputs, positions_within

MEAN = HeadConfig(kind="vector", pool="mean", normalize=True)  # for a model that was not trained for one; it has no parameters

Vectors = Callable[[PyTree, Sequence[str]], tuple[dict[str, np.ndarray], int]]
Around = tuple[list[int], list[int]]  # ids before and after a text


def make(what: str, model: nn.Module, causal: bool, tokenizer: Tokenizer, around: Around, length: int, batch_size: int, own: bool) -> Vectors:
  """(params, texts) -> (text -> its vector, float64 [D]; how many texts had to be cut).

  Args:
    what: the evaluation that asks, for its refusals.
    causal: the model was trained to see the past only.
    around: ids before and after each text (`surroundings`).
    length: tokens that the model can read; longer texts lose their end.
    own: take the model's head 'embedding'; else the mean of the last hidden states over all tokens, those around the text included, of length 1.

  Raises:
    UserError: a model of several towers or of images, an encoder–decoder; a text without tokens.
  """
  if getattr(model, "towers", ()) or model.cfg.patches is not None or model.cfg.encoder_layers:
    raise UserError(f"{what} embeds texts with a single Transformer, not with an encoder–decoder, towers or a model of images: leave out --evals={what}.")
  reader = model if own else model.clone(heads=FrozenDict({**model.heads, EMBEDDING: MEAN}))
  embed = jax.jit(functools.partial(_embed, transformer.bind(reader), "causal" if causal else "full"))

  def vectors(params: PyTree, texts: Sequence[str]) -> tuple[dict[str, np.ndarray], int]:
    texts = sorted(set(texts))
    rows, cut = encode(tokenizer, around, texts, length)
    compute = lambda size: (functools.partial(embed, params), size)
    return dict(zip(texts, by_length.each(rows, compute, batch_size, length, tokenizer.pad))), cut

  return vectors


def surroundings(tokenizer: Tokenizer, data: Any) -> Around:
  """Ids before and after a text as data of this component's Config have them: what the vocabulary's model expects there, or what groups of texts end with."""
  return groups.around(tokenizer) if isinstance(data, groups.Config) else tokenizer.around()


def _embed(apply, kind: str, params: PyTree, tokens: Array, segments: Array) -> Array:
  """int32 [B, L] each -> [B, D]."""
  inputs = Inputs(tokens, positions=positions_within(segments), segments=segments, kind=kind)
  return apply(params, inputs, read={EMBEDDING: None}).heads[EMBEDDING][:, 0]


def encode(tokenizer: Tokenizer, around: Around, texts: Sequence[str], length: int) -> tuple[list[np.ndarray], int]:
  """int32 ids of each text with those around it, at most `length`, and how many texts had to be cut; what is cut is the text's end.

  Raises:
    UserError: a text has no tokens at all.
  """
  before, after = around
  room = max(0, length - len(before) - len(after))
  ids = tokenizer.encode_batch(texts)
  rows = [np.array([*before, *text[:room], *after], np.int32) for text in ids]
  for text, row in zip(texts, rows):
    if not len(row):
      raise UserError(f"the text {text[:60]!r} has no token in this vocabulary: leave it out.")
  return rows, sum(len(text) > room for text in ids)
