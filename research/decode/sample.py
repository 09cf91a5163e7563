"""Generating text left to right: greedy or sampled, with a KV cache, in one compiled loop. With an encoder, from its sources.

The n-th token of row i is drawn with a key made of i and n, so a row does not depend on the prompts beside it (up to the rounding of
batched matmuls), nor on how often one looks.
The loop can be left and entered again after any number of tokens, which is how text is streamed: the host decides when to look.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.core.types import Array, PyTree
from research.decode import reader
from research.decode.reader import Read, Rows
from research.decode.rules import Rules, Written, ruled
from research.model import transformer


@dataclasses.dataclass(frozen=True)
class Config:
  temperature: float = 1.0  # 0: greedy
  top_k: int | None = None  # draw from the k likeliest tokens only (Fan et al. 2018)
  top_p: float = 1.0  # draw from the likeliest tokens that together hold this probability (Holtzman et al. 2020)
  min_p: float = 0.0  # draw from tokens at least this likely relative to the likeliest (Nguyen et al. 2024)

  def __post_init__(self):
    if self.temperature < 0:
      raise ValueError(f"temperature must be at least 0; got {self.temperature}")
    if self.top_k is not None and self.top_k < 1:
      raise ValueError(f"top_k must be at least 1; got {self.top_k}")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p must lie in (0, 1]; got {self.top_p}")
    if not 0 <= self.min_p <= 1:
      raise ValueError(f"min_p must lie in [0, 1]; got {self.min_p}")


class State(NamedTuple):
  """The loop's state: `count` tokens have been drawn into `tokens`."""

  tokens: Array  # int32 [B, N]; the first stop token from a stop token on
  count: Array  # int32 []
  before: Array  # int32 []: tokens drawn before these, where the text was read anew
  limit: Array  # int32 []: tokens drawn at most, those before included
  done: Array  # bool [B]: a stop token was drawn
  prompt: Array  # int32 [B, P]: see rules.Written
  read: Read
  keys: Array  # [B]


def pick(cfg: Config, scores: Array, keys: Array) -> Array:
  """One token for each row: float32 scores [B, V], keys [B] -> int32 [B]."""
  if cfg.temperature == 0:
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)
  return jax.vmap(jax.random.categorical)(keys, filtered(cfg, scores)).astype(jnp.int32)


def filtered(cfg: Config, scores: Array) -> Array:
  """Scores [B, V] over the temperature, −∞ for the tokens that top-k, top-p and min-p, in this order, leave out."""
  scores = scores / cfg.temperature
  if cfg.top_k is not None and cfg.top_k < scores.shape[-1]:
    least = jax.lax.top_k(scores, cfg.top_k)[0][:, -1:]
    scores = jnp.where(scores < least, -jnp.inf, scores)
  if cfg.top_p < 1:
    ranked = jnp.sort(scores, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities  # a token stays if those before it hold less than top_p
    kept = jnp.sum(before < cfg.top_p, axis=-1, keepdims=True)
    least = jnp.take_along_axis(ranked, kept - 1, axis=-1)
    scores = jnp.where(scores < least, -jnp.inf, scores)
  if cfg.min_p > 0:
    scores = jnp.where(scores < jnp.max(scores, axis=-1, keepdims=True) + jnp.log(cfg.min_p), -jnp.inf, scores)
  return scores


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _prefill(model, head: str, slots: int, prefix: bool, params: PyTree, prompts: Rows, sources: Rows | None, before: Array, limit: Array, key: Array) -> State:
  B = prompts.tokens.shape[0]
  return State(
      tokens=jnp.zeros((B, slots), jnp.int32), count=jnp.zeros((), jnp.int32), before=before, limit=limit, done=jnp.zeros((B,), bool),
      prompt=reader.history(prompts), read=reader.prefill(model, head, slots, params, prompts, sources, prefix),
      keys=jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(B)),
  )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=(5,))
