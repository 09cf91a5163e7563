"""Beam search: the likeliest texts, their log-probability over a power of their length, as transformers' generate defines it.

Of every row the W likeliest unfinished texts are held. Each step looks at their likeliest continuations, more than W of them so that W go
on whatever ends. A text that ends among the first W enters the row's W best ended ones by

  score = Σ log p(token) / n^length_penalty,    n = tokens drawn, the stop token included

and a row is done when its unfinished texts cannot win any more (Config.early). The scores of Wu et al. 2016, section 7, differ: their length
is ((5 + n)/6)^α, and they add a coverage penalty. What decides ties is open there as here.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.core.types import Array, PyTree
from research.decode import reader
from research.decode.reader import Read, Rows
from research.decode.rules import Rules, Written, ruled
from research.model import transformer

NEVER = -1e9  # the score of a text that is not there; finite, so that forbidden tokens (−∞) stand behind it


@dataclasses.dataclass(frozen=True)
class Config:
  beams: int = 4  # W: unfinished texts that are followed
  length_penalty: float = 1.0  # 0: the sum of log-probabilities, which favours short texts; the larger, the longer
  early: Literal["full", "likely", "never"] = "likely"  # a row is done once W texts have ended; once the likeliest unfinished one would not enter
  #   them if it ended now; once it could not with any length (early_stopping True, False and "never" of transformers)
  returned: int = 1  # texts of each row, best first

  def __post_init__(self):
    if self.beams < 1:
      raise ValueError(f"beams must be at least 1; got {self.beams}")
    if not 1 <= self.returned <= self.beams:
      raise ValueError(f"returned must lie between 1 and beams, {self.beams}; got {self.returned}")
    if self.early not in ("full", "likely", "never"):
      raise ValueError(f"early must be 'full', 'likely' or 'never'; got {self.early!r}")


class Found(NamedTuple):
  """The best texts of every row, best first."""

  tokens: np.ndarray  # int32 [B, R, n]; filled with the first stop token after a text's end
  lengths: np.ndarray  # int32 [B, R]: tokens drawn, the stop token included; 0 where fewer than R texts ended
  scores: np.ndarray  # float32 [B, R]


class State(NamedTuple):
  """The loop's state: texts of `count` tokens, and the best that have ended."""

  count: Array  # int32 []
  tokens: Array  # int32 [B, W, N]
  scores: Array  # float32 [B, W]: Σ log p
  ended_tokens: Array  # int32 [B, W, N]
  ended_scores: Array  # float32 [B, W], best first
  ended_lengths: Array  # int32 [B, W]; 0: none
  open: Array  # bool [B]: the row's unfinished texts may still win
  read: Read  # of B·W rows


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _search(model, head: str, W: int, early: str, rules: Rules, limit: int, params: PyTree, prompts: Rows, sources: Rows | None, power: Array) -> State:
  """The search with W beams; power float32 [limit + 1] holds n^length_penalty."""
  B, V = prompts.tokens.shape[0], model.vocab_size
  kept = min(max(2, 1 + len(rules.stop)) * W, W * V)  # continuations looked at: W of them go on even if the others end
  beamwise = lambda x: x.reshape(B, W, *x.shape[1:])
  prompt = jnp.repeat(reader.history(prompts), W, axis=0)
  zero = jnp.zeros((), jnp.int32)

  def more(state: State) -> Array:
    return (state.count < limit) & jnp.any(state.open)

  def step(state: State) -> State:
    log_p = jax.nn.log_softmax(state.read.scores.astype(jnp.float32))
    log_p = ruled(rules, log_p, Written(prompt, state.tokens.reshape(B * W, limit), state.count, zero), jnp.asarray(limit))
    scores, token, parent = _best(beamwise(log_p) + state.scores[:, :, None], kept)
    tokens = _of(state.tokens, parent)
    tokens = jax.lax.dynamic_update_slice(tokens, token[:, :, None], (0, 0, state.count))
    count = state.count + 1
    ends = jnp.isin(token, np.array(rules.stop, np.int32)) | (count == limit)

    # What ends among the first W may take a place among the ended ones.
    full = jnp.all(state.ended_lengths > 0, axis=1) if early == "full" else jnp.zeros((B,), bool)
    enters = ends & (jnp.arange(kept) < W) & (scores > NEVER / 2)
    barred = jnp.where(enters, 0, NEVER) + jnp.where(full | ~state.open, NEVER, 0)[:, None]
    ended_scores, place = jax.lax.top_k(jnp.concatenate([state.ended_scores, scores / power[count] + barred], axis=1), W)
    ended_tokens = _of(jnp.concatenate([state.ended_tokens, tokens], axis=1), place)
    ended_lengths = _of(jnp.concatenate([state.ended_lengths, jnp.where(enters, count, 0)], axis=1), place)

    # The first W that do not end go on.
    running, place = jax.lax.top_k(scores + jnp.where(ends, NEVER, 0), W)
    token, parent, tokens = _of(token, place), _of(parent, place), _of(tokens, place)

    complete = jnp.all(ended_lengths > 0, axis=1)
    beaten = running[:, 0] / power[limit if early == "never" else count] <= jnp.min(ended_scores, axis=1)
    is_open = state.open & ~(complete & beaten) & ~jnp.all(ends, axis=1)
    if early == "full":
      is_open = is_open & ~complete
    read = _follow(state.read, parent)
    read = reader.advance(model, head, params, read, token.reshape(B * W), rules.prefix)
    return State(count, tokens, running, ended_tokens, ended_scores, ended_lengths, is_open, read)

  read = _spread(reader.prefill(model, head, limit, params, prompts, sources, rules.prefix), W)
  filled = jnp.full((B, W, limit), rules.fill, jnp.int32)
  scores = jnp.full((B, W), NEVER, jnp.float32)
  start = State(
      count=zero, tokens=filled, scores=scores.at[:, 0].set(0), ended_tokens=filled, ended_scores=scores,
      ended_lengths=jnp.zeros((B, W), jnp.int32), open=jnp.ones((B,), bool), read=read,
  )  # fmt: skip
  return jax.lax.while_loop(more, step, start)._replace(read=None)


