"""What a table of token frequencies would score: the baseline that any model must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
  from research.data.text import Prepared

SAMPLE = 1 << 24  # tokens of each split that are counted, at most


class Unigram(NamedTuple):
  loss: float  # cross-entropy of the validation split under the training split's frequencies (plus one each), nats per token
  accuracy: float  # share of the training split's most frequent token in the validation split
  bits_per_byte: float


def unigram(prepared: Prepared) -> Unigram:
  """Counted over text tokens; reserved ones are never targets of note."""
  plain = prepared.vocab.byte_length > 0
  train, valid = (_counts(prepared, split) * plain for split in ("train", "valid"))
  nats = -np.log((train + 1) / (train + 1)[plain].sum())
  total = max(1, valid.sum())
  size = max(1, (valid * prepared.vocab.byte_length).sum())
  return Unigram(float((valid * nats).sum() / total), float(valid[np.argmax(train)] / total), float((valid * nats).sum() / np.log(2) / size))


def _counts(prepared: Prepared, split: str) -> np.ndarray:
  """How often each id occurs, int64 [V]."""
  total = np.zeros(prepared.vocab.size, np.int64)
  for splits in prepared.splits.values():
    tokens = splits[split].read(0, min(splits[split].tokens, SAMPLE))
    total += np.bincount(tokens, minlength=prepared.vocab.size)
  return total
