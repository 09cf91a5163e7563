"""Entities against a reading of all spans, and seqeval's where it is installed."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from research.core.errors import UserError
from research.evals import tagging
from tests.contracts import common
from tests.contracts.objective_test import Rows

TAGS = ("O", "B-a", "I-a", "B-b", "I-b")


def all_spans(tags, begins):
  """Every span of one type that begins as `begins(tags, i)` says, goes on with I- of its type, and cannot go on further."""
  found = set()
  for i, j in itertools.combinations(range(len(tags) + 1), 2):
    kind = tags[i][2:]
    inside = all(tag == f"I-{kind}" for tag in tags[i + 1 : j])
    ends = j == len(tags) or tags[j] != f"I-{kind}"
    if kind and begins(tags, i) and inside and ends:
      found.add((kind, i, j - 1))
  return found


def lenient(tags, i):
  """A B-, or an I- before which there is no word of its type."""
  return tags[i][0] == "B" or tags[i][0] == "I" and (i == 0 or tags[i - 1][2:] != tags[i][2:])


def strict(tags, i):
  return tags[i][0] == "B"


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_entities_of_every_sentence(length):
  for tags in itertools.product(TAGS, repeat=length):
    assert tagging.entities(tags) == all_spans(tags, lenient), tags
    assert tagging.strict_entities(tags) == all_spans(tags, strict), tags


def test_other_schemes_and_types_with_hyphens():
  assert tagging.entities(["B-x-y", "I-x-y", "E-x-y", "S-z", "I-z"]) == {("x-y", 0, 2), ("z", 3, 3), ("z", 4, 4)}
  assert tagging.entities(["B", "I", "O", "I"]) == {("_", 0, 1), ("_", 3, 3)}
  assert tagging.strict_entities(["B", "I", "O", "I"]) == {("_", 0, 1)}


def sentences(count, seed=0):
  rng = random.Random(seed)
  labels = [[rng.choice(TAGS) for _ in range(rng.randint(1, 7))] for _ in range(count)]
  return [[tag if rng.random() < 0.7 else rng.choice(TAGS) for tag in row] for row in labels], labels


def test_scores_are_counts_over_all_sentences():
  predicted, labels = sentences(40)
  found = tagging.summarize(predicted, labels, 50)
  for prefix, begins in (("", lenient), ("strict_", strict)):
    said = {(i, *span) for i, row in enumerate(predicted) for span in all_spans(row, begins)}
    given = {(i, *span) for i, row in enumerate(labels) for span in all_spans(row, begins)}
    precision, recall = len(said & given) / len(said), len(said & given) / len(given)
    assert found[prefix + "precision"]["value"] == pytest.approx(100 * precision) and found[prefix + "recall"]["value"] == pytest.approx(100 * recall)
    assert found[prefix + "f1"]["value"] == pytest.approx(200 * precision * recall / (precision + recall))
  words = [a == b for rows in zip(predicted, labels) for a, b in zip(*rows)]
  assert found["accuracy"]["value"] == pytest.approx(100 * np.mean(words))
  assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in found.values())


def test_scores_are_those_of_seqeval():
  metrics, scheme = pytest.importorskip("seqeval.metrics"), pytest.importorskip("seqeval.scheme")
  predicted, labels = sentences(60, 1)
  found = {name: entry["value"] / 100 for name, entry in tagging.summarize(predicted, labels, 5).items()}
  assert found["f1"] == pytest.approx(metrics.f1_score(labels, predicted))
  assert found["precision"] == pytest.approx(metrics.precision_score(labels, predicted))
  assert found["strict_f1"] == pytest.approx(metrics.f1_score(labels, predicted, mode="strict", scheme=scheme.IOB2))


def test_scores_at_their_ends_and_of_tags_that_are_no_entities():
  right = tagging.summarize([["B-a", "O"]], [["B-a", "O"]], 5)
  nothing = tagging.summarize([["O", "O"]], [["B-a", "O"]], 5)
  assert right["f1"]["value"] == right["strict_f1"]["value"] == 100
  assert nothing["f1"]["value"] == nothing["precision"]["value"] == 0 and nothing["accuracy"]["value"] == 50
  assert tagging.summarize([["NOUN"]], [["VERB"]], 5).keys() == {"accuracy"}
  assert "strict_f1" not in tagging.summarize([["S-a"]], [["S-a"]], 5)


def test_the_model_s_tags_are_scored_at_the_words_alone():
  objective, _, params, apply = common.build("tagging", classes=len(TAGS))
  arrays = common.rows(objective, 9)
  evaluate = lambda size: tagging.make(tagging.Config(size, 10), objective, TAGS)(apply, params, Rows(arrays))
  scores = evaluate(2)
  assert scores == evaluate(16)
  example = objective.corrupt(None, {name: array[0] for name, array in arrays.items()}, 0)
  assert scores["accuracy"]["value"] < 100 and int(example.weights["tags"].sum()) == (arrays["tags"][0] >= 0).sum()
  own = {**arrays, "tags": np.where(arrays["tags"] >= 0, np.asarray(objective.predict(apply, params, _example(objective, arrays))["tags"]), -1)}
  assert tagging.make(tagging.Config(4, 10), objective, TAGS)(apply, params, Rows(own))["accuracy"]["value"] == 100


def _example(objective, arrays):
  import jax

  return jax.vmap(lambda row: objective.corrupt(None, row, 0))(arrays)


def test_what_cannot_be_scored():
  with pytest.raises(UserError, match="objectives.tagging"):
    tagging.make(tagging.Config(), common.build("classification")[0], TAGS)
  with pytest.raises(UserError, match="names of the 9 tags are not known"):
    tagging.make(tagging.Config(), common.build("tagging")[0], ())
