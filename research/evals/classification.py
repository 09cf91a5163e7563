"""Classification and regression: a model's answers against the labels of a whole split.

Of classes: accuracy, F1 and Matthews' correlation (Matthews 1975; of several classes Gorodkin 2004, R_K). F1 of two classes is that of class 1,
of more the mean over the classes (macro), which are those that a label or an answer has; as scikit-learn's f1_score and matthews_corrcoef.
Of numbers: Pearson's and Spearman's correlation. All × 100, as GLUE reports them (Wang et al. 2019); the interval is a bootstrap over records.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from research.core.errors import UserError
from research.core.types import PyTree
from research.data import stream
from research.evals import answers, bootstrap
from research.objectives.base import Objective

Scores = dict[str, dict[str, float]]


class Config(bootstrap.Settings):
  """As there."""


def make(cfg: Config, objective: Objective):
  """(apply, params, rows) -> {score: {'value', 'low', 'high'}}.

  Raises:
    UserError: the objective gives rows no label.
  """
  if objective.predict is None or "label" not in objective.element_spec:
    raise UserError("--evals=classification scores the answers of objectives.classification, image_classification and similarity, which this run was not trained with.")

  def evaluate(apply, params: PyTree, rows: stream.Rows) -> Scores:
    found, example = answers.collect(objective, apply, params, rows, cfg.batch_size)
    (labels,) = (np.asarray(targets)[:, 0] for targets in example.targets.values())
    if "score" in found:
      return numbers(found["score"], labels, cfg.resamples)
    return classes(found["class"], labels, objective.classes, cfg.resamples)

  return evaluate


def classes(predicted: np.ndarray, labels: np.ndarray, count: int, resamples: int) -> Scores:
  """Numbers of classes, int [rows] each, of `count` classes -> accuracy, f1 (two classes) or macro_f1, matthews."""
  cells = labels * count + predicted
  table = lambda rows: np.bincount(cells[rows], minlength=count * count).reshape(count, count).astype(np.float64)
  return _intervals(len(labels), resamples, lambda rows: of_table(table(rows)))


def of_table(table: np.ndarray) -> dict[str, float]:
  """The scores of a confusion matrix [label, predicted]; a quotient over nothing is 0."""
  total, right = table.sum(), np.diag(table)
  given, said = table.sum(1), table.sum(0)
  f1 = 2 * right / np.maximum(given + said, 1)
  covariance = total * right.sum() - given @ said
  spread = (total**2 - given @ given) * (total**2 - said @ said)
  found = {"accuracy": right.sum() / total}
  found |= {"f1": f1[1]} if len(table) == 2 else {"macro_f1": f1[given + said > 0].mean()}
  found["matthews"] = covariance / np.sqrt(spread) if spread > 0 else 0.0
  return {name: 100 * float(value) for name, value in found.items()}


def numbers(predicted: np.ndarray, labels: np.ndarray, resamples: int) -> Scores:
  """Numbers [rows] each -> pearson, spearman.

  Raises:
    UserError: all predictions or all labels are equal, or a prediction is not finite.
  """
  from scipy import stats

  for what, values in (("predictions", predicted), ("scores", labels)):
    if not np.isfinite(values).all() or not np.ptp(values):
      raise UserError(f"the {len(values)} {what} are all equal or not finite, so they have no correlation: take another checkpoint or other records.")
  predicted, labels = predicted.astype(np.float64), labels.astype(np.float64)

  def correlations(rows) -> dict[str, float]:
    x, y = predicted[rows], labels[rows]
    if not np.ptp(x) or not np.ptp(y):
      return {"pearson": np.nan, "spearman": np.nan}
    return {"pearson": 100 * stats.pearsonr(x, y).statistic, "spearman": 100 * stats.spearmanr(x, y).statistic}

  return _intervals(len(labels), resamples, correlations)


def _intervals(count: int, resamples: int, scores) -> Scores:
  """Each score of all rows, with its interval; resamples that have none are left out."""
  whole, many = scores(slice(None)), [scores(rows) for rows in bootstrap.draws(count, resamples)]
  resampled: Mapping[str, np.ndarray] = {name: np.array([found[name] for found in many]) for name in whole}
  return {name: bootstrap.entry(value, resampled[name][np.isfinite(resampled[name])]) for name, value in whole.items()}
