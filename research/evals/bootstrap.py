"""Bootstrap intervals (Efron 1979): the score over resamples of the rows, drawn with replacement; 95 % of the values lie inside unless said otherwise."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of an evaluation whose scores have such intervals."""

  batch_size: int = 32  # rows at a time; no score depends on it
  resamples: int = 1000


def draws(count: int, resamples: int, seed: int = 0) -> np.ndarray:
  """int [resamples, count]: the rows of each resample, the same at every call, so that scores of the same rows can be compared."""
  return np.random.default_rng(seed).integers(0, count, (resamples, count))


def interval(resampled: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
  """The bounds of the middle `level` of the values [..., resamples]: a percentile interval."""
  low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=-1)
  return low, high


def entry(value: float, resampled: np.ndarray) -> dict[str, float]:
  """A score with the bounds of its interval, from its values [resamples]."""
  low, high = interval(resampled)
  return {"value": float(value), "low": float(low), "high": float(high)}
