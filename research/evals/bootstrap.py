"""Bootstrap intervals (Efron 1979): the score over resamples of the rows, drawn with replacement; 95 % of the values lie inside."""

from __future__ import annotations

import numpy as np


def draws(count: int, resamples: int, seed: int = 0) -> np.ndarray:
  """int [resamples, count]: the rows of each resample, the same at every call, so that scores of the same rows can be compared."""
  return np.random.default_rng(seed).integers(0, count, (resamples, count))


def entry(value: float, resampled: np.ndarray) -> dict[str, float]:
  """A score with the bounds of its interval, from its values [resamples]."""
  low, high = np.quantile(resampled, [0.025, 0.975])
  return {"value": float(value), "low": float(low), "high": float(high)}