def _of(x: Array, place: Array) -> Array:
  """Entries `place` int [B, P] of x [B, N, …] -> [B, P, …]."""
  return jnp.take_along_axis(x, place.reshape(*place.shape, *[1] * (x.ndim - 2)), axis=1)


def _best(scores: Array, count: int) -> tuple[Array, Array, Array]:
  """The `count` best of scores [B, W, V], best first: their scores, tokens and beams, each [B, count]."""
  B, W, V = scores.shape
  few = min(count, V)  # of every beam, so that the second choice is among few; XLA has no fast top-k over more than two axes
  each, token = jax.lax.top_k(scores.reshape(B * W, V), few)
  best, place = jax.lax.top_k(each.reshape(B, W * few), count)
  return best, _of(token.reshape(B, W * few), place).astype(jnp.int32), (place // few).astype(jnp.int32)


def _rows_of(read: Read, change) -> Read:
  """`read` with `change` applied to every array that has a row for each text, and to the source's keys none."""
  cache = read.cache
  layers = tuple(layer._replace(keys=change(layer.keys), values=change(layer.values)) for layer in cache.layers)
  cache = cache._replace(layers=layers, positions=change(cache.positions), order=change(cache.order))
  return read._replace(places=change(read.places), cache=cache)


def _follow(read: Read, parent: Array) -> Read:
  """The rows in the order of their beams' parents [B, W]. The source is the same for all beams, so it stays where it is."""
  B, W = parent.shape
  rows = (jnp.arange(B)[:, None] * W + parent).reshape(B * W)
  return _rows_of(read, lambda x: jnp.take(x, rows, axis=0))


def _spread(read: Read, beams: int) -> Read:
  """Every row `beams` times."""
  spread = lambda x: jnp.repeat(x, beams, axis=0)
  read = _rows_of(read, spread)
  layers = tuple(layer._replace(source=jax.tree.map(spread, layer.source)) for layer in read.cache.layers)
  source = None if read.cache.source is None else spread(read.cache.source)
  return read._replace(scores=spread(read.scores), cache=read.cache._replace(layers=layers, source=source))


class BeamSearch:
  """Beam search with one model.

  >>> search = BeamSearch(model, params, Rules(stop=(vocab.special["eos"],)))
  >>> search([prompt], Config(beams=4, length_penalty=0.6), limit=64).tokens[0, 0]
  """

  def __init__(
    self, model: transformer.Transformer, params: PyTree, rules: Rules = Rules(), head: str = "lm", context: int | None = None
  ):
    rules.check(model.vocab_size)
    self._model, self._params = transformer.unrolled(model, params)
    self._rules, self._head, self._context = rules, head, context

  def __call__(self, prompts: list[np.ndarray] | None, cfg: Config, limit: int, sources: list[np.ndarray] | None = None) -> Found:
    """The best texts of at most `limit` tokens after each prompt; a text that reaches the limit has ended.

    A model with an encoder reads a source for each row; its prompts are `Rules.start` where they are None. A row does not depend on the
    rows beside it, up to the rounding of batched matmuls.
    """
    if limit < 1:
      raise ValueError(f"limit must be at least 1; got {limit}")
    prompts, sources = reader.checked(self._model, self._rules, prompts, sources)
    longest = max(map(len, prompts))
    if self._context is not None and longest + limit > self._context:
      raise ValueError(f"a prompt of {longest} tokens and {limit} more do not fit the model's context of {self._context}")
    sources = None if sources is None else reader.rows(sources)
    # What cannot get longer and better is judged at its length, whatever Config.early: a penalty of 0 or less makes longer texts worse.
    early = "likely" if cfg.early == "never" and cfg.length_penalty <= 0 else cfg.early
    power = np.maximum(np.arange(limit + 1.0), 1.0) ** cfg.length_penalty  # the first is never divided by
    state = _search(self._model, self._head, cfg.beams, early, self._rules, limit, self._params, reader.rows(prompts), sources, np.float32(power))
    lengths = np.asarray(state.ended_lengths[:, : cfg.returned])
    tokens = np.asarray(state.ended_tokens[:, : cfg.returned, : max(1, lengths.max())])
    return Found(tokens, lengths, np.asarray(state.ended_scores[:, : cfg.returned]))
