"""Rows of a split: each token is predicted once, documents stay apart, little is left empty."""

import numpy as np
import pytest

from research.data.packing import Chunks, Packed, pieces, plan, whole_chunks

PAD = 0


class Memory:
  """Documents in memory, read as a TokenSplit is; every token has its own id, from 1 on."""

  def __init__(self, lengths):
    self.tokens = int(np.sum(lengths))
    self.document_ends = np.cumsum(lengths).astype(np.int64)
    self._all = np.arange(1, self.tokens + 1, dtype=np.int32)

  def read(self, start, stop):
    assert 0 <= start <= stop <= self.tokens
    return self._all[start:stop]

  def document_of(self, tokens):
    return np.searchsorted(self.document_ends, tokens - 1, side="right")


def lengths_of(n, seed=0, longest=60):
  return np.random.default_rng(seed).integers(1, longest, n)


def check(row, width):
  assert row["tokens"].shape == row["segments"].shape == (width,)
  assert row["tokens"].dtype == row["segments"].dtype == np.int32
  np.testing.assert_array_equal(row["tokens"] == PAD, row["segments"] == 0)
  real = int((row["segments"] > 0).sum())
  assert (row["segments"][:real] > 0).all(), "padding is at the end"


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 10, 16, 17, 18, 63, 64, 65, 66, 200])
@pytest.mark.parametrize("overlap", [0, 1])
def test_chunks_cover_each_token_once(tokens, overlap):
  length = 8
  rows = Chunks(Memory([tokens]), length + overlap, length, PAD, isolate=False)
  assert len(rows) == max(1, -(-(tokens - overlap) // length)), "no row without a target, but for the only one"
  targets = []
  for i in range(len(rows)):
    row = rows[i]
    check(row, length + overlap)
    targets += row["tokens"][overlap:][row["segments"][overlap:] > 0].tolist()
  assert targets == list(range(1 + overlap, tokens + 1))


def test_shifted_chunks_are_full():
  for tokens in (33, 40, 41, 47, 48, 49, 100):
    count = whole_chunks(Memory([tokens]), 9, 8)
    for shift in range(8 if tokens >= 9 + 7 else 1):
      rows = Chunks(Memory([tokens]), 9, 8, PAD, False, shift, count)
      found = np.concatenate([rows[i]["tokens"][1:] for i in range(len(rows))])
      assert len(rows) == count and found.tolist() == list(range(shift + 2, shift + 2 + 8 * count))


@pytest.mark.parametrize("isolate", [False, True])
def test_segments_of_chunks(isolate):
  split = Memory(lengths_of(200, longest=9))
  rows = Chunks(split, 33, 32, PAD, isolate)
  for i in range(len(rows)):
    row = rows[i]
    check(row, 33)
    real = row["segments"] > 0
    documents = split.document_of(row["tokens"][real])
    expected = documents - documents[0] + 1 if isolate else np.ones_like(documents)
    np.testing.assert_array_equal(row["segments"][real], expected)


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("longest", [20, 200])
def test_packed_rows_hold_each_token_once(overlap, longest):
  length, split = 32, Memory(lengths_of(300, longest=longest))
  rows = Packed(split, length + overlap, length, PAD, isolate=True)
  firsts = np.concatenate([[0], split.document_ends[:-1]]) + 1
  targets = []
  for i in range(len(rows)):
    row = rows[i]
    check(row, length + overlap)
    for segment in range(1, row["segments"].max() + 1):
      tokens = row["tokens"][row["segments"] == segment]
      assert len(set(split.document_of(tokens))) == 1, "a segment holds one document"
      np.testing.assert_array_equal(tokens, np.arange(tokens[0], tokens[0] + len(tokens)))
      targets += tokens[overlap:].tolist()
  expected = np.arange(1, split.tokens + 1)
  assert sorted(targets) == (np.setdiff1d(expected, firsts) if overlap else expected).tolist()


def test_packed_without_isolation_has_one_segment():
  rows = Packed(Memory(lengths_of(50)), 64, 64, PAD, isolate=False)
  assert {int(s) for i in range(len(rows)) for s in rows[i]["segments"]} <= {0, 1}


def test_short_documents_are_not_cut():
  starts, lengths = pieces(np.array([0, 9, 10, 10, 35]), np.array([9, 1, 0, 25, 16]), 9, 8)
  assert list(zip(starts.tolist(), lengths.tolist())) == [(0, 9), (9, 1), (10, 9), (18, 9), (26, 9), (35, 9), (43, 8)]


def naive_rows(lengths, width):
  """Best-fit decreasing, one piece at a time: how full the rows are (which of two equally full rows a piece goes to is open)."""
  rows = []
  for length in sorted(lengths, reverse=True):
    fitting = [row for row in rows if sum(row) + length <= width]
    if fitting:
      max(fitting, key=sum).append(length)
    else:
      rows.append([length])
  return sorted(sum(row) for row in rows)


def test_plan_is_best_fit_decreasing():
  for seed in range(20):
    rng = np.random.default_rng(seed)
    width = int(rng.integers(5, 40))
    lengths = rng.integers(1, width + 1, int(rng.integers(1, 120)))
    order, ends = plan(lengths, width)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    found = sorted(int(lengths[row].sum()) for row in np.split(order, ends[:-1]))
    assert found[-1] <= width and found == naive_rows(lengths.tolist(), width)


def test_fill():
  lengths = np.clip(np.random.default_rng(0).lognormal(5, 1, 5000).astype(int), 1, None)
  assert Packed(Memory(lengths), 1025, 1024, PAD, True).fill > 0.99


def test_nothing_to_pack():
  assert len(Packed(Memory(np.zeros(0, int)), 9, 8, PAD, True)) == 0
