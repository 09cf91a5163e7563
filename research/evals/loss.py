"""The objective's own loss and metrics over a whole split: what training reports as `valid`.

Every row once, each corrupted in one fixed way, the last batch padded, sums divided at the end: the score depends neither on the batch
size nor on the padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax

from research.core.types import Array, Batch, Mean, PyTree
from research.data import stream
from research.objectives.base import Objective, corrupted, finish
from research.parallel import mesh as meshes


def make_step(apply: Callable, objective: Objective) -> Callable[[PyTree, Batch, Array, Array], dict[str, Mean]]:
  """(params, batch, key, step) -> sums over the batch: the loss terms as `loss_<term>`, and metrics; without dropout.

  `key` is fixed for a split, so its rows are corrupted in the same way at every evaluation.
  """

  def step(params: PyTree, batch: Batch, key: Array, at: Array) -> dict[str, Mean]:
    example = corrupted(objective, key, batch, at)
    terms, metrics = objective.loss(apply, params, example, None, False)
    return {**{f"loss_{term}": mean for term, mean in terms.items()}, **metrics}

  return step


def run(step: Callable, params: PyTree, objective: Objective, rows: stream.Rows, batch_size: int, mesh, key: Array, at: Array) -> dict[str, float]:
  """Loss and metrics over all of `rows`; for an objective whose one term is a likelihood of text `perplexity` = e^loss too.

  Args:
    step: `make_step`, jitted.
    batch_size: rows at a time over all processes; a multiple of what the mesh splits rows into.
    at: the training step, for objectives whose corruption follows a schedule.
  """
  return values(objective, sums(step, params, rows, batch_size, mesh, key, at))


def sums(step: Callable, params: PyTree, rows: stream.Rows, batch_size: int, mesh, key: Array, at: Array) -> dict[str, Mean]:
  """What `step` gives, added up over all of `rows`, on the host. Arguments as of `run`."""
  total: dict[str, Mean] | None = None
  count, own = -(-len(rows) // batch_size), meshes.own_rows(mesh, batch_size)
  with stream.prefetch(lambda k: stream.batch(rows, k, batch_size, own), 0, count) as batches:
    for batch in batches:
      found = step(params, meshes.put(batch, mesh), key, at)
      total = found if total is None else jax.tree.map(lambda a, b: a + b, total, found)
  return jax.device_get(total)


def values(objective: Objective, total: dict[str, Mean]) -> dict[str, float]:
  """The numbers that `sums` stand for."""
  found = finish(objective, total)
  if len(objective.factors) == 1 and objective.logprob is not None:
    found["perplexity"] = math.exp(min(found["loss"], 700.0))
  return found
