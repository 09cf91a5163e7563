"""Labelled records as data: what a model is fine-tuned on, one record a row, from local files.

A file's columns (or JSON keys) become a record's fields, as `fields` says: `first` and `second`, the text or the pair that is read, with a
`label`, the name of a class, or a `score`, a number; `source` and `target` of sequence-to-sequence learning; `words` with their `tags`.

Which files there are, `data.tables` says.

What the rows hold, the objective's element_spec names: `tokens`, `segments` and `types` of the text or the pair, joined as BERT joins it
(`Tokenizer.join`); `label`, the class's number or the score; `tags`, −1 but at the first token of each word, as in BERT's experiments on named
entities (Devlin et al. 2019, section 5.3); `source` and `source_segments`, where `tokens` is then the target with an end-of-text token.
What does not fit into a row loses its end, of a pair token by token the longer text's; `cut` counts the records.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from research.core.config import Component
from research.core.errors import UserError, nearest
from research.core.types import Field, Vocab
from research.data import dataset, stream, tables, tokenizer
from research.data.sources import files
from research.data.tables import Record

DELIVERED = ("tokens", "segments", "types", "label", "tags", "source", "source_segments")
SEEN = {"segments": "tokens", "source_segments": "source"}  # 1 at every place of these, and then 0


@dataclasses.dataclass(frozen=True)
class Config:
  train: tuple[str, ...] = ()  # files or globs, plain, .gz or .zst; $RESEARCH_DATA is understood
  valid: tuple[str, ...] = ()  # the validation split
  format: Literal["auto", "tsv", "csv", "jsonl", "conll", "parallel"] = "auto"  # auto: by the files' endings
  header: bool = False  # the first line of a .tsv or .csv file names its columns; always so where `fields` names columns
  fields: Mapping[str, int | str] = dataclasses.field(default_factory=lambda: {"first": 0, "label": 1})  # field -> number of its column, from 0; its name; a key
  valid_fields: Mapping[str, int | str] = dataclasses.field(default_factory=dict)  # those of validation files and of files to score; empty: as fields
  labels: tuple[str, ...] = ()  # classes or tags in the order of their numbers; empty: those of the training split, sorted
  tokenizer: Component = tokenizer.Config()
  length: int = 128  # tokens of a row
  seed: int = 0  # of the order of rows
  directory: str = ""  # where a trained vocabulary is kept; empty: in the workdir

  def __post_init__(self):
    if self.length < 4:
      raise ValueError(f"length must be at least 4; got {self.length}")
    for role in (*self.fields, *self.valid_fields):
      if role not in tables.ROLES:
        raise ValueError(f"fields has no '{role}'.{nearest(role, tables.ROLES)}")
    if self.valid_fields and self.valid_fields.keys() != self.fields.keys():
      raise ValueError(f"valid_fields names {', '.join(self.valid_fields)}, but fields {', '.join(self.fields)}: give each its place")
    if len(set(self.labels)) < len(self.labels):
      raise ValueError(f"labels names one twice: {', '.join(self.labels)}")


class Prepared(NamedTuple):
  tokenizer: tokenizer.Tokenizer
  vocab: Vocab
  digest: str  # of everything that decides which rows come in which order
  labels: tuple[str, ...]  # the names of the classes or tags; none where there are only scores or targets
  splits: Mapping[str, Sequence[Record]]


def prepare(cfg: Config, directory: str, say: Callable[[str], None] = print) -> Prepared:
  """Reads both splits, and trains the tokenizer on the training split's texts, once, unless one is named.

  Raises:
    UserError: no files named, a file or a line that is not what it should be, or a split without records.
  """
  for split in ("train", "valid"):
    if not getattr(cfg, split):
      raise UserError(f"data.{split} is empty: name the file of labelled records with --config.data.{split}=FILE (or score a file with evaluate --data=FILE).")
  splits = {"train": tables.read(cfg.train, tables.Form(cfg.format, cfg.header, cfg.fields)), "valid": tables.read(cfg.valid, _held_out(cfg))}
  prints = {split: _fingerprint(getattr(cfg, split)) for split in splits}
  shape = (cfg.format, cfg.header, sorted(cfg.fields.items()), sorted(cfg.valid_fields.items()))
  if cfg.tokenizer.path:
    tokens = tokenizer.load(cfg.tokenizer.path)
  else:
    folder = os.path.join(cfg.directory or directory, "tokenizer-" + _digest(prints["train"], shape, repr(cfg.tokenizer)))
    if not os.path.isfile(os.path.join(folder, "vocabulary.json")):
      say(f"training the {cfg.tokenizer.kind} vocabulary")
      with dataset.arriving(folder) as scratch:
        tokenizer.train(cfg.tokenizer, _texts(splits["train"])).save(os.path.join(scratch, "whole"))
    tokens = tokenizer.load(folder)
  labels = cfg.labels or _labels(splits["train"])
  say(" · ".join(f"{split} {len(found):,} records" for split, found in splits.items()) + (f" · classes {', '.join(labels)}" if 0 < len(labels) <= 20 else ""))
  return Prepared(tokens, tokens.vocab, _digest(prints, shape, tokens.digest, labels, cfg.length, cfg.seed), labels, splits)


def _held_out(cfg: Config) -> tables.Form:
  """How validation files, and files to score, are read."""
  return tables.Form(cfg.format, cfg.header, cfg.valid_fields or cfg.fields)


def _labels(records: Sequence[Record]) -> tuple[str, ...]:
  """The names of all classes or tags, sorted."""
  return tuple(sorted({name for record in records for name in _named(record)}))


def _named(record: Record) -> Iterable[str]:
  return record["tags"] if "tags" in record else (record["label"],) if "label" in record else ()


def _texts(records: Sequence[Record]) -> Iterator[str]:
  for record in records:
    if "words" in record:
      yield " ".join(record["words"])
    yield from (record[role] for role in ("first", "second", "source", "target") if role in record)


def _fingerprint(paths: tuple[str, ...]) -> str:
  total = hashlib.sha256()
  for path in files.expand(paths):
    with open(path, "rb") as file:
      total.update(hashlib.file_digest(file, "sha256").digest())
  return total.hexdigest()


def _digest(*parts: Any) -> str:
  return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


# --- rows --------------------------------------------------------------------------------------------------------------------


class Rows:
  """Encoded records as rows: finite, in the order of the files."""

  def __init__(self, arrays: Sequence[Mapping[str, np.ndarray]], element_spec: Mapping[str, Field], pad: int, cut: int):
    """
    Args:
      arrays: of each record, without padding.
      cut: records of which a part did not fit.
    """
    self._arrays, self._spec, self.cut = arrays, element_spec, cut
    self._fill = {"tokens": pad, "source": pad, "tags": -1}

  def __len__(self) -> int:
    return len(self._arrays)

  def __getitem__(self, index: int) -> stream.Row:
    row = {}
    for name, field in self._spec.items():
      value = self._arrays[index][SEEN.get(name, name)]
      if field.shape:
        row[name] = np.full(field.shape, self._fill.get(name, 0), field.dtype)
        for place, part in zip(np.atleast_2d(row[name]), value if len(field.shape) == 2 else (value,)):
          place[: len(part)] = 1 if name in SEEN else part
      else:
        row[name] = np.asarray(value, field.dtype)
    return row


class _Endless(stream.Shuffled):
  """The rows of an epoch in an order of its own, epoch after epoch."""

  def __init__(self, rows: Rows, seed: int):
    super().__init__(lambda epoch: rows, len(rows), seed)
    self.cut = rows.cut


def train_rows(prepared: Prepared, cfg: Config, element_spec: Mapping[str, Field]):
  """Endless rows of the training split: a pure function of (data.seed, index)."""
  return _Endless(_rows(prepared, cfg, element_spec, "train"), stream.hashed(cfg.seed, 0))


def valid_rows(prepared: Prepared, cfg: Config, element_spec: Mapping[str, Field]) -> Rows:
  """The whole validation split."""
  return _rows(prepared, cfg, element_spec, "valid")


def file_rows(tokens: tokenizer.Tokenizer, cfg: Config, path: str, element_spec: Mapping[str, Field], labels: Sequence[str]) -> Rows:
  """All records of a file.

  Args:
    labels: the names of the classes that the model was trained on.
  """
  return encode(tables.read((path,), _held_out(cfg)), tokens, cfg.length, labels or cfg.labels, element_spec)


def _rows(prepared: Prepared, cfg: Config, element_spec: Mapping[str, Field], split: str) -> Rows:
  return encode(prepared.splits[split], prepared.tokenizer, cfg.length, prepared.labels, element_spec)


def encode(records: Sequence[Record], tokens: tokenizer.Tokenizer, length: int, labels: Sequence[str], element_spec: Mapping[str, Field]) -> Rows:
  """Rows of records.

  Raises:
    UserError: the objective asks for what records do not deliver, a field that is missing, or a class that is not in `labels`.
  """
  for name, field in element_spec.items():
    if name not in DELIVERED:
      raise UserError(f"the objective asks for '{name}' ({field.meaning}), which records do not deliver.")
  if (width := element_spec["tokens"].shape[-1]) != length:
    raise UserError(f"the objective asks for rows of {width} tokens, but records have data.length, {length}.")
  if "source" in element_spec:
    arrays, cut = _sequences(records, tokens, length, element_spec["source"].shape[0])
  elif "tags" in element_spec:
    arrays, cut = _tagged(records, tokens, length, _number(labels))
  elif len(element_spec["tokens"].shape) == 2:
    arrays, cut = _apart(records, tokens, length)
  else:
    arrays, cut = _joined(records, tokens, length)
  if "label" in element_spec:
    number = float if element_spec["label"].dtype == "float32" else _number(labels)
    role = "score" if number is float else "label"
    for array, value in zip(arrays, _field(records, role)):
      array["label"] = number(value)
  return Rows(arrays, element_spec, tokens.pad, cut)


def _field(records: Sequence[Record], role: str) -> list[Any]:
  if role not in records[0]:
    raise UserError(f"the objective needs records with a '{role}': name its column or key with --config.data.fields.{role}=… (there: {', '.join(records[0])}).")
  return [record[role] for record in records]


def _number(labels: Sequence[str]) -> Callable[[str], int]:
  """A class's number by its name."""
  numbers = {name: i for i, name in enumerate(labels)}

  def number(name: str) -> int:
    if name not in numbers:
      known = ", ".join(map(repr, labels[:20]))
      raise UserError(f"data: '{name}' is none of the classes ({known or 'there are none'}), which are those of the training split unless data.labels names them.")
    return numbers[name]

  return number


