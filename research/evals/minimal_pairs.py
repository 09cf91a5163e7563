"""Minimal pairs: of two sentences that differ in one point of grammar, does the model find the good one more probable?

BLiMP's measure (Warstadt et al. 2020, section 3): the share of pairs in which the whole sentence that people accept has the higher
log-probability; a tie counts as wrong. The log-probability is the objective's own: exact for a causal model, a pseudo-log-likelihood for a
masked one (Salazar et al. 2020). Each sentence stands alone between the tokens that training puts around a text.

`overall` is the mean over paradigms, as published. Intervals are bootstraps over pairs, within paradigms.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from research.core.errors import UserError
from research.core.types import Array, PyTree
from research.data import pairs
from research.data.sources import files
from research.data.tokenizer import Tokenizer
from research.evals import bootstrap, by_length
from research.objectives.base import Objective

ENDINGS = (".jsonl", ".jsonl.gz")
ARCHIVES = (".tar.gz", ".tgz", ".tar")


class Config(bootstrap.Settings):
  """As there."""


class Pair(NamedTuple):
  paradigm: str
  good: str
  bad: str


def make(cfg: Config, build: Callable[[int], Objective], tokenizer: Tokenizer, around: tuple[Sequence[int], Sequence[int]], length: int):
  """(apply, params, pairs) -> ({'overall': {'value', 'low', 'high'}, paradigm: …}, settings).

  Args:
    build: the objective for rows of a given length.
    around: ids before and after each sentence (`surroundings`).
    length: tokens that the model can read; a pair with a longer sentence is left out, and the settings say how many were.

  Raises:
    UserError: the objective defines no likelihood of a text, or no pair fits.
  """
  objective = build(length)
  if objective.logprob is None:
    raise UserError("this objective defines no likelihood of a text, so no sentence of a minimal pair can be found more probable than the other: "
                    "leave out --evals=minimal_pairs.")  # fmt: skip
  if not {"tokens", "segments"} <= set(objective.element_spec) or "source" in objective.element_spec:
    raise UserError("minimal pairs are single texts, and this objective scores a text given another one: leave out --evals=minimal_pairs.")
  before, after = (np.asarray(ids, np.int32) for ids in around)

  def evaluate(apply, params: PyTree, found: Sequence[Pair]) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    texts = sorted({text for pair in found for text in (pair.good, pair.bad)})
    ids = {text: np.concatenate([before, row, after]) for text, row in zip(texts, tokenizer.encode_batch(texts))}
    kept = [pair for pair in found if max(len(ids[pair.good]), len(ids[pair.bad])) <= length]
    if not kept:
      raise UserError(f"no pair fits into the {length} tokens that the model reads: score a model of longer rows.")
    needed = sorted({text for pair in kept for text in (pair.good, pair.bad)})
    scores = dict(zip(needed, _logprobs(build, apply, params, [ids[text] for text in needed], cfg.batch_size, length, tokenizer.pad)))
    right = np.array([scores[pair.good] > scores[pair.bad] for pair in kept], np.float64)
    return summarize([pair.paradigm for pair in kept], right, cfg.resamples), {"pairs": len(kept), "left_out": len(found) - len(kept)}

  return evaluate


def surroundings(tokenizer: Tokenizer, data: Any) -> tuple[list[int], list[int]]:
  """Ids before and after a text that stands alone, as the model knows them from training.

  An imported vocabulary says itself what surrounds a text. Else a text follows what begins it in the data, or what ended the text before it, so
  that its first token is predicted too.
  """
  before, after = tokenizer.around()
  if before or after:
    return before, after
  special = tokenizer.special
  if isinstance(data, pairs.Config):
    return [special["cls"]], [special["sep"]]
  if getattr(data, "prepend_bos", False):
    return [special["bos"]], []
  return ([special["eos"]] if getattr(data, "append_eos", False) else []), []


def _logprobs(build, apply, params: PyTree, rows: Sequence[np.ndarray], batch_size: int, length: int, pad: int) -> list[float]:
  """The log-probability of each row of ids, in nats."""

  def compute(size: int) -> tuple[by_length.Compute, int]:
    objective = build(size)
    score = jax.jit(functools.partial(_score, objective, apply))
    return functools.partial(score, params), objective.element_spec["tokens"].shape[0]  # one more than the model reads, where the next token is predicted

  return [float(value) for value in by_length.each(rows, compute, batch_size, length, pad)]


def _score(objective: Objective, apply, params: PyTree, tokens: Array, segments: Array) -> Array:
  """int32 [B, W] each -> [B]."""
  return objective.logprob(apply, params, {"tokens": tokens, "segments": segments}, jax.random.key(0))


def summarize(paradigms: Sequence[str], right: np.ndarray, resamples: int) -> dict[str, dict[str, float]]:
  """Whether each pair was judged rightly, float [pairs] -> the share by paradigm, and their mean under `overall`, in percent."""
  scores, values, resampled = {}, [], []
  for name in sorted(set(paradigms)):
    here = 100 * right[[paradigm == name for paradigm in paradigms]]
    values.append(here.mean())
    resampled.append(here[bootstrap.draws(len(here), resamples, len(values))].mean(1))
    scores[name] = bootstrap.entry(values[-1], resampled[-1])
  return {"overall": bootstrap.entry(np.mean(values), np.mean(resampled, axis=0)), **scores}


# --- the files ---------------------------------------------------------------------------------------------------------------


def read_pairs(path: str) -> list[Pair]:
  """The pairs of BLiMP-format JSON lines: a .jsonl file (also .gz), a folder of such files, or a .tar.gz of them.

  A line has `sentence_good` and `sentence_bad`; its paradigm is its `UID` or, without one, the name of its file.

  Raises:
    UserError: no such file, a damaged one, or a line that is no pair.
  """
  found = []
  with files.intact(path):
    for name, lines in _files(files.resolved(path)):
      stem = os.path.basename(name).removesuffix(".gz").removesuffix(".jsonl")
      found += [_pair(line, stem, f"{name}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
  if not found:
    raise UserError(f"--data={path} holds no minimal pair: name a .jsonl file (also .gz), a folder of them, or a .tar.gz.")
  return found


def first(pairs: Sequence[Pair], most: int) -> list[Pair]:
  """Of each paradigm the first `most` pairs."""
  seen: Counter[str] = Counter()
  kept = []
  for pair in pairs:
    seen[pair.paradigm] += 1
    if seen[pair.paradigm] <= most:
      kept.append(pair)
  return kept


def _files(path: str) -> Iterator[tuple[str, Iterator[str]]]:
  """The name and the lines of each file of pairs at `path`."""
  text = lambda file: io.TextIOWrapper(file, encoding="utf-8-sig")
  if os.path.isdir(path):
    for name in sorted(os.listdir(path)):
      if name.endswith(ENDINGS):
        yield from _files(os.path.join(path, name))
  elif not os.path.isfile(path):
    raise UserError(f"--data={path}: there is no such file or folder.")
  elif path.endswith(ARCHIVES):
    with tarfile.open(path) as archive:
      for member in sorted(archive.getmembers(), key=lambda member: member.name):
        if member.isfile() and member.name.endswith(ENDINGS[0]):
          yield member.name, text(archive.extractfile(member))
  elif path.endswith(ENDINGS):
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
      yield path, text(file)
  else:
    raise UserError(f"--data={path}: minimal pairs are read from .jsonl files (also .gz), a folder of them, or a .tar.gz.")


def _pair(line: str, stem: str, where: str) -> Pair:
  try:
    item: Mapping[str, Any] = json.loads(line)
    pair = Pair(str(item.get("UID") or stem), item["sentence_good"], item["sentence_bad"])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{where}: no JSON object with sentence_good and sentence_bad ({type(error).__name__}: {error}); mend or leave out that line.") from error
  if not all(isinstance(text, str) and text.strip() for text in (pair.good, pair.bad)):
    raise UserError(f"{where}: sentence_good and sentence_bad must be texts; mend or leave out that line.")
  return pair
