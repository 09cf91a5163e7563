"""Text as data: text sources and a tokenizer become a token dataset, and that becomes rows.

A data component has a Config with `length`, `seed` and `tokenizer`, and the functions `prepare`, `train_rows` and `valid_rows`, and where it
can `file_rows` (what evaluate reads with --data) and `baseline`.

`prepare` trains the tokenizer on the training split and writes one token dataset per source, once; both are found again by a hash of the
contents and of every key that shapes them. Rows are what an objective's element_spec asks for: `tokens` and `segments`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from research.core.config import Component, component_name, make
from research.core.errors import UserError
from research.core.types import Field, Vocab
from research.data import dataset, duplicates, stream, tokenizer
from research.data.packing import Chunks, Packed, whole_chunks
from research.data.sources import files
from research.data.unigram import unigram

BATCH = 256  # documents encoded at a time


@dataclasses.dataclass(frozen=True)
class Config:
  sources: Mapping[str, Component] = dataclasses.field(default_factory=lambda: {"text": files.Config()})
  weights: Mapping[str, float] = dataclasses.field(default_factory=dict)  # share of the rows for each source; empty: by their tokens
  tokenizer: Component = tokenizer.Config()
  length: int = 256  # tokens of a row that the model sees
  layout: Literal["chunk", "pack"] = "chunk"  # cut the stream of documents into windows, or put whole documents together
  isolate: bool = False  # the documents of a row do not see each other
  append_eos: bool = True  # an end-of-text token after each document
  prepend_bos: bool = False  # a begin-of-text token before each document
  seed: int = 0  # of the order of rows
  directory: str = ""  # where the token dataset is kept; empty: in the workdir

  def __post_init__(self):
    if self.length < 2:
      raise ValueError(f"length must be at least 2; got {self.length}")
    if not self.sources:
      raise ValueError("sources is empty: name at least one")
    if self.weights and set(self.weights) != set(self.sources):
      raise ValueError(f"weights names {sorted(self.weights)}, but sources are {sorted(self.sources)}: give each source its weight")
    if any(weight <= 0 for weight in self.weights.values()):
      raise ValueError(f"weights must be positive; got {dict(self.weights)}")


class Prepared(NamedTuple):
  tokenizer: tokenizer.Tokenizer
  vocab: Vocab
  digest: str  # of everything that decides which rows come in which order
  splits: Mapping[str, Mapping[str, dataset.TokenSplit]]  # source -> split -> tokens
  summary: Mapping[str, Any]  # source -> split -> documents, tokens, bytes


class Datasets(NamedTuple):
  """The token datasets of all sources, and what names their contents."""

  tokenizer: tokenizer.Tokenizer
  splits: Mapping[str, Mapping[str, dataset.TokenSplit]]  # source -> split -> tokens
  summary: Mapping[str, Any]  # source -> split -> documents, tokens, bytes; of the training split the share of duplicate lines too
  identity: list[tuple[str, str]]  # source and the hash of its tokens


def prepare(cfg: Config, directory: str, say: Callable[[str], None] = print) -> Prepared:
  """Trains the tokenizer and writes the token datasets under `directory` (or data.directory), unless they are there.

  Raises:
    UserError: a source cannot be read, or a dataset that was written is damaged.
  """
  found = datasets(cfg, directory, say, lambda documents, tokens: _encoded(documents, tokens, cfg), cfg.append_eos, cfg.prepend_bos)
  rows = (cfg.length, cfg.layout, cfg.isolate, cfg.seed, sorted(cfg.weights.items()))
  return Prepared(found.tokenizer, found.tokenizer.vocab, digest(found.identity, rows), found.splits, found.summary)


def datasets(cfg: Any, directory: str, say: Callable[[str], None], encode: Callable[[Iterable[str], tokenizer.Tokenizer], Iterable[dataset.Document]],
             *form: Any) -> Datasets:  # fmt: skip
  """The tokenizer and the token datasets, found or made.

  Args:
    cfg: has `sources`, `tokenizer` and `directory`.
    encode: documents as the dataset holds them; `form` names how, in the hash.
  """
  folder = cfg.directory or directory
  sources = {name: make(source) for name, source in cfg.sources.items()}
  prints = {name: source.fingerprint() for name, source in sources.items()}
  chosen = tokenizer.load(cfg.tokenizer.path).digest if cfg.tokenizer.path else ""
  token_folder = os.path.join(folder, "tokenizer-" + digest(prints, [_splits_of(s) for s in cfg.sources.values()], repr(cfg.tokenizer), chosen))
  if not os.path.isfile(os.path.join(token_folder, "vocabulary.json")):
    say(f"taking the vocabulary of {cfg.tokenizer.path}" if cfg.tokenizer.path else f"training the {cfg.tokenizer.kind} vocabulary")
    trained = tokenizer.train(cfg.tokenizer, _in_turn([source.documents("train") for source in sources.values()]))
    with dataset.arriving(token_folder) as scratch:
      trained.save(os.path.join(scratch, "whole"))
  tokens = tokenizer.load(token_folder)

  splits, summary, identity = {}, {}, []
  for name, source in sources.items():
    key = digest(prints[name], _splits_of(cfg.sources[name]), tokens.digest, *form)
    identity.append((name, key))
    where = os.path.join(folder, f"tokens-{key}")
    if not os.path.isfile(os.path.join(where, "dataset_info.json")):
      say(f"writing the token dataset of '{name}' to {where}")
      lines = duplicates.Lines()
      watched = {"train": lines.watched(_some(source, name, "train")), "valid": _some(source, name, "valid")}
      dataset.write(where, {split: encode(watched[split], tokens) for split in dataset.SPLITS}, tokens.vocab)
      lines.save(where)
    splits[name] = {split: dataset.TokenSplit(where, split) for split in dataset.SPLITS}
    summary[name] = {
        split: {"documents": len(found.document_ends), "tokens": found.tokens, "bytes": found.bytes} for split, found in splits[name].items()
    }
    share = summary[name]["train"]["duplicate_lines"] = duplicates.saved(where)
    if share is not None and share > duplicates.MANY:
      say(f"alarm: {share:.0%} of the training lines of '{name}' have occurred before (lines of {duplicates.WORDS} words and more): what is learned by heart "
          "is no language; remove duplicates.")  # fmt: skip
  return Datasets(tokens, splits, summary, identity)


def _in_turn(parts: Iterable[Iterator[str]]) -> Iterator[str]:
  """One document of each part after the other, so that a sample from the front holds something of all."""
  parts = list(parts)
  while parts:
    left = []
    for part in parts:
      for document in itertools.islice(part, 1):
        yield document
        left.append(part)
    parts = left


def _some(source: Any, name: str, split: str) -> Iterator[str]:
  """The documents of a split, of which there must be one."""
  empty = True
  for document in source.documents(split):
    empty = empty and not document
    yield document
  if empty:
    raise UserError(f"data: source '{name}' has no {split} text: give it more documents, or another valid_fraction or split.")


def _splits_of(source: Any) -> str:
  """What of a source's config decides its documents; where the files lie does not, their contents are in the fingerprint."""
  fields = {f.name: getattr(source, f.name) for f in dataclasses.fields(source) if f.name not in ("paths", "valid_paths", "data_dir")}
  return f"{component_name(source)} {sorted(fields.items())}"