def _joined(records: Sequence[Record], tokens: tokenizer.Tokenizer, length: int) -> tuple[list[dict[str, Any]], int]:
  """The text of each record, or the pair."""
  first = tokens.encode_batch(_field(records, "first"))
  second = tokens.encode_batch(_field(records, "second")) if "second" in records[0] else [None] * len(first)
  arrays, cut = [], 0
  for a, b in zip(first, second):
    room = length - len(tokens.join([], None if b is None else [])[0])
    keep, other = (min(len(a), room), None) if b is None else _longest_first(len(a), len(b), room)
    cut += keep < len(a) or b is not None and other < len(b)
    ids, types = tokens.join(a[:keep], None if b is None else b[:other])
    arrays.append({"tokens": ids, "types": types})
  return arrays, cut


def _apart(records: Sequence[Record], tokens: tokenizer.Tokenizer, length: int) -> tuple[list[dict[str, Any]], int]:
  """The two texts of each record, each with the tokens around it in a sequence of its own; a longer one loses its end."""
  room = length - len(tokens.wrap([]))
  pairs = list(zip(*(tokens.encode_batch(_field(records, role)) for role in ("first", "second"))))
  arrays = [{"tokens": [tokens.wrap(ids[:room]) for ids in pair]} for pair in pairs]
  for record, array in zip(records, arrays):
    if not all(map(len, array["tokens"])):
      raise UserError(f"data: a text of the pair {record['first'][:60]!r} and {record['second'][:60]!r} has no token in this vocabulary: leave out that record.")
  return arrays, sum(any(len(ids) > room for ids in pair) for pair in pairs)


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
  """The lengths of a pair after the longer text has lost a token, and of two as long the second, until both fit (BERT's run_classifier.py)."""
  half, odd = divmod(max(0, room), 2)
  if first + second <= room:
    return first, second
  if first <= half:
    return first, room - first
  if second <= half:
    return room - second, second
  return half + odd, half


