"""Tagging: which entities, spans of words with a type, does the model find? Precision, recall and F1 over all entities (micro), × 100.

An entity counts where its first word, last word and type are all right (Tjong Kim Sang and De Meulder 2003, CoNLL-2003). How tags become entities
is that of seqeval (Nakayama 2018): `f1` reads them as conlleval does, where an I- without its B- begins an entity too; `strict_f1` is its mode
'strict' with scheme IOB2, where only B- begins one and an I- of the same type goes on. Sentences are scored as rows hold them: words that were cut
off are not counted, and the settings say of how many records. The interval is a bootstrap over sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from research.core.errors import UserError
from research.core.types import PyTree
from research.data import stream
from research.evals import answers, bootstrap
from research.objectives.base import Objective

Entity = tuple[str, int, int]  # type, first word, last word


class Config(bootstrap.Settings):
  """As there."""


def make(cfg: Config, objective: Objective, labels: Sequence[str]):
  """(apply, params, rows) -> {score: {'value', 'low', 'high'}}.

  Args:
    labels: the names of the tags in the order of their numbers.

  Raises:
    UserError: the objective gives rows no tags, or nothing tells their names.
  """
  if objective.predict is None or "tags" not in objective.element_spec:
    raise UserError("--evals=tagging scores the answers of objectives.tagging, which this run was not trained with.")
  if len(labels) != objective.classes:
    raise UserError(f"the names of the {objective.classes} tags are not known ({len(labels)} are): name all in data.labels, in the order of their numbers.")

  def evaluate(apply, params: PyTree, rows: stream.Rows) -> dict[str, dict[str, float]]:
    found, example = answers.collect(objective, apply, params, rows, cfg.batch_size)
    named = lambda tags, weights: [[labels[i] for i in row[kept > 0]] for row, kept in zip(tags, weights)]
    weights = example.weights["tags"]
    return summarize(named(found["tags"], weights), named(example.targets["tags"], weights), cfg.resamples)

  return evaluate


def summarize(predicted: Sequence[Sequence[str]], labels: Sequence[Sequence[str]], resamples: int) -> dict[str, dict[str, float]]:
  """The tags of each sentence, twice -> the share of right tags, and precision, recall and F1 of entities where the tags tell of such."""
  draws = bootstrap.draws(len(labels), resamples)
  right = np.array([sum(a == b for a, b in zip(*pair)) for pair in zip(predicted, labels)], np.float64)
  words = np.array([len(row) for row in labels], np.float64)
  scores = {"accuracy": _ratio(100 * right, words, draws)}
  if not all(_is_entity_tag(tag) for rows in (predicted, labels) for row in rows for tag in row):
    return scores
  for prefix, spans in (("", entities), ("strict_", strict_entities)):
    if prefix and any(tag[0] in "ES" for rows in (predicted, labels) for row in rows for tag in row):
      continue  # no tags of IOB2
    common, said, given = _counts(predicted, labels, spans)
    scores[f"{prefix}precision"] = _ratio(100 * common, said, draws)
    scores[f"{prefix}recall"] = _ratio(100 * common, given, draws)
    scores[f"{prefix}f1"] = _ratio(200 * common, said + given, draws)
  return scores


def _ratio(above: np.ndarray, below: np.ndarray, draws: np.ndarray) -> dict[str, float]:
  """Σ above / Σ below over sentences, with its interval; 0 where there is nothing below."""
  divide = lambda a, b: np.divide(a, b, out=np.zeros_like(a), where=b > 0)
  return bootstrap.entry(divide(above.sum(keepdims=True), below.sum(keepdims=True))[0], divide(above[draws].sum(1), below[draws].sum(1)))


def _counts(predicted, labels, spans: Callable[[Sequence[str]], set[Entity]]) -> np.ndarray:
  """Of each sentence how many entities are in both, were said, and are there, float64 [3, sentences]."""
  found = [(spans(a), spans(b)) for a, b in zip(predicted, labels)]
  return np.array([(len(a & b), len(a), len(b)) for a, b in found], np.float64).T


def _is_entity_tag(tag: str) -> bool:
  """O, or B, I, E or S (end, single), which a hyphen parts from the type."""
  return tag in ("O", "B", "I", "E", "S") or tag[:2] in ("B-", "I-", "E-", "S-")


def entities(tags: Sequence[str]) -> set[Entity]:
  """The entities of a sentence as conlleval sees them: a change of type, a B-, or what cannot go on, ends one; anything but O may begin one."""
  found, begin, before, kind_before = set(), 0, "O", ""
  for i, name in enumerate([*tags, "O"]):
    tag, kind = name[0], name[1:].removeprefix("-") or "_"
    changes = kind != kind_before
    if before in "ES" or before in "BI" and (tag in "BSO" or changes):
      found.add((kind_before, begin, i - 1))
    if tag in "BS" or tag in "EI" and (before in "ESO" or changes):
      begin = i
    before, kind_before = tag, kind
  return found


def strict_entities(tags: Sequence[str]) -> set[Entity]:
  """The entities of a sentence by IOB2 alone: a B- and the I- of its type that follow."""
  found, i = set(), 0
  while i < len(tags):
    kind, begin = tags[i][1:].strip("-") or "_", i
    i += 1
    if tags[begin][0] == "B":
      while i < len(tags) and tags[i][0] == "I" and (tags[i][1:].strip("-") or "_") == kind:
        i += 1
      found.add((kind, begin, i - 1))
  return found
