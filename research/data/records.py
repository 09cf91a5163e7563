"""Labelled records as data: what a model is fine-tuned on, one record a row, from local files.

A file's columns (or JSON keys) become a record's fields, as `fields` says: `first` and `second`, the text or the pair that is read, with a
`label`, the name of a class, or a `score`, a number; `source` and `target` of sequence-to-sequence learning; `words` with their `tags`.

  tsv       columns between tabs, never quoted         jsonl     an object on each line
  csv       columns between commas, quoted as needed   parallel  line i of several files is one record; the files are its columns
  conll     a word on each line with its tag, blank lines between sentences; of CoNLL-U (.conllu) comments and multiword lines are left out

What the rows hold, the objective's element_spec names: `tokens`, `segments` and `types` of the text or the pair, joined as BERT joins it
(`Tokenizer.join`); `label`, the class's number or the score; `tags`, −1 but at the first token of each word, as in BERT's experiments on named
entities (Devlin et al. 2019, section 5.3); `source` and `source_segments`, where `tokens` is then the target with an end-of-text token.
What does not fit into a row loses its end, of a pair token by token the longer text's; `cut` counts the records.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from research.core.config import Component
from research.core.errors import UserError, nearest
from research.core.types import Field, Vocab
from research.data import dataset, stream, tokenizer
from research.data.sources import files

ROLES = ("first", "second", "label", "score", "source", "target", "words", "tags")
DELIVERED = ("tokens", "segments", "types", "label", "tags", "source", "source_segments")
SEEN = {"segments": "tokens", "source_segments": "source"}  # 1 at every place of these, and then 0
FORMATS = {".tsv": "tsv", ".txt": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".conll": "conll", ".conllu": "conll", ".iob": "conll",
           ".bio": "conll"}  # fmt: skip
CONLL = {"words": 0, "tags": -1}  # columns, where `fields` names no others
PART = re.compile(r"\d+[-.]\d+$")  # the index of a multiword token or an empty node of CoNLL-U

Record = Mapping[str, Any]  # field -> text; of `words` and `tags` a list of them


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
      if role not in ROLES:
        raise ValueError(f"fields has no '{role}'.{nearest(role, ROLES)}")
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
  splits = {"train": read(cfg.train, cfg), "valid": read(cfg.valid, _held_out(cfg))}
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


def _held_out(cfg: Config) -> Config:
  """How validation files, and files to score, are read."""
  return dataclasses.replace(cfg, fields=cfg.valid_fields or cfg.fields, valid_fields={})


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


# --- files -------------------------------------------------------------------------------------------------------------------


def read(paths: tuple[str, ...], cfg: Config) -> list[Record]:
  """The records of files, in order.

  Raises:
    UserError: no such file, no UTF-8, cut off, a line without a field, or no record at all.
  """
  found: list[Record] = []
  if cfg.format == "parallel":
    found = _parallel([file for path in paths for file in files.expand((path,))], cfg)
  else:
    for path in files.expand(paths):
      form = FORMATS.get(_ending(path)) if cfg.format == "auto" else cfg.format
      if form is None:
        raise UserError(f"data: the ending of '{path}' does not tell how it is to be read: set data.format (tsv, csv, jsonl, conll or parallel).")
      with files.opened(path) as file:
        found += {"tsv": _columns, "csv": _columns, "jsonl": _json_lines, "conll": _conll}[form](path, file, cfg, form)
  if not found:
    raise UserError(f"data: there is no record in {', '.join(paths)}: name files that hold some.")
  return found


def _ending(path: str) -> str:
  return os.path.splitext(path.removesuffix(".gz").removesuffix(".zst"))[1].lower()


def _columns(path: str, file: Iterable[str], cfg: Config, form: str) -> Iterator[Record]:
  reader = csv.reader(file, strict=True) if form == "csv" else csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
  named = cfg.header or any(isinstance(column, str) for column in cfg.fields.values())
  with _csv_errors(path, reader):
    header = next(reader, []) if named else []
    at = {}
    for role, column in cfg.fields.items():
      if isinstance(column, str) and column not in header:
        raise UserError(f"data: '{path}' has no column '{column}', which data.fields.{role} names.{nearest(column, header)}")
      at[role] = header.index(column) if isinstance(column, str) else column
    for line in reader:
      if line:
        where = f"'{path}', line {reader.line_num}"
        yield _record({role: line[column] if -len(line) <= column < len(line) else None for role, column in at.items()}, where)


@contextlib.contextmanager
def _csv_errors(path: str, reader: Any) -> Iterator[None]:
  try:
    yield
  except csv.Error as error:
    raise UserError(f"data: '{path}', line {reader.line_num}: {error}; mend its quotes.") from error


def _json_lines(path: str, file: Iterable[str], cfg: Config, form: str) -> Iterator[Record]:
  del form
  for number, line in enumerate(file, start=1):
    if line.strip():
      try:
        item = json.loads(line)
      except ValueError as error:
        raise UserError(f"data: '{path}', line {number}, is not JSON: {error}.") from error
      if not isinstance(item, dict):
        raise UserError(f"data: '{path}', line {number}, is no JSON object.")
      yield _record({role: item.get(str(key)) for role, key in cfg.fields.items()}, f"'{path}', line {number}")


def _conll(path: str, file: Iterable[str], cfg: Config, form: str) -> Iterator[Record]:
  del form
  at, universal = {**CONLL, **{role: column for role, column in cfg.fields.items() if role in CONLL}}, _ending(path) == ".conllu"
  held: dict[str, list[str]] = {role: [] for role in at}
  for number, line in enumerate(file, start=1):
    line = line.rstrip("\r\n")
    if line.startswith("-DOCSTART-") or universal and line.startswith("#"):
      continue
    if not line.strip():
      if held["words"]:
        yield _record(held, f"'{path}', line {number}")
        held = {role: [] for role in at}
      continue
    parts = line.split("\t") if "\t" in line else line.split()
    if universal and PART.match(parts[0]):
      continue
    for role, column in at.items():
      if not isinstance(column, int) or not -len(parts) <= column < len(parts) or len(parts) < 2:
        raise UserError(f"data: '{path}', line {number}, has {len(parts)} columns, and data.fields.{role} names column {column}: mend the line or the field.")
      held[role].append(parts[column])
  if held["words"]:
    yield _record(held, f"the end of '{path}'")


def _parallel(paths: Sequence[str], cfg: Config) -> list[Record]:
  columns = []
  for path in paths:
    with files.opened(path) as file:
      columns.append([line.rstrip("\r\n") for line in file])
  for path, column in zip(paths, columns):
    if len(column) != len(columns[0]):
      raise UserError(f"data: '{path}' has {len(column)} lines and '{paths[0]}' {len(columns[0])}: line i of each is one record, so they must have as many.")
  for role, column in cfg.fields.items():
    if not isinstance(column, int) or not 0 <= column < len(paths):
      raise UserError(f"data.fields.{role} is {column!r}: of parallel files it is the number of the file, 0 to {len(paths) - 1}.")
  line = lambda i: {role: columns[column][i] for role, column in cfg.fields.items()}
  return [_record(line(i), f"line {i + 1} of '{paths[0]}'") for i in range(len(columns[0]))]


def _record(found: Mapping[str, Any], where: str) -> Record:
  """A record of what a line holds: every field there, each of its type.

  JSON may hold lists: of the words and tags, of the sentences of a text, which are joined, and of several targets, of which the first counts.
  """
  record: dict[str, Any] = {}
  for role, value in found.items():
    if value is None or value == []:
      raise UserError(f"data: {where} has no '{role}' (see data.fields.{role}): mend or leave out that line.")
    if role in ("words", "tags"):
      value = value.split() if isinstance(value, str) else [str(item) for item in value]
    elif isinstance(value, list):
      value = str(value[0]) if role == "target" else " ".join(map(str, value))
    else:
      value = str(value)
    if role == "score":
      try:
        value = float(value)
      except ValueError:
        value = math.nan
      if not math.isfinite(value):
        raise UserError(f"data: {where}: the score '{found[role]}' is no finite number; mend or leave out that line.")
    record[role] = value
  if "tags" in record and len(record["tags"]) != len(record.get("words", ())):
    raise UserError(f"data: {where} has {len(record.get('words', ()))} words and {len(record['tags'])} tags: mend or leave out that line.")
  return record


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
        row[name][: len(value)] = 1 if name in SEEN else value
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
  return encode(read((path,), _held_out(cfg)), tokens, cfg.length, labels or cfg.labels, element_spec)


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
  if (width := element_spec["tokens"].shape[0]) != length:
    raise UserError(f"the objective asks for rows of {width} tokens, but records have data.length, {length}.")
  if "source" in element_spec:
    arrays, cut = _sequences(records, tokens, length, element_spec["source"].shape[0])
  elif "tags" in element_spec:
    arrays, cut = _tagged(records, tokens, length, _number(labels))
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
