"""Seeded random text with something to learn: words of a small lexicon that follow one another by a sparse random table."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class Config:
  documents: int = 200  # of the training split; the validation split has a tenth as many
  words: tuple[int, int] = (20, 200)  # shortest and longest document
  lexicon: int = 100  # distinct words
  followers: int = 4  # words that may follow a word: the text's entropy is at most ln(followers) nats a word
  seed: int = 0

  def __post_init__(self):
    if len(self.words) != 2 or not 0 < self.words[0] <= self.words[1]:
      raise ValueError(f"words must be (shortest, longest); got {self.words}")


class Synthetic:
  def __init__(self, cfg: Config):
    self._cfg = cfg
    rng = np.random.default_rng(cfg.seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    self._words = ["".join(rng.choice(letters, rng.integers(2, 8))) for _ in range(cfg.lexicon)]
    self._next = rng.integers(0, cfg.lexicon, (cfg.lexicon, cfg.followers))

  def documents(self, split: str) -> Iterator[str]:
    cfg = self._cfg
    rng = np.random.default_rng([cfg.seed, split == "train"])
    for _ in range(cfg.documents if split == "train" else max(1, cfg.documents // 10)):
      word, words = int(rng.integers(cfg.lexicon)), []
      for _ in range(int(rng.integers(cfg.words[0], cfg.words[1] + 1))):
        words.append(self._words[word])
        word = int(rng.choice(self._next[word]))
      yield " ".join(words) + ".\n"

  def fingerprint(self) -> str:
    return hashlib.sha256(repr(self._cfg).encode()).hexdigest()[:16]


def make(cfg: Config) -> Synthetic:
  return Synthetic(cfg)