def _tagged(records: Sequence[Record], tokens: tokenizer.Tokenizer, length: int, number: Callable[[str], int]) -> tuple[list[dict[str, Any]], int]:
  """The words of each record, each encoded by itself, with the tag at its first token. A word that has no token becomes `unk`."""
  empty, one = tokens.join([])[0], tokens.join([-1])[0]
  room, lead = length - len(empty), int(np.argmin(one))  # −1 is no token's id, so it tells where a text begins
  spelled = [[" " * (i > 0) + word for i, word in enumerate(words)] for words in _field(records, "words")]
  known = sorted({word for words in spelled for word in words})
  ids = dict(zip(known, tokens.encode_batch(known)))
  arrays, cut = [], 0
  for words, tags in zip(spelled, _field(records, "tags")):
    pieces = [ids[word] if len(ids[word]) else np.array([tokens.special["unk"]], np.int32) for word in words]
    row = np.concatenate(pieces)
    starts = np.cumsum([0, *map(len, pieces[:-1])])
    cut += len(row) > room
    joined, types = tokens.join(row[:room])
    places = np.full(len(joined), -1, np.int32)
    for start, tag in zip(starts, tags):
      if start < room:
        places[lead + start] = number(tag)
    arrays.append({"tokens": joined, "types": types, "tags": places})
  return arrays, cut


