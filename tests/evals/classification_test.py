"""Scores of classes and numbers against their definitions, counted naively, and scikit-learn's where it is installed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from research.core.errors import UserError
from research.evals import answers, classification
from tests.contracts import common
from tests.contracts.objective_test import Rows


def naive(predicted, labels, count):
  """Accuracy, F1 (of class 1 where there are two, else the mean over the classes that occur) and Matthews' correlation, × 100."""
  pairs = list(zip(predicted, labels))

  def f1(c):
    hits = sum(p == c and t == c for p, t in pairs)
    precision = hits / max(1, sum(p == c for p, _ in pairs))
    recall = hits / max(1, sum(t == c for _, t in pairs))
    return 2 * precision * recall / (precision + recall) if hits else 0.0

  # Gorodkin 2004: the correlation of the indicators of all classes.
  x, y = np.eye(count)[predicted], np.eye(count)[labels]
  covariance = lambda a, b: sum(((a[:, c] - a[:, c].mean()) * (b[:, c] - b[:, c].mean())).mean() for c in range(count))
  below = math.sqrt(covariance(x, x) * covariance(y, y))
  present = sorted({*predicted, *labels})
  return {
      "accuracy": 100 * sum(p == t for p, t in pairs) / len(pairs),
      **({"f1": 100 * f1(1)} if count == 2 else {"macro_f1": 100 * sum(map(f1, present)) / len(present)}),
      "matthews": 100 * covariance(x, y) / below if below else 0.0,
  }


@pytest.mark.parametrize("count, used", [(2, 2), (4, 4), (5, 3)])
def test_scores_are_their_definitions(count, used):
  rng = np.random.default_rng(count)
  labels = rng.integers(0, used, 60)
  predicted = np.where(rng.random(60) < 0.5, labels, rng.integers(0, used, 60))
  found = classification.classes(predicted, labels, count, 50)
  wanted = naive(predicted, labels, count)
  assert found.keys() == wanted.keys()
  for name, entry in found.items():
    assert entry["value"] == pytest.approx(wanted[name], abs=1e-9) and entry["low"] <= entry["value"] <= entry["high"]


def test_scores_are_those_of_scikit_learn():
  metrics = pytest.importorskip("sklearn.metrics")
  rng = np.random.default_rng(0)
  for count in (2, 4):
    labels, predicted = rng.integers(0, count, 80), rng.integers(0, count, 80)
    found = {name: entry["value"] / 100 for name, entry in classification.classes(predicted, labels, count, 5).items()}
    f1 = metrics.f1_score(labels, predicted) if count == 2 else metrics.f1_score(labels, predicted, average="macro")
    assert found["f1" if count == 2 else "macro_f1"] == pytest.approx(f1)
    assert found["matthews"] == pytest.approx(metrics.matthews_corrcoef(labels, predicted))


def test_scores_at_their_ends():
  labels = np.array([0, 1, 1, 0])
  right, wrong, one = (
      {name: entry["value"] for name, entry in classification.classes(np.array(answer), labels, 2, 5).items()} for answer in ([0, 1, 1, 0], [1, 0, 0, 1], [0] * 4)
  )
  assert right == {"accuracy": 100, "f1": 100, "matthews": 100} and wrong == {"accuracy": 0, "f1": 0, "matthews": -100}
  assert one == {"accuracy": 50, "f1": 0, "matthews": 0}


def test_correlations_of_numbers():
  rng = np.random.default_rng(1)
  labels = rng.normal(size=40).round(1)
  predicted = np.exp(labels) + rng.normal(size=40)
  found = classification.numbers(predicted, labels, 20)
  mean = lambda x: x - x.mean()
  pearson = lambda x, y: mean(x) @ mean(y) / math.sqrt((mean(x) @ mean(x)) * (mean(y) @ mean(y)))
  ranks = lambda x: np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x])
  assert found["pearson"]["value"] == pytest.approx(100 * pearson(predicted, labels))
  assert found["spearman"]["value"] == pytest.approx(100 * pearson(ranks(predicted), ranks(labels)))
  assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in found.values())
  with pytest.raises(UserError, match="all equal"):
    classification.numbers(np.ones(4), np.arange(4.0), 5)


def test_answers_are_the_objective_s_for_every_row_whatever_the_batch():
  objective, _, params, apply = common.build("classification", classes=3, pool="mean")
  arrays = common.rows(objective, 11)
  scores = [classification.make(classification.Config(size, 10), objective)(apply, params, Rows(arrays)) for size in (1, 4, 16)]
  assert scores[0] == scores[1] == scores[2]
  found, example = answers.collect(objective, apply, params, Rows(arrays), 4)
  np.testing.assert_array_equal(example.targets["class"][:, 0], arrays["label"])
  assert found["class"].shape == (11,) and (found["scores"].argmax(1) == found["class"]).all()
  assert scores[0]["accuracy"]["value"] == pytest.approx(100 * (found["class"] == arrays["label"]).mean())


def test_only_answers_can_be_scored():
  objective, *_ = common.build("masked_lm")
  with pytest.raises(UserError, match="objectives.classification"):
    classification.make(classification.Config(), objective)
