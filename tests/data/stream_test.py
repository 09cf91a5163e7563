"""The stream is a function of (seed, index): of nothing that came before, and of no batch size or process count."""

import numpy as np
import pytest

from research.data import stream
from research.data.stream import Joined, Mixed, Permutation, Shuffled, batch, prefetch


class Numbers:
  """Finite rows that hold their own number."""

  def __init__(self, n, first=0):
    self._n, self._first = n, first

  def __len__(self):
    return self._n

  def __getitem__(self, index):
    assert 0 <= index < self._n
    value = np.int32(self._first + index)
    return {"tokens": np.full(3, value, np.int32), "segments": np.ones(3, np.int32)}


def shuffled(n, seed=0, first=0):
  return Shuffled(lambda epoch: Numbers(n, first), n, seed)


def number(row):
  return int(row["tokens"][0])


def test_permutations():
  for n in [*range(1, 40), 64, 65, 1000, 4097]:
    order = Permutation(n, (3, n))
    assert sorted(order[i] for i in range(n)) == list(range(n))


def test_permutations_look_random():
  order = np.array([Permutation(4000, (0, 0))[i] for i in range(4000)])
  assert abs(np.corrcoef(order, np.arange(4000))[0, 1]) < 0.06
  assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.06
  where = np.array([[Permutation(50, (s, e))[7] for e in range(40)] for s in range(40)]).ravel()
  assert np.bincount(where, minlength=50).min() > 8, "every place is reached by some epoch (32 expected)"


def test_each_epoch_is_its_own_permutation():
  rows, n = shuffled(97), 97
  epochs = [[number(rows[e * n + i]) for i in range(n)] for e in range(4)]
  assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 4
  assert epochs[0] != [number(shuffled(97, seed=1)[i]) for i in range(n)]


def test_rows_do_not_depend_on_what_was_read_before():
  rng = np.random.default_rng(0)
  mixed = lambda: Mixed([shuffled(13, 1), shuffled(29, 2, first=100)], [2, 1])
  for make in (lambda: shuffled(23), mixed):
    forward, rows = make(), make()
    expected = [number(forward[i]) for i in range(300)]
    for i in rng.permutation(300):
      assert number(rows[int(i)]) == expected[i]


@pytest.mark.parametrize("size, processes", [(4, 1), (6, 2), (12, 4), (12, 12)])
def test_batches_do_not_depend_on_their_size_or_the_processes(size, processes):
  parts = [batch(shuffled(31), k, size, own) for k in range(60 // size) for own in np.split(np.arange(size), processes)]
  found = np.concatenate([part.rows["tokens"][:, 0] for part in parts])
  assert found.tolist() == [number(shuffled(31)[i]) for i in range(60 // size * size)]
  index = np.concatenate([part.index for part in parts])
  assert index.dtype == np.uint32 and index[:, 0].max() == 0 and index[:, 1].tolist() == list(range(len(found)))
  assert all(part.valid.all() for part in parts)


def test_index_has_a_high_word():
  part = batch(shuffled(31), (1 << 31) + 5, 4)
  start = ((1 << 31) + 5) * 4
  assert part.index.tolist() == [[(start + i) >> 32, (start + i) & 0xFFFFFFFF] for i in range(4)]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_last_batch_is_filled_up(processes):
  parts = [batch(Numbers(10, first=5), 1, 8, own) for own in np.split(np.arange(8), processes)]
  assert np.concatenate([part.valid for part in parts]).tolist() == [True] * 2 + [False] * 6
  assert np.concatenate([part.rows["tokens"][:, 0] for part in parts]).tolist() == [13, 14] + [0] * 6
  assert np.concatenate([part.rows["segments"][:, 0] for part in parts]).tolist() == [1, 1] + [0] * 6


def test_the_rows_of_a_process_need_not_be_neighbours():
  whole, part = batch(Numbers(12), 1, 8), batch(Numbers(12), 1, 8, np.array([1, 5]))
  for name in ("tokens", "segments"):
    np.testing.assert_array_equal(part.rows[name], whole.rows[name][[1, 5]])
  np.testing.assert_array_equal(part.index, whole.index[[1, 5]])
  assert part.valid.tolist() == [True, False]


@pytest.mark.parametrize("seed", range(6))
def test_mixtures_keep_their_proportions_at_every_row(seed):
  rng = np.random.default_rng(seed)
  weights = 10.0 ** rng.uniform(-1.5, 1.5, int(rng.integers(1, 10)))
  mixed = Mixed([None] * len(weights), weights)
  rows = np.arange(1, 3 * Mixed.PERIOD + 1)
  which = np.tile(mixed._which, 3)
  share = weights / weights.sum()
  for part in range(len(weights)):
    counts = np.cumsum(which == part)
    assert np.abs(counts - rows * mixed._counts[part] / Mixed.PERIOD).max() < 1
    assert abs(mixed._counts[part] / Mixed.PERIOD - share[part]) <= 1 / Mixed.PERIOD


def test_each_part_of_a_mixture_is_read_in_its_own_order():
  parts = [shuffled(7, 1), shuffled(11, 2, first=100)]
  mixed, n = Mixed(parts, [3, 1]), Mixed.PERIOD + 100
  found = [number(mixed[i]) for i in range(n)]
  first, second = [v for v in found if v < 100], [v for v in found if v >= 100]
  assert first == [number(shuffled(7, 1)[i]) for i in range(len(first))]
  assert second == [number(shuffled(11, 2, first=100)[i]) for i in range(len(second))]


def test_apportioned():
  assert stream.apportioned([1, 1, 1], 10).tolist() == [4, 3, 3]
  assert stream.apportioned([0.7, 0.2, 0.1], 10).tolist() == [7, 2, 1]
  with pytest.raises(ValueError, match="may get no row"):
    Mixed([None, None], [1, 1e-6])


def test_joined():
  rows = Joined([Numbers(3), Numbers(0), Numbers(2, first=50)])
  assert [number(rows[i]) for i in range(len(rows))] == [0, 1, 2, 50, 51]


def test_prefetch_gives_values_in_order():
  with prefetch(lambda k: k * k, 3, 9) as values:
    assert list(values) == [k * k for k in range(3, 9)]
  with prefetch(lambda k: k, 4, 4) as values:
    assert list(values) == []


def test_prefetch_raises_where_the_value_would_have_been():
  def function(k):
    if k == 2:
      raise RuntimeError("row 2 is broken")
    return k

  found = []
  with pytest.raises(RuntimeError, match="row 2 is broken"), prefetch(function, 0, 10) as values:
    found += (value for value in values)


def test_prefetch_can_be_left_early():
  asked = []
  with prefetch(lambda k: asked.append(k), 0, 1000, depth=2) as values:
    next(iter(values))
    thread = values._thread
  assert not thread.is_alive()
  assert len(asked) <= 5, "no more than depth ahead of the reader"
