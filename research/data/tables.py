"""Files of records: tables, JSON lines, CoNLL and parallel lines become mappings from field to text.

  tsv       columns between tabs, never quoted         jsonl     an object on each line
  csv       columns between commas, quoted as needed   parallel  line i of several files is one record; the files are its columns
  conll     a word on each line with its tag, blank lines between sentences; of CoNLL-U (.conllu) comments and multiword lines are left out
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from research.core.errors import UserError, nearest
from research.data.sources import files

ROLES = ("first", "second", "label", "score", "source", "target", "words", "tags")
FORMATS = {".tsv": "tsv", ".txt": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".conll": "conll", ".conllu": "conll", ".iob": "conll",
           ".bio": "conll"}  # fmt: skip
CONLL = {"words": 0, "tags": -1}  # columns, where `fields` names no others
PART = re.compile(r"\d+[-.]\d+$")  # the index of a multiword token or an empty node of CoNLL-U

Record = Mapping[str, Any]  # field -> text; of `words` and `tags` a list of them


class Form(NamedTuple):
  """How files are read."""

  format: str  # auto (by their endings), tsv, csv, jsonl, conll or parallel
  header: bool  # the first line names the columns; always so where `fields` names some
  fields: Mapping[str, int | str]  # field -> number of its column, from 0; its name; a key


def read(paths: tuple[str, ...], form: Form) -> list[Record]:
  """The records of files, in order.

  Raises:
    UserError: no such file, no UTF-8, cut off, a line without a field, or no record at all.
  """
  found: list[Record] = []
  if form.format == "parallel":
    found = _parallel([file for path in paths for file in files.expand((path,))], form)
  else:
    for path in files.expand(paths):
      kind = FORMATS.get(_ending(path)) if form.format == "auto" else form.format
      if kind is None:
        raise UserError(f"data: the ending of '{path}' does not tell how it is to be read: set data.format (tsv, csv, jsonl, conll or parallel).")
      with files.opened(path) as file:
        found += {"tsv": _columns, "csv": _columns, "jsonl": _json_lines, "conll": _conll}[kind](path, file, form, kind)
  if not found:
    raise UserError(f"data: there is no record in {', '.join(paths)}: name files that hold some.")
  return found


def _ending(path: str) -> str:
  return os.path.splitext(path.removesuffix(".gz").removesuffix(".zst"))[1].lower()


def _columns(path: str, file: Iterable[str], form: Form, kind: str) -> Iterator[Record]:
  reader = csv.reader(file, strict=True) if kind == "csv" else csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
  named = form.header or any(isinstance(column, str) for column in form.fields.values())
  with _csv_errors(path, reader):
    header = next(reader, []) if named else []
    at = {}
    for role, column in form.fields.items():
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


def _json_lines(path: str, file: Iterable[str], form: Form, kind: str) -> Iterator[Record]:
  del kind
  for number, line in enumerate(file, start=1):
    if line.strip():
      try:
        item = json.loads(line)
      except ValueError as error:
        raise UserError(f"data: '{path}', line {number}, is not JSON: {error}.") from error
      if not isinstance(item, dict):
        raise UserError(f"data: '{path}', line {number}, is no JSON object.")
      yield _record({role: item.get(str(key)) for role, key in form.fields.items()}, f"'{path}', line {number}")


def _conll(path: str, file: Iterable[str], form: Form, kind: str) -> Iterator[Record]:
  del kind
  at, universal = {**CONLL, **{role: column for role, column in form.fields.items() if role in CONLL}}, _ending(path) == ".conllu"
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


def _parallel(paths: Sequence[str], form: Form) -> list[Record]:
  columns = []
  for path in paths:
    with files.opened(path) as file:
      columns.append([line.rstrip("\r\n") for line in file])
  for path, column in zip(paths, columns):
    if len(column) != len(columns[0]):
      raise UserError(f"data: '{path}' has {len(column)} lines and '{paths[0]}' {len(columns[0])}: line i of each is one record, so they must have as many.")
  for role, column in form.fields.items():
    if not isinstance(column, int) or not 0 <= column < len(paths):
      raise UserError(f"data.fields.{role} is {column!r}: of parallel files it is the number of the file, 0 to {len(paths) - 1}.")
  line = lambda i: {role: columns[column][i] for role, column in form.fields.items()}
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
