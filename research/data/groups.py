"""The data component of contrastive learning on texts: groups of texts that belong together, a line each.

A group is a line of a table (.tsv, .csv or .jsonl) or, where several text files are named, the same line of each of them. Rows hold as many texts
of a group as the objective asks for, each in a sequence of its own: in the order of the fields (anchor, positive, hard negatives), or, where all
texts of a group say the same (captions of one image), drawn from them anew each epoch. Lines of a single text file are groups of one text.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from research.core.config import Component
from research.core.errors import UserError
from research.core.types import Field, Vocab
from research.data import dataset, stream, text, tokenizer
from research.data.sources import files


@dataclasses.dataclass(frozen=True)
class Config:
  train: tuple[str, ...] = ()  # one table, or text files whose lines belong together; $RESEARCH_DATA is understood
  valid: tuple[str, ...] = ()  # the same for validation
  fields: tuple[str, ...] = ()  # of a table: keys (.jsonl) or numbers of columns from 0 (.tsv, .csv), in the order of the texts; empty: all columns
  take: Literal["ordered", "drawn"] = "ordered"  # the first texts of a group, or some of them by chance
  tokenizer: Component = tokenizer.Config(kind="wordpiece", lowercase=True)
  length: int = 64  # tokens of a text; a longer one loses its end
  seed: int = 0  # of the order of rows and of what is drawn
  directory: str = ""  # where the tokenizer is kept; empty: in the workdir

  def __post_init__(self):
    if self.length < 2:
      raise ValueError(f"length must be at least 2; got {self.length}")


class Prepared(NamedTuple):
  tokenizer: tokenizer.Tokenizer
  vocab: Vocab
  digest: str  # of everything that decides which rows come in which order
  groups: Mapping[str, list[list[np.ndarray]]]  # split -> groups of texts, each its ids


def prepare(cfg: Config, directory: str, say: Callable[[str], None] = print) -> Prepared:
  """Reads and encodes the groups and, where there is none, trains the tokenizer on those of the training split.

  Raises:
    UserError: a file is missing, damaged or not as its name says, or a split holds no group.
  """
  for split in dataset.SPLITS:
    if not getattr(cfg, split):
      raise UserError(f"data.{split} names no file: set --config.data.{split}=FILE (a .tsv, .csv or .jsonl table, or text files of as many lines).")
  found = {split: read_groups(getattr(cfg, split), cfg.fields) for split in dataset.SPLITS}
  tokens = trained(cfg.tokenizer, cfg.directory or directory, [text for group in found["train"] for text in group if text], say)
  encoded = {}
  for split, groups in found.items():
    ids = iter(tokens.encode_batch([text for group in groups for text in group]))
    encoded[split] = [[enclosed(tokens, next(ids), cfg.length) if text.strip() else next(ids)[:0] for text in group] for group in groups]
  return Prepared(tokens, tokens.vocab, text.digest(found, tokens.digest, cfg.take, cfg.length, cfg.seed), encoded)


def trained(cfg: tokenizer.Config, folder: str, texts: Sequence[str], say: Callable[[str], None]) -> tokenizer.Tokenizer:
  """The tokenizer of these texts, kept under `folder`."""
  where = os.path.join(folder, "tokenizer-" + text.digest(repr(cfg), tokenizer.load(cfg.path).digest if cfg.path else texts))
  if not os.path.isfile(os.path.join(where, "vocabulary.json")):
    say(f"taking the vocabulary of {cfg.path}" if cfg.path else f"training the {cfg.kind} vocabulary")
    with dataset.arriving(where) as scratch:
      tokenizer.train(cfg, texts).save(os.path.join(scratch, "whole"))
  return tokenizer.load(where)


def enclosed(tokens: tokenizer.Tokenizer, ids: np.ndarray, length: int) -> np.ndarray:
  """Ids of a text between the tokens that the vocabulary's model expects, else with an end-of-text after them; at most `length`."""
  before, after = around(tokens)
  return np.array([*before, *ids[: length - len(before) - len(after)], *after], np.int32)


def around(tokens: tokenizer.Tokenizer) -> tuple[list[int], list[int]]:
  """The ids before and after a text that is a row of its own: what the vocabulary's model expects, else an end-of-text after it."""
  before, after = tokens.around()
  return (before, after) if before or after else ([], [tokens.special["eos"]])


def train_rows(prepared: Prepared, cfg: Config, element_spec: Mapping[str, Field]) -> stream.Shuffled:
  """Endless rows of the training groups: a pure function of (data.seed, index)."""
  groups = prepared.groups["train"]
  shape = _shape(cfg, element_spec, prepared)
  return stream.Shuffled(lambda epoch: Rows(groups, shape, cfg.take, prepared.tokenizer.pad, (cfg.seed, 0, epoch)), len(groups), cfg.seed)


