"""Retrieval: of all partners in a split, is a row's own among the k that lie nearest? Recall@k in percent, in both directions.

As CLIP reports it (Radford et al. 2021, table 13), but each row has one partner; a partner with the same score as another's counts as found after it.
The interval is a bootstrap over rows; `chance` is what a random order would find.
"""

from __future__ import annotations

import numpy as np

from research.core.errors import UserError
from research.core.types import PyTree
from research.data import stream
from research.evals import answers, bootstrap
from research.objectives.base import Objective

KS = (1, 5, 10)


class Config(bootstrap.Settings):
  """As there."""


def make(cfg: Config, objective: Objective):
  """(apply, params, rows) -> ({'<a>_to_<b>@<k>': {'value', 'low', 'high'}}, settings).

  Raises:
    UserError: the objective gives no two vectors of a row.
  """
  if not fits(objective):
    raise UserError("--evals=retrieval finds the partners of rows that have two vectors: those of objectives.image_text, and of objectives.contrastive with "
                    "texts of 2 or more.")  # fmt: skip

  def evaluate(apply, params: PyTree, rows: stream.Rows):
    found, _ = answers.collect(objective, apply, params, rows, cfg.batch_size)
    scores = recalls(found, cfg.resamples)
    return scores, {"chance": ", ".join(f"@{k} {100 * min(1, k / len(rows)):.2f}" for k in KS)}

  return evaluate


def fits(objective: Objective) -> bool:
  """Whether a row of the objective has two vectors."""
  return objective.predict is not None and objective.partners


def recalls(vectors: dict[str, np.ndarray], resamples: int) -> dict[str, dict[str, float]]:
  """Two names -> the vectors [rows, D] of each."""
  (one, a), (other, b) = sorted(vectors.items())
  similar = np.asarray(a, np.float64) @ np.asarray(b, np.float64).T
  scores = {}
  for name, table in ((f"{one}_to_{other}", similar), (f"{other}_to_{one}", similar.T)):
    ranks = rank_of_own(table)
    draws = bootstrap.draws(len(ranks), resamples)
    for k in KS:
      hits = 100.0 * (ranks < k)
      scores[f"{name}@{k}"] = bootstrap.entry(hits.mean(), hits[draws].mean(1))
  return scores


def rank_of_own(similar: np.ndarray) -> np.ndarray:
  """How many others score as high as a row's own partner, or higher: [rows, rows] -> int [rows]."""
  own = np.diagonal(similar)[:, None]
  return (similar >= own).sum(1) - 1