def digest(*parts: Any) -> str:
  return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _encoded(documents: Iterable[str], tokens: tokenizer.Tokenizer, cfg: Config) -> Iterator[np.ndarray]:
  before = np.array([tokens.special["bos"]] if cfg.prepend_bos else [], np.int32)
  after = np.array([tokens.special["eos"]] if cfg.append_eos else [], np.int32)
  documents = iter(documents)
  while some := list(itertools.islice(documents, BATCH)):
    for ids in tokens.encode_batch(some):
      yield np.concatenate([before, ids, after])


# --- rows --------------------------------------------------------------------------------------------------------------------


def _width(element_spec: Mapping[str, Field], length: int) -> int:
  for name in element_spec:
    if name not in ("tokens", "segments"):
      raise UserError(f"the objective asks for '{name}' ({element_spec[name].meaning}), which text data does not deliver.")
  width = element_spec["tokens"].shape[0]
  if not length <= width < 2 * length:
    raise UserError(f"the objective asks for rows of {width} tokens, but data.length is {length}.")
  return width


def train_rows(prepared: Prepared, cfg: Config, element_spec: Mapping[str, Field]):
  """Endless rows of the training splits: a pure function of (data.seed, index).

  With layout 'chunk' the grid of windows is shifted anew each epoch, so that no token always stands at the edge of a window.
  """
  width, pad = _width(element_spec, cfg.length), prepared.tokenizer.pad
  parts, sizes = [], []
  for number, (name, split) in enumerate((name, splits["train"]) for name, splits in prepared.splits.items()):
    seed = stream.hashed(cfg.seed, number)
    if cfg.layout == "pack":
      packed = Packed(split, width, cfg.length, pad, cfg.isolate)
      parts.append(stream.Shuffled(lambda epoch, packed=packed: packed, len(packed), seed))
    else:
      if split.tokens < width:
        raise UserError(f"data: source '{name}' has {split.tokens} training tokens, fewer than a row of {width}: lower data.length or add text.")
      count = whole_chunks(split, width, cfg.length)
      room = split.tokens - width - (count - 1) * cfg.length  # the grid may shift by so much
      shifts = stream.Permutation(min(room, cfg.length - 1) + 1, (seed, 0, 1))  # each comes once before one comes again
      shifted = lambda epoch, split=split, count=count, shifts=shifts: Chunks(
          split, width, cfg.length, pad, cfg.isolate, shifts[epoch % len(shifts)], count
      )
      parts.append(stream.Shuffled(shifted, count, seed))
    sizes.append(split.tokens)
  if len(parts) == 1:
    return parts[0]
  weights = [cfg.weights[name] for name in prepared.splits] if cfg.weights else sizes
  for name, count in zip(prepared.splits, stream.apportioned(weights, stream.Mixed.PERIOD)):
    if not count:
      raise UserError(f"data: source '{name}' has less than 1/{stream.Mixed.PERIOD} of the rows, too few to mix in: raise its share in data.weights.")
  return stream.Mixed(parts, weights)


