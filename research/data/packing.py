"""From a split's tokens to rows of W tokens, planned when the data is opened; reading a row is then a slice or a few.

`chunk` cuts the stream of all documents into windows with a stride of L tokens (L = the data's length); `pack` puts whole documents
together. W is L, or L + 1 for objectives that predict the next token: then neighbouring windows share one token, and every token but the
first is a target once. `segments` numbers the documents of a row 1, 2, …; 0 is padding.
"""

from __future__ import annotations

import bisect

import numpy as np

from research.data.dataset import TokenSplit


class Chunks:
  """Windows at shift, shift + L, shift + 2L, …; `count` of them (default: as many as it takes to cover the split, the last one padded)."""

  def __init__(self, split: TokenSplit, width: int, stride: int, pad: int, isolate: bool, shift: int = 0, count: int | None = None):
    self._split, self._width, self._stride, self._pad, self._isolate, self._shift = split, width, stride, pad, isolate, shift
    overlap = width - stride
    self._count = max(1, -(-(split.tokens - shift - overlap) // stride)) if count is None else count

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    start = self._shift + index * self._stride
    found = self._split.read(start, min(start + self._width, self._split.tokens))
    tokens = np.full(self._width, self._pad, np.int32)
    tokens[: len(found)] = found
    segments = np.zeros(self._width, np.int32)
    segments[: len(found)] = 1
    if self._isolate and len(found):
      ends = self._split.document_ends
      first, last = np.searchsorted(ends, [start, start + len(found) - 1], side="right")
      for end in ends[first:last]:
        segments[end - start : len(found)] += 1
    return {"tokens": tokens, "segments": segments}


def whole_chunks(split: TokenSplit, width: int, stride: int) -> int:
  """Windows without padding that fit at any shift below the stride, at least 1."""
  return max(1, (split.tokens - width - stride + 1) // stride + 1)


class Packed:
  """Rows of whole documents, planned by `plan`."""

  def __init__(self, split: TokenSplit, width: int, stride: int, pad: int, isolate: bool):
    ends = split.document_ends
    self._split, self._width, self._pad, self._isolate = split, width, pad, isolate
    self._starts, lengths = pieces(np.concatenate([[0], ends[:-1]]), np.diff(ends, prepend=0), width, stride)
    self._lengths = lengths
    order, self._row_ends = plan(lengths, width)
    self._order = order
    self.fill = float(lengths.sum() / (len(self._row_ends) * width)) if len(self._row_ends) else 0.0

  def __len__(self) -> int:
    return len(self._row_ends)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    tokens, segments = np.full(self._width, self._pad, np.int32), np.zeros(self._width, np.int32)
    at = 0
    first = self._row_ends[index - 1] if index else 0
    for number, piece in enumerate(self._order[first : self._row_ends[index]], start=1):
      start, length = int(self._starts[piece]), int(self._lengths[piece])
      tokens[at : at + length] = self._split.read(start, start + length)
      segments[at : at + length] = number if self._isolate else 1
      at += length
    return {"tokens": tokens, "segments": segments}


def pieces(starts: np.ndarray, lengths: np.ndarray, width: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
  """Documents, those longer than `width` cut into pieces that begin `stride` apart; starts and lengths, int64 each."""
  overlap = width - stride
  counts = np.maximum(1, -(-(lengths - overlap) // stride))
  document = np.repeat(np.arange(len(lengths)), counts)
  nth = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
  offset = nth * stride
  piece = np.minimum(lengths[document] - offset, width)
  kept = piece > 0  # an empty document has no piece
  return (starts[document] + offset)[kept], piece[kept]


def plan(lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Best-fit decreasing: which pieces share a row.

  Each piece, longest first, goes to the open row with the least room that it still fits (Johnson 1974; fills 0.99 of the rows for text).

  Returns:
    order: pieces, row by row; ends: where each row ends in `order`.
  """
  rows: list[list[int]] = []
  rooms: list[int] = []  # distinct amounts of room, ascending
  open_rows: dict[int, list[int]] = {}  # room -> rows that have it
  for piece in np.argsort(-lengths, kind="stable"):
    need = int(lengths[piece])
    at = bisect.bisect_left(rooms, need)
    if at == len(rooms):
      row, room = len(rows), width
      rows.append([])
    else:
      room = rooms[at]
      row = open_rows[room].pop()
      if not open_rows[room]:
        del open_rows[room]
        rooms.pop(at)
    rows[row].append(int(piece))
    left = room - need
    if left:
      if left not in open_rows:
        bisect.insort(rooms, left)
        open_rows[left] = []
      open_rows[left].append(row)
  return np.array([piece for row in rows for piece in row], np.int64), np.cumsum([len(row) for row in rows]).astype(np.int64)
