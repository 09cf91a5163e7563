"""Which places of a row are text, which of them make a word, and how words and spans of words are chosen to be predicted.

All of it is for ONE row, with static shapes: a loop runs until the number of places asked for is reached, whatever the words' lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.core.types import Array, Vocab


class Text(NamedTuple):
  """Arrays [L] of a row; all but `text` mean something only where it is True."""

  text: Array  # bool: neither padding nor a special token
  run: Array  # int32: number of the stretch of text, which ends at a special token, at padding and with its document
  word: Array  # int32: number of the word, ascending along the row
  first: Array  # int32: first place of the word
  last: Array  # int32: last place of the word


class Reader:
  """Finds the text and the words of rows over a vocabulary; without `word_start` at a run's beginning a word begins there all the same."""

  def __init__(self, vocab: Vocab):
    special = np.zeros(vocab.size, bool)
    special[sorted(vocab.special.values())] = True
    self._special, self._word_start = jnp.asarray(special), jnp.asarray(vocab.word_start)

  def __call__(self, tokens: Array, segments: Array) -> Text:
    """int32 [L] each."""
    place = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    text = (segments > 0) & ~self._special[tokens]
    goes_on = text & jnp.roll(text, 1) & (segments == jnp.roll(segments, 1)) & (place > 0)
    run_starts = text & ~goes_on
    starts = run_starts | text & self._word_start[tokens]
    ends = text & jnp.where(place == place.size - 1, True, jnp.roll(starts | ~text, -1))
    return Text(
        text=text,
        run=jnp.cumsum(run_starts, dtype=jnp.int32),
        word=jnp.cumsum(starts, dtype=jnp.int32),
        first=jax.lax.cummax(jnp.where(starts, place, 0)),
        last=jax.lax.cummin(jnp.where(ends, place, place.size - 1), reverse=True),
    )


def geometric(p: float, longest: int) -> np.ndarray:
  """Probabilities of the lengths 1 … longest, ∝ p (1 − p)^(n − 1)."""
  weights = p * (1 - p) ** np.arange(longest)
  return weights / weights.sum()


def harmonic(longest: int) -> np.ndarray:
  """Probabilities of the lengths 1 … longest, ∝ 1/n."""
  weights = 1 / np.arange(1, longest + 1)
  return weights / weights.sum()


def lengths(key: Array, probabilities: Sequence[float], shape: tuple[int, ...]) -> Array:
  """int32 numbers 1, 2, … of these probabilities."""
  return 1 + jax.random.categorical(key, jnp.log(jnp.asarray(probabilities, jnp.float32)), shape=shape).astype(jnp.int32)


def spans(key: Array, words: Text, count: Array, probabilities: Sequence[float], cut: bool) -> Array:
  """Spans of whole words, one after the other in random order, until `count` places are chosen.

  Args:
    count: int []: places, at most.
    probabilities: of a span of 1, 2, … words.
    cut: True, as SpanBERT does it (Joshi et al. 2020, section 3.1): a span begins with the word of a place drawn uniformly, may run into
      chosen places, which then do not count again, and the last span is cut where `count` is reached. False, as ALBERT does it (Lan et al.
      2020, section 3.1), and BERT for whole words: a span begins at a word drawn uniformly, is left out if a place of it is chosen
      already, and is shortened by whole words to what still fits; if no word fits, fewer than `count` places are chosen.

  Returns:
    int32 [L]: the first place of the span to which a chosen place belongs, −1 for the others.
  """
  key_order, key_length = jax.random.split(key)
  place = jnp.arange(words.text.shape[0], dtype=jnp.int32)
  score = jax.random.uniform(key_order, place.shape)
  length = lengths(key_length, probabilities, place.shape)

  def fits(free: Array, left: Array) -> Array:
    return free if cut else free & (words.last - words.first < left)

  def more(state) -> Array:
    _, free, left = state
    return (left > 0) & jnp.any(free)

  def add(state):
    owner, free, left = state
    begin = words.first[jnp.argmax(jnp.where(free, score, -1.0))]
    reach = words.text & (words.run == words.run[begin]) & (words.word >= words.word[begin]) & (words.word < words.word[begin] + length[begin])
    if cut:
      new = reach & (owner < 0)
      new = new & (jnp.cumsum(new) <= left)
    else:
      new = reach & ~jnp.any(reach & (owner >= 0)) & (words.last - begin < left)
    owner, left = jnp.where(new, begin, owner), left - jnp.sum(new, dtype=jnp.int32)
    return owner, fits(free & (owner < 0) & (place != begin), left), left

  count = count.astype(jnp.int32)
  free = words.text & (jnp.ones_like(words.text) if cut else place == words.first)
  owner, _, _ = jax.lax.while_loop(more, add, (jnp.full_like(place, -1), fits(free, count), count))
  return owner


def spaced(key: Array, words: Text, count: Array, longest: int, spacing: int) -> Array:
  """XLNet's spans (the data code of Yang et al. 2019), left to right: n tokens from the start of a word, amid n · spacing tokens of context.

  n is 1 … longest with probability ∝ 1/n; the share of the context that comes first is drawn uniformly. A span ends with its run at the
  latest, where XLNet would leave it out.

  Returns:
    bool [L]: at most `count` places, fewer where the row ends before.
  """
  key_length, key_before = jax.random.split(key)
  place = jnp.arange(words.text.shape[0], dtype=jnp.int32)
  length = lengths(key_length, harmonic(longest), place.shape)
  before = jax.random.uniform(key_before, place.shape)
  starts = words.text & (place == words.first)

  def more(state) -> Array:
    _, _, at, left = state
    return (left > 0) & (at < place.size)

  def add(state):
    number, found, at, left = state
    n = jnp.minimum(length[number], left)
    ahead = jnp.floor(before[number] * (n * spacing)).astype(jnp.int32)
    later = starts & (place >= at + ahead)
    begin = jnp.argmax(later).astype(jnp.int32)
    new = jnp.any(later) & words.text & (words.run == words.run[begin]) & (place >= begin) & (place < begin + n)
    size = jnp.sum(new, dtype=jnp.int32)
    at = jnp.where(size > 0, begin + size + n * spacing - ahead, place.size)
    return number + 1, found | new, at, left - size

  zero = jnp.zeros((), jnp.int32)
  _, found, _, _ = jax.lax.while_loop(more, add, (zero, jnp.zeros_like(words.text), zero, count.astype(jnp.int32)))
  return found


def listed(chosen: Array, slots: int) -> tuple[Array, Array]:
  """bool [L] -> the first `slots` places where it is True, int32 [slots] ascending, and bool [slots], False for slots that hold none."""
  length = chosen.shape[0]
  places = jnp.sort(jnp.where(chosen, jnp.arange(length, dtype=jnp.int32), length))[:slots]
  return jnp.where(places < length, places, 0), places < length
