"""The answers of an objective's `predict` for a whole split, and what they should have been."""

from __future__ import annotations

import jax
import numpy as np

from research.core.types import PyTree
from research.data import stream
from research.objectives.base import Example, Objective, corrupted


def collect(objective: Objective, apply, params: PyTree, rows: stream.Rows, batch_size: int) -> tuple[dict[str, np.ndarray], Example]:
  """Name -> answers [rows, …], and the rows' Example without its inputs, as numpy arrays; rows that only pad a batch are left out."""

  @jax.jit
  def step(params: PyTree, batch):
    example = corrupted(objective, jax.random.key(0), batch, 0)
    return objective.predict(apply, params, example), example._replace(inputs=None)

  parts = []
  for k in range(-(-len(rows) // batch_size)):
    batch = stream.batch(rows, k, batch_size)
    parts.append(jax.tree.map(lambda x, valid=batch.valid: np.asarray(x)[valid], step(params, batch)))
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)