def _sequences(records: Sequence[Record], tokens: tokenizer.Tokenizer, length: int, source_length: int) -> tuple[list[dict[str, Any]], int]:
  """Sources and targets, each with the tokens around it, the target with an end-of-text token even where it was cut."""
  sources, targets = tokens.encode_batch(_field(records, "source")), getattr(tokens, "target", tokens).encode_batch(_field(records, "target"))
  end = tokens.special["eos"]
  arrays, cut = [], 0
  around = tokens.wrap([])
  ended = len(around) > 0 and around[-1] == end
  source_room, room = source_length - len(around), length - len(around) - (not ended)
  for source, target in zip(sources, targets):
    cut += len(source) > source_room or len(target) > room
    whole = tokens.wrap(target[:room])
    source = tokens.wrap(source[:source_room])
    if not len(source):
      raise UserError("data: a record's source has no token in this vocabulary: leave out that record.")
    arrays.append({"tokens": whole if ended else np.append(whole, np.int32(end)), "source": source})
  return arrays, cut


# --- baseline ----------------------------------------------------------------------------------------------------------------


def baseline(prepared: Prepared, cfg: Config, element_spec: Mapping[str, Field]) -> tuple[str, dict[str, float]]:
  """What the training split's frequencies score on the validation split: of classes, tags or target tokens; of scores their mean."""
  del cfg
  if "label" in element_spec and element_spec["label"].dtype == "float32":
    train, valid = (np.array(_field(prepared.splits[split], "score")) for split in ("train", "valid"))
    return "mean", {"loss": float(np.mean((valid - train.mean()) ** 2))}
  if "source" in element_spec:
    encoded = getattr(prepared.tokenizer, "target", prepared.tokenizer).encode_batch
    counts = [Counter(i for ids in encoded(_field(prepared.splits[split], "target")) for i in ids.tolist()) for split in ("train", "valid")]
    kinds = int((prepared.vocab.byte_length > 0).sum())
  else:
    counts = [Counter(name for record in prepared.splits[split] for name in _named(record)) for split in ("train", "valid")]
    kinds = len(prepared.labels)
  train, valid = counts
  total, number = sum(train.values()) + kinds, max(1, sum(valid.values()))
  loss = -sum(count * math.log((train[name] + 1) / total) for name, count in valid.items()) / number
  return ("unigram" if "source" in element_spec else "majority"), {"loss": loss, "accuracy": valid[max(train, key=train.get)] / number}
