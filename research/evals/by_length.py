"""Texts of unlike lengths through a compiled function: each in a row of the next power of two, so that few shapes are compiled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from research.core.types import Array

SHORTEST = 16  # places of the shortest rows

Compute = Callable[[Array, Array], Array]  # (tokens, segments), int32 [B, W] each -> [B, …]


def each(rows: Sequence[np.ndarray], compute: Callable[[int], tuple[Compute, int]], batch_size: int, length: int, pad: int) -> list[np.ndarray]:
  """What a function gives for each row of ids, float64. The size of a row does not depend on its neighbours, nor does its value.

  Args:
    rows: int32 ids of each text.
    compute: (size) -> the function for rows of this many places, and the width W of the arrays that it takes.
    batch_size: rows at a time.
    length: places of the longest rows.
  """
  found: list[np.ndarray | None] = [None] * len(rows)
  sizes = [min(length, max(SHORTEST, 1 << math.ceil(math.log2(max(1, len(row)))))) for row in rows]
  for size in sorted(set(sizes)):
    function, width = compute(size)
    members = [i for i, other in enumerate(sizes) if other == size]
    for start in range(0, len(members), batch_size):
      batch = members[start : start + batch_size]
      tokens, segments = np.full((batch_size, width), pad, np.int32), np.zeros((batch_size, width), np.int32)
      for place, i in enumerate(batch):
        tokens[place, : len(rows[i])], segments[place, : len(rows[i])] = rows[i], 1
      for i, value in zip(batch, np.asarray(jax.device_get(function(tokens, segments)), np.float64)):
        found[i] = value
  return found