def valid_rows(prepared: Prepared, cfg: Config, element_spec: Mapping[str, Field]) -> stream.Rows:
  """The whole validation splits, one source after the other; the last window of each is padded."""
  return stream.Joined([_covering(splits["valid"], prepared.tokenizer, cfg, element_spec) for splits in prepared.splits.values()])


def _covering(split, tokens: tokenizer.Tokenizer, cfg: Config, element_spec: Mapping[str, Field]) -> stream.Rows:
  width, pad = _width(element_spec, cfg.length), tokens.pad
  layout = Packed if cfg.layout == "pack" else Chunks
  return layout(split, width, cfg.length, pad, cfg.isolate)


def baseline(prepared: Prepared, cfg: Config, element_spec: Mapping[str, Field]) -> tuple[str, dict[str, float]]:
  """The name and the scores of what a model must beat."""
  del cfg, element_spec
  return "unigram", unigram(prepared)._asdict()


class _Texts:
  """Texts encoded in memory, read as a TokenSplit is."""

  def __init__(self, tokens: tokenizer.Tokenizer, cfg: Config, texts: Iterable[str]):
    documents = list(_encoded(texts, tokens, cfg))
    self._all = np.concatenate(documents) if documents else np.zeros(0, np.int32)
    self.document_ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
    self.tokens = len(self._all)

  def read(self, start: int, stop: int) -> np.ndarray:
    return self._all[start:stop]


def text_rows(tokens: tokenizer.Tokenizer, cfg: Config, texts: Iterable[str], element_spec: Mapping[str, Field]) -> stream.Rows:
  """Rows that cover the given texts whole."""
  return _covering(_Texts(tokens, cfg, texts), tokens, cfg, element_spec)


def file_rows(tokens: tokenizer.Tokenizer, cfg: Config, path: str, element_spec: Mapping[str, Field], labels: Iterable[str]) -> stream.Rows:
  """Rows that cover a local file, folder or glob whole; errors as `sources.files`."""
  del labels
  return text_rows(tokens, cfg, read_texts(path), element_spec)


def read_texts(path: str) -> list[str]:
  """The documents of a local file, folder or glob.

  Raises:
    UserError: as `sources.files`.
  """
  return list(files.read_all((path,), files.Config()))
