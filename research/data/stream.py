"""The stream of rows as a pure function of (data.seed, index).

Row i is found by arithmetic: nothing filters, nothing carries state. Global batch k is rows [k·B, (k+1)·B), of which each process
reads those that its devices hold, so the position of a run is one number, whatever the number of hosts.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from research.core.types import Batch

Row = Mapping[str, np.ndarray]


class Rows(Protocol):
  """Rows by index; training rows go on for ever and have no length."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Row: ...


def batch(rows: Rows, k: int, batch_size: int, own: np.ndarray | None = None) -> Batch:
  """Global batch k, or the part of it at the places `own` (int [b], of this process), as numpy arrays [b, …].

  The last batch of a finite split is filled up with empty rows (all zero) whose `valid` is False.
  """
  index = np.arange(batch_size, dtype=np.uint64) if own is None else own.astype(np.uint64)
  index += np.uint64(k * batch_size)
  valid = index < len(rows) if hasattr(rows, "__len__") else np.ones(len(index), bool)
  found = {i: rows[int(at)] for i, at in enumerate(index) if valid[i]}
  like = next(iter(found.values())) if found else rows[0]
  arrays = {}
  for name, array in like.items():
    arrays[name] = np.zeros((len(index), *array.shape), array.dtype)
    for i, row in found.items():
      arrays[name][i] = row[name]
  words = np.stack([index >> np.uint64(32), index & np.uint64(0xFFFFFFFF)], axis=1).astype(np.uint32)
  return Batch(arrays, words, valid)


class prefetch:  # lower case: used as a function that is also a context manager
  """Computes function(start), function(start + 1), … in one background thread, at most `depth` ahead of the reader.

  An exception of the function is raised where the value would have been. Leaving the `with` block ends the thread.
  """

  def __init__(self, function: Callable[[int], Any], start: int, stop: int, depth: int = 2):
    self._queue: queue.Queue = queue.Queue(depth)
    self._left = threading.Event()
    self._count = max(0, stop - start)
    self._thread = threading.Thread(target=self._work, args=(function, range(start, stop)), daemon=True)

  def _work(self, function: Callable[[int], Any], numbers: range) -> None:
    for k in numbers:
      try:
        item = (function(k), None)
      except BaseException as error:  # handed to the reader, whatever it is
        item = (None, error)
      while not self._left.is_set():
        try:
          self._queue.put(item, timeout=0.1)
          break
        except queue.Full:
          continue
      if self._left.is_set() or item[1] is not None:
        return

  def __enter__(self) -> "prefetch":
    self._thread.start()
    return self

  def __iter__(self) -> Iterator[Any]:
    for _ in range(self._count):
      value, error = self._queue.get()
      if error is not None:
        raise error
      yield value

  def __exit__(self, *_: Any) -> None:
    self._left.set()
    self._thread.join()


# --- order -------------------------------------------------------------------------------------------------------------------


def words_of(*numbers: int) -> np.ndarray:
  """A few integers as seed material of numpy's SeedSequence."""
  return np.array([n & 0xFFFFFFFFFFFFFFFF for n in numbers], np.uint64)