def _continue(model, head: str, cfg: Config, rules: Rules, params: PyTree, state: State, until: Array) -> State:
  def more(state: State) -> Array:
    return (state.count < until) & ~jnp.all(state.done)

  def step(state: State) -> State:
    drawn = state.before + state.count
    scores = ruled(rules, state.read.scores, Written(state.prompt, state.tokens, state.count, state.before), state.limit)
    token = pick(cfg, scores, jax.vmap(jax.random.fold_in, in_axes=(0, None))(state.keys, drawn))
    done = state.done
    if rules.stop:
      token = jnp.where(done, rules.fill, token)
      done = done | jnp.isin(token, np.array(rules.stop))
    tokens = jax.lax.dynamic_update_slice(state.tokens, token[:, None], (0, state.count))
    return state._replace(tokens=tokens, count=state.count + 1, done=done, read=reader.advance(model, head, params, state.read, token, rules.prefix))

  return jax.lax.while_loop(more, step, state)


class Generator:
  """Generates from one model.

  With `context`, a text that has grown to that many tokens goes on from the last half of them, read anew: what a model trained on rows of
  that length can use. The decoder of a model with an encoder has no such second reading: its texts must fit the context.

  >>> generator = Generator(model, params, Rules(stop=(vocab.special["eos"],)), context=cfg.data.length)
  >>> for tokens in generator.stream([prompt], Config(top_p=0.9), limit=256, key=jax.random.key(0)): ...
  """

  def __init__(
    self, model: transformer.Transformer, params: PyTree, rules: Rules = Rules(), head: str = "lm", context: int | None = None
  ):
    rules.check(model.vocab_size)
    self._model, self._params = transformer.unrolled(model, params)
    self._rules, self._head, self._context = rules, head, context

  def stream(self, prompts: list[np.ndarray] | None, cfg: Config, limit: int, key: Array, every: int = 16,
             sources: list[np.ndarray] | None = None) -> Iterator[np.ndarray]:  # fmt: skip
    """Yields int32 [B, n], the tokens so far, after each `every` more of them, until `limit` or until every row has stopped.

    A row that has drawn a stop token is filled with the first of them. A model with an encoder reads a source for each row; its prompts
    are `Rules.start` where they are None.
    """
    texts, sources = reader.checked(self._model, self._rules, prompts, sources)
    if sources is not None and self._context is not None and max(map(len, texts)) + limit > self._context:
      raise ValueError(f"a prompt of {max(map(len, texts))} tokens and {limit} more do not fit the decoder's context of {self._context}")
    drawn = np.zeros((len(texts), 0), np.int32)
    while drawn.shape[1] < limit:
      texts = [self._window(text) for text in texts]
      state, room = self._read(texts, sources, limit, drawn, key)
      count = 0
      while count < room:
        until = min(count + every, room)
        state = _continue(self._model, self._head, cfg, self._rules, self._params, state, np.int32(until))
        new, count = np.asarray(state.tokens), int(state.count)
        yield np.concatenate([drawn, new[:, :count]], axis=1)
        if count < until or bool(jnp.all(state.done)):
          return
      drawn = np.concatenate([drawn, new[:, :count]], axis=1)
      texts = [np.concatenate([text, row[:count]]) for text, row in zip(texts, new)]

  def _window(self, text: np.ndarray) -> np.ndarray:
    """What is read of a text: all of it, or its last half where it fills the context."""
    if self._context is None or len(text) < self._context:
      return text
    return text[-max(1, self._context // 2) :]

  def _read(self, texts: list[np.ndarray], sources: list[np.ndarray] | None, limit: int, drawn: np.ndarray, key: Array) -> tuple[State, int]:
    """Reads the texts; returns the state and how many tokens there is room for."""
    before = drawn.shape[1]
    slots = limit - before if self._context is None else self._context - max(map(len, texts))
    prompts, sources = reader.rows(texts), None if sources is None else reader.rows(sources)
    state = _prefill(self._model, self._head, slots, self._rules.prefix, self._params, prompts, sources, np.int32(before), np.int32(limit), key)
    if self._rules.stop:
      state = state._replace(done=jnp.asarray(np.isin(drawn, self._rules.stop).any(axis=1)))
    return state, min(limit - before, slots)

  def __call__(self, prompts: list[np.ndarray] | None, cfg: Config, limit: int, key: Array,
               sources: list[np.ndarray] | None = None) -> np.ndarray:  # fmt: skip
    """int32 [B, n ≤ limit]: what `stream` yields last."""
    *_, tokens = self.stream(prompts, cfg, limit, key, every=limit, sources=sources)
    return tokens
