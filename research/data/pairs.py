"""The data component of next-sentence prediction: pairs of texts, each one or more sentences, joined as BERT joins them.

The text is cut into pairs as BERT's create_pretraining_data.py does it (Devlin et al. 2019, appendix A.2): sentences of a document are taken
until they fill a row; they are parted at a random sentence; and for half of them the second part is exchanged for sentences of another
document, while its own go into the next row. For sentence-order prediction (Lan et al. 2020, ALBERT) the two parts are swapped instead. What is
too long loses tokens at its front or back, by chance, from the longer part.

The whole text is cut `passes` times, each time anew, and the pairs of all passes are shuffled together, so a row is a function of
(data.seed, index). Rows: `tokens`, `segments`, `types` (0 first, 1 second text) and `is_next`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

import numpy as np

from research.core.config import Component
from research.core.errors import UserError
from research.core.types import Field
from research.data import dataset, sentences, stream, text, tokenizer
from research.data.sources import files
from research.data.unigram import unigram

FIELDS = ("tokens", "segments", "types", "is_next")
OTHERS = 10  # draws of another document before the same one is accepted, as in BERT's code


@dataclasses.dataclass(frozen=True)
class Config:
  sources: Mapping[str, Component] = dataclasses.field(default_factory=lambda: {"text": files.Config(documents="paragraph")})
  tokenizer: Component = tokenizer.Config(kind="wordpiece", lowercase=True)
  length: int = 128  # tokens of a row, the three special ones included
  sentences: Literal["rules", "lines"] = "rules"  # found by data.sentences; or each line is one
  negatives: Literal["random", "swapped"] = "random"  # the second text of half of the pairs: from another document; or before the first (ALBERT)
  short: float = 0.1  # share of the documents of a pass whose rows are filled to a random length only, so that short texts are seen
  passes: int = 10  # times that the text is cut into pairs
  seed: int = 0  # of the pairs and of the order of rows
  directory: str = ""  # where the token dataset is kept; empty: in the workdir

  def __post_init__(self):
    if self.length < 5:
      raise ValueError(f"length must be at least 5, for two tokens and three special ones; got {self.length}")
    if not self.sources:
      raise ValueError("sources is empty: name at least one")
    if not 0 <= self.short <= 1:
      raise ValueError(f"short is a share; got {self.short}")
    if self.passes < 1:
      raise ValueError(f"passes must be at least 1; got {self.passes}")


def prepare(cfg: Config, directory: str, say: Callable[[str], None] = print) -> text.Prepared:
  """As `data.text.prepare`; the token datasets hold the bounds of sentences too.

  Raises:
    UserError: a source cannot be read, or the vocabulary has no [CLS] or [SEP].
  """
  cut = sentences.split if cfg.sentences == "rules" else sentences.lines
  found = text.datasets(cfg, directory, say, lambda documents, tokens: _encoded(documents, tokens, cut), "sentences", cfg.sentences)
  for name in ("cls", "sep"):
    if name not in found.tokenizer.special:
      raise UserError(f"data.pairs needs a '{name}' token around its texts, which this vocabulary has not: take another data.tokenizer.")
  rows = ("pairs", cfg.length, cfg.negatives, cfg.short, cfg.passes, cfg.seed)
  return text.Prepared(found.tokenizer, found.tokenizer.vocab, text.digest(found.identity, rows), found.splits, found.summary)


def _encoded(documents: Iterable[str], tokens: tokenizer.Tokenizer, cut: Callable[[str], list[str]]) -> Iterator[list[np.ndarray]]:
  """Each document as the ids of its sentences."""
  for document in documents:
    found = cut(document)
    yield [ids for ids in tokens.encode_batch(found) if len(ids)] if found else []


def train_rows(prepared: text.Prepared, cfg: Config, element_spec: Mapping[str, Field]) -> stream.Shuffled:
  """Endless rows of the training splits: a pure function of (data.seed, index)."""
  _check(cfg, element_spec)
  rows = stream.Joined([Pairs(cfg, prepared, "train", number, element_spec) for number in range(cfg.passes)])
  return stream.Shuffled(lambda epoch: rows, len(rows), cfg.seed)


def valid_rows(prepared: text.Prepared, cfg: Config, element_spec: Mapping[str, Field]) -> "Pairs":
  """The validation splits, cut into pairs once."""
  _check(cfg, element_spec)
  return Pairs(cfg, prepared, "valid", 0, element_spec)


def baseline(prepared: text.Prepared, cfg: Config, element_spec: Mapping[str, Field]) -> tuple[str, dict[str, float]]:
  """The name and the scores of what a model must beat."""
  del cfg, element_spec
  return "unigram", unigram(prepared)._asdict()


def _check(cfg: Config, element_spec: Mapping[str, Field]) -> None:
  for name, field in element_spec.items():
    if name not in FIELDS:
      raise UserError(f"the objective asks for '{name}' ({field.meaning}), which data.pairs does not deliver.")
    if name != "is_next" and field.shape != (cfg.length,):
      raise UserError(f"the objective asks for rows of {name} of shape {field.shape}, but data.pairs delivers {cfg.length} tokens a row.")


class Pairs:
  """The pairs of one pass over a split, all sources together."""

  def __init__(self, cfg: Config, prepared: text.Prepared, split: str, number: int, element_spec: Mapping[str, Field]):
    self._cfg, self._tokens, self._fields = cfg, prepared.tokenizer, tuple(element_spec)
    self._splits = [splits[split] for splits in prepared.splits.values()]
    self._seed = stream.hashed(cfg.seed, number, split == "train")
    starts, stops, last = zip(*map(_bounds, self._splits))
    self._starts, self._stops = np.concatenate(starts), np.concatenate(stops)
    self._source = np.repeat(np.arange(len(starts)), [len(found) for found in starts])
    before = np.cumsum([0, *map(len, starts[:-1])])
    documents = np.concatenate([ends + first for ends, first in zip(last, before)])
    if cfg.negatives == "random" and len(documents) < 2:
      raise UserError(f"data.pairs: the {split} split is one document, so there is no other to take a random second text from: set the source's "
                      "documents='paragraph' or 'line', name more files, or set data.negatives=swapped.")  # fmt: skip
    self.plan = plan(self._stops - self._starts, documents, cfg.length - 3, cfg.short, cfg.negatives == "swapped", np.random.default_rng(self._seed))
    if not len(self.plan):
      raise UserError(f"data.pairs: no document of the {split} split has two sentences: name longer documents, or another data.sentences.")

  def __len__(self) -> int:
    return len(self.plan)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    first, first_stop, second, second_stop, is_next = self.plan[index].tolist()
    rng = np.random.default_rng([self._seed, index])
    a, b = truncated(self._read(first, first_stop), self._read(second, second_stop), self._cfg.length - 3, rng)
    special, length = self._tokens.special, self._cfg.length
    tokens, segments, types = np.full(length, self._tokens.pad, np.int32), np.zeros(length, np.int32), np.zeros(length, np.int32)
    joined = np.concatenate([[special["cls"]], a, [special["sep"]], b, [special["sep"]]])
    tokens[: len(joined)], segments[: len(joined)], types[len(a) + 2 : len(joined)] = joined, 1, 1
    row = {"tokens": tokens, "segments": segments, "types": types, "is_next": np.array(is_next, np.int32)}
    return {name: row[name] for name in self._fields}

  def _read(self, first: int, stop: int) -> np.ndarray:
    """The tokens of sentences first … stop − 1, which lie in one document."""
    return self._splits[self._source[first]].read(int(self._starts[first]), int(self._stops[stop - 1]))


def _bounds(split: dataset.TokenSplit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Offsets of each sentence, and for each document that has one the number of the sentence after its last."""
  ends = split.sentence_ends
  after = np.unique(np.searchsorted(ends, split.document_ends, side="right"))
  return np.concatenate([[0], ends[:-1]]).astype(np.int64), ends, after[after > 0]