class Permutation:
  """A bijection of [0, n) that is found for one index at a time, in constant memory: a Feistel network with cycle walking.

  Black and Rogaway 2002, "Ciphers with arbitrary finite domains", section 5. Four rounds on halves of ⌈log₂ n / 2⌉ bits; a value that
  lands outside [0, n) is sent through again.
  """

  def __init__(self, n: int, seed: Sequence[int]):
    self._n = n
    self._half = max(1, -(-max(1, (n - 1).bit_length()) // 2))
    self._mask = (1 << self._half) - 1
    self._keys = [int(k) for k in np.random.SeedSequence(words_of(*seed)).generate_state(4, np.uint64)]

  def __len__(self) -> int:
    return self._n

  def __getitem__(self, index: int) -> int:
    value = index
    while True:
      left, right = value >> self._half, value & self._mask
      for key in self._keys:
        left, right = right, left ^ (_mix(right ^ key) & self._mask)
      value = left << self._half | right
      if value < self._n:
        return value


def _mix(x: int) -> int:
  """The finaliser of splitmix64 (Steele et al. 2014): every input bit moves every output bit."""
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
  x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
  return x ^ x >> 31


def hashed(*numbers: int) -> int:
  """64 well-mixed bits of a few integers."""
  x = 0x9E3779B97F4A7C15
  for n in numbers:
    x = _mix((x + (n & 0xFFFFFFFFFFFFFFFF)) & 0xFFFFFFFFFFFFFFFF ^ 0x632BE59BD9B4E019)
  return x


class Shuffled:
  """Endless training rows: each epoch is its own permutation of one part's rows.

  `epoch_rows(epoch)` gives that epoch's rows, of which there are always n.
  """

  def __init__(self, epoch_rows: Callable[[int], Rows], n: int, seed: int):
    self._epoch_rows, self._n, self._seed = epoch_rows, n, seed
    self._kept = (-1, None, None)  # epoch, its rows, their order; replaced whole, so that several threads may read

  def __getitem__(self, index: int) -> Row:
    epoch, place = divmod(index, self._n)
    kept, rows, order = self._kept
    if epoch != kept:  # what is kept is a function of the epoch alone
      rows, order = self._epoch_rows(epoch), Permutation(self._n, (self._seed, epoch))
      self._kept = (epoch, rows, order)
    return rows[order[place]]


class Mixed:
  """Endless rows from several parts in fixed proportions.

  The pattern repeats after PERIOD rows, which is why a row's part and its place within that part are arithmetic; weights are taken to
  the nearest 1/PERIOD. Of the first n rows, each part has its share of n to within one row, for every n. Each part is shuffled and
  repeated before it is mixed, so none runs dry.

  Tijdeman 1980, "The chairman assignment problem": of the parts that may have a row without running ahead, the one that must have it
  soonest.
  """

  PERIOD = 1 << 14

  def __init__(self, parts: Sequence[Any], weights: Sequence[float]):
    self._parts = list(parts)
    self._counts = apportioned(weights, self.PERIOD)
    if not self._counts.all():
      raise ValueError(f"a weight below 1/{self.PERIOD} of the whole may get no row; weights: {list(weights)}")
    slack = 2 * max(1, len(self._parts) - 1)  # in integers: all times PERIOD · slack
    given = np.zeros(len(self._parts), np.int64)
    self._which, self._nth = np.zeros(self.PERIOD, np.int64), np.zeros(self.PERIOD, np.int64)
    for i in range(self.PERIOD):
      may = slack * (self._counts * (i + 1) - given * self.PERIOD) >= self.PERIOD
      soonest = np.where(may, (slack * (given + 1) - 1) / self._counts, np.inf)
      part = int(np.argmin(soonest))
      self._which[i], self._nth[i] = part, given[part]
      given[part] += 1

  def __getitem__(self, index: int) -> Row:
    turn, place = divmod(index, self.PERIOD)
    part = int(self._which[place])
    return self._parts[part][turn * int(self._counts[part]) + int(self._nth[place])]


def apportioned(weights: Sequence[float], total: int) -> np.ndarray:
  """Whole numbers in proportion to the weights that add up to `total`, int64: largest remainders get what rounding down leaves."""
  exact = np.array(weights, np.float64) / np.sum(weights) * total
  counts = np.floor(exact).astype(np.int64)
  counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
  return counts


class Joined:
  """Finite rows, one part after the other."""

  def __init__(self, parts: Sequence[Rows]):
    self._parts = list(parts)
    self._ends = np.cumsum([len(part) for part in self._parts])

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def __getitem__(self, index: int) -> Row:
    part = int(np.searchsorted(self._ends, index, side="right"))
    return self._parts[part][index - (int(self._ends[part - 1]) if part else 0)]