def valid_rows(prepared: Prepared, cfg: Config, element_spec: Mapping[str, Field]) -> "Rows":
  """Every validation group once."""
  return Rows(prepared.groups["valid"], _shape(cfg, element_spec, prepared), cfg.take, prepared.tokenizer.pad, (cfg.seed, 1))


def _shape(cfg: Config, element_spec: Mapping[str, Field], prepared: Prepared) -> tuple[int, ...]:
  """Of a row's tokens: [L] or [texts, L]."""
  for name, field in element_spec.items():
    if name not in ("tokens", "segments"):
      raise UserError(f"the objective asks for '{name}' ({field.meaning}), which data.groups does not deliver.")
  shape = element_spec["tokens"].shape
  if shape[-1] != cfg.length:
    raise UserError(f"the objective asks for texts of {shape[-1]} tokens, but data.groups delivers {cfg.length}.")
  least = min(len(group) for groups in prepared.groups.values() for group in groups)
  if len(shape) == 2 and least < shape[0]:
    raise UserError(f"the objective asks for {shape[0]} texts a row, but a group of the data has {least}: name more fields or files, or lower objective.texts.")
  return shape


class Rows:
  """The groups of a split as rows."""

  def __init__(self, groups: list[list[np.ndarray]], shape: tuple[int, ...], take: str, pad: int, seed: tuple[int, ...]):
    self._groups, self._shape, self._take, self._pad, self._seed = groups, shape, take, pad, seed

  def __len__(self) -> int:
    return len(self._groups)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    group, texts = self._groups[index], self._shape[0] if len(self._shape) == 2 else 1
    if self._take == "drawn":
      group = [group[i] for i in np.random.default_rng([*self._seed, index]).permutation(len(group))]
    tokens, segments = np.full((texts, self._shape[-1]), self._pad, np.int32), np.zeros((texts, self._shape[-1]), np.int32)
    for place, ids in enumerate(group[:texts]):
      tokens[place, : len(ids)], segments[place, : len(ids)] = ids, 1
    return {"tokens": tokens.reshape(self._shape), "segments": segments.reshape(self._shape)}


# --- the files ---------------------------------------------------------------------------------------------------------------


def read_groups(paths: Sequence[str], fields: Sequence[str] = ()) -> list[list[str]]:
  """The groups of one table, or of text files with as many lines each; lines without any text are left out.

  Raises:
    UserError: a missing or damaged file, a line without the fields, files of unlike numbers of lines.
  """
  if len(paths) == 1 and paths[0].removesuffix(".gz").endswith((".tsv", ".csv", ".jsonl")):
    groups = _table(paths[0], fields)
  else:
    columns = [_lines(path) for path in paths]
    counts = {path: len(lines) for path, lines in zip(paths, columns)}
    if len(set(counts.values())) > 1:
      raise UserError("data: lines of these files belong together, but their numbers differ: " + ", ".join(f"'{path}' has {n}" for path, n in counts.items()) + ".")
    groups = [list(group) for group in zip(*columns)]
  groups = [group for group in groups if any(text.strip() for text in group)]
  if not groups:
    raise UserError(f"data: {', '.join(map(repr, paths))} holds no text: name files with a group of texts on each line.")
  return groups


def _lines(path: str) -> list[str]:
  full = files.resolved(path)
  if not os.path.isfile(full):
    raise UserError(f"data: there is no file '{path}'.")
  with files.opened(full) as file:
    lines = [line.removesuffix("\r") for line in file.read().split("\n")]
  return lines if lines[-1] else lines[:-1]


def _table(path: str, fields: Sequence[str]) -> list[list[str]]:
  kind, lines = path.removesuffix(".gz").rpartition(".")[2], _lines(path)
  if kind == "jsonl":
    if not fields:
      raise UserError(f"data.fields names no key of the lines of '{path}': set it, the anchor's key first.")
    return [_json(line, fields, f"data: '{path}', line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
  if not all(field.isdigit() for field in fields):
    raise UserError(f"data.fields is {tuple(fields)}; of a .{kind} file it takes numbers of columns, counted from 0.")
  rows = csv.reader(lines) if kind == "csv" else (line.split("\t") for line in lines)
  found = []
  for number, row in enumerate(rows, start=1):
    if row and fields and max(map(int, fields)) >= len(row):
      raise UserError(f"data: '{path}', line {number}, has {len(row)} columns, but data.fields is {tuple(fields)}: mend that line.")
    found.append([row[int(field)] for field in fields] if fields and row else row)
  return found


def _json(line: str, fields: Sequence[str], where: str) -> list[str]:
  try:
    item: Any = json.loads(line)
    texts = [item[field] for field in fields]
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{where}: no JSON object with the keys {', '.join(fields)} ({type(error).__name__}: {error}); set data.fields or mend that line.") from error
  if not all(isinstance(text, str) for text in texts):
    raise UserError(f"{where}: {', '.join(fields)} must be texts; mend that line.")
  return texts