def plan(lengths: np.ndarray, document_ends: np.ndarray, room: int, short: float, swapped: bool, rng: np.random.Generator) -> np.ndarray:
  """Which sentences make the pairs of one pass over the text.

  Args:
    lengths: tokens of each sentence.
    document_ends: for each document the number of the sentence after its last, ascending.
    room: tokens that a pair is filled to; what it has beyond is cut when the row is read.
    short: share of the documents that are filled to a random number of tokens.
    swapped: pairs that are not next are neighbours in the wrong order; a text of a single sentence, which has no second part, is left out.

  Returns:
    int64 [pairs, 5]: first and stop of the first text's sentences, the same of the second, and whether it follows.
  """
  lengths, ends = lengths.tolist(), document_ends.tolist()
  starts = [0, *ends[:-1]]
  rows = []

  def filled(start: int, stop: int, tokens: int) -> int:
    """The sentence after the first ones from `start` that hold so many tokens, at most `stop`."""
    while start < stop and tokens > 0:
      tokens -= lengths[start]
      start += 1
    return start

  for number, (at, end) in enumerate(zip(starts, ends)):
    target = int(rng.integers(2, room + 1)) if rng.random() < short else room
    while at < end:
      stop = filled(at, end, target)
      middle = at + (int(rng.integers(1, stop - at)) if stop - at > 1 else 1)
      other = rng.random() < 0.5
      if middle == stop and swapped:
        at = stop
      elif middle == stop or (other and not swapped):
        document = number
        for _ in range(OTHERS):
          document = int(rng.integers(len(ends)))
          if document != number:
            break
        first = int(rng.integers(starts[document], ends[document]))
        rows.append((at, middle, first, filled(first, ends[document], max(1, target - sum(lengths[at:middle]))), 0))
        at = middle  # the sentences after it were not used
      else:
        rows.append((middle, stop, at, middle, 0) if other else (at, middle, middle, stop, 1))
        at = stop
  return np.array(rows, np.int64).reshape(-1, 5)


def truncated(a: np.ndarray, b: np.ndarray, room: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """Both with at most `room` tokens together: the longer loses one at a time, its first or its last by chance."""
  rest_a, rest_b = len(a), len(b)
  over = max(0, rest_a + rest_b - room)
  cut_a = min(over, max(0, rest_a - rest_b))  # the longer comes down to the other, then they take turns, the second first
  cut_b = min(over, max(0, rest_b - rest_a))
  left = over - cut_a - cut_b
  cut_a, cut_b = cut_a + left // 2, cut_b + left - left // 2
  front_a, front_b = int(rng.binomial(cut_a, 0.5)), int(rng.binomial(cut_b, 0.5))
  return a[front_a : rest_a - cut_a + front_a], b[front_b : rest_b - cut_b + front_b]
