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
  Pieces of one length are placed together: best fit fills a row with as many of them as go in before it turns to the next row. So the
  loop runs over lengths, at most `width` of them, and not over pieces.

  Returns:
    order: pieces, row by row; ends: where each row ends in `order`.
  """
  longest_first = np.argsort(-lengths, kind="stable")
  sizes, counts = np.unique(lengths, return_counts=True)
  row_of = np.empty(len(lengths), np.int64)  # of the pieces, longest first
  rows = done = 0
  rooms: list[int] = []  # distinct amounts of room, ascending
  open_rows: dict[int, list[np.ndarray]] = {}  # room -> rows that have it

  def leave(room: int, these: np.ndarray) -> None:
    if room and len(these):
      if room not in open_rows:
        bisect.insort(rooms, room)
        open_rows[room] = []
      open_rows[room].append(these)

  for need, count in zip(sizes[::-1].tolist(), counts[::-1].tolist()):
    while count:
      at = bisect.bisect_left(rooms, need)
      if at < len(rooms):
        room = rooms.pop(at)
        found = np.concatenate(open_rows.pop(room))
      else:
        room, found = width, np.arange(rows, rows - (-count // (width // need)))
        rows += len(found)
      each = room // need
      used = min(len(found), -(-count // each))
      placed = min(count, used * each)
      row_of[done : done + placed] = np.repeat(found[:used], each)[:placed]
      last = placed - (used - 1) * each  # pieces in the last row, which may have room for more
      leave(room - each * need, found[: used - 1])
      leave(room - last * need, found[used - 1 : used])
      leave(room, found[used:])
      count, done = count - placed, done + placed
  return longest_first[np.argsort(row_of, kind="stable")], np.cumsum(np.bincount(row_of, minlength=rows)).astype(np.int64)
