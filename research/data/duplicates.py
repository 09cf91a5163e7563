"""How much of a text repeats itself: the share of its lines that have occurred before (Lee et al. 2022, "Deduplicating training data").

Lines of fewer than WORDS words (names of speakers, headings) do not count: they repeat in the best of texts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator

WORDS = 5
LINES = 2_000_000  # that are looked at, from the front
FILE = "lines.json"  # in the folder of a token dataset
MANY = 0.1  # share above which somebody should know


class Lines:
  """Counts the lines of the documents that pass through `watched`."""

  def __init__(self):
    self.lines, self._seen = 0, set()

  def watched(self, documents: Iterable[str]) -> Iterator[str]:
    for document in documents:
      if self.lines < LINES:
        for line in document.splitlines():
          words = line.split()
          if len(words) >= WORDS:
            self.lines += 1
            self._seen.add(hashlib.blake2b(" ".join(words).encode(errors="replace"), digest_size=8).digest())
      yield document

  @property
  def share(self) -> float:
    """Of the lines, those that occurred before."""
    return 1 - len(self._seen) / self.lines if self.lines else 0.0

  def save(self, folder: str) -> None:
    with open(os.path.join(folder, FILE), "w", encoding="utf-8") as file:
      json.dump({"lines": self.lines, "duplicates": self.share}, file)


def saved(folder: str) -> float | None:
  """The share that `save` wrote; None where it wrote none."""
  try:
    with open(os.path.join(folder, FILE), encoding="utf-8") as file:
      return float(json.load(file)["duplicates"])
  except (OSError, ValueError, KeyError):
    return None
