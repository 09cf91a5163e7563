"""Tries meshes, rematerialisation and batch sizes for one config, and ranks them by predicted time for a row."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from research.core import config as configs
from research.core.errors import UserError
from research.core.overrides import load
from research.parallel import mesh as meshes
from research.parallel import topology
from research.training import planning


class Try(NamedTuple):
  mesh: dict[str, int]
  remat: str | None  # None: the config's
  batch_size: int
  plan: planning.Plan | None
  reason: str  # why it cannot be; empty where it can

  def row_seconds(self) -> float:
    return self.plan.step_seconds / self.batch_size

  def record(self) -> dict[str, Any]:
    return self._asdict() | {"plan": self.plan and self.plan.record()}


def factorisations(count: int, parts: int) -> Iterator[tuple[int, ...]]:
  """All ways to write `count` as an ordered product of `parts` numbers."""
  if parts == 1:
    yield (count,)
    return
  for first in range(1, count + 1):
    if count % first == 0:
      for rest in factorisations(count // first, parts - 1):
        yield (first, *rest)


def run(path: str, overrides: Iterable[str], target: topology.Topology, vocab_size: int | None, axes: Sequence[str], remats: Sequence[str], batches: Sequence[int],
        say: Callable[[str], None]) -> list[Try]:  # fmt: skip
  """Compiles each candidate; those that fit come first, the fastest for a row leading, then those that do not, with the reason.

  Raises:
    UserError: an axis that no mesh has, or a config that none of the changes concerns.
  """
  for axis in axes:
    if axis not in meshes.AXES:
      raise UserError(f"--axes={axis}: a mesh has the axes {', '.join(meshes.AXES)}.")
  overrides, tried = list(overrides), []
  load(path, overrides)  # a mistake in the config itself is no candidate's
  for sizes, remat, rows in itertools.product(factorisations(len(target.devices), len(axes)), remats or [None], batches or [None]):
    mesh = dict.fromkeys(meshes.AXES, 1) | dict(zip(axes, sizes))
    changes = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    changes += [f"--config.model.remat={remat}"] if remat else []
    changes += [f"--config.batch_size={rows}"] if rows else []
    cfg = configs.typed(load(path, [*overrides, *changes]))
    try:
      plan, reason = planning.make(cfg, target, vocab_size), ""
      if not plan.fits:
        reason = "does not fit into memory" + (f", by {planning.gigabytes(plan.over)}" if plan.over else "")
    except UserError as error:
      plan, reason = None, str(error)
    tried.append(Try(mesh, remat, cfg.batch_size, plan, reason))
    say(f"{len(tried)}: {_named(tried[-1])}: {reason or planning.milliseconds(plan.step_seconds)}")
  return sorted(tried, key=lambda t: (bool(t.reason), t.row_seconds() if t.plan else float("inf")))


def _named(tried: Try) -> str:
  return f"{meshes.describe(tried.mesh)}, batch {tried.batch_size}" + (f", remat {tried.remat}" if tried.remat else "")


def table(tried: Sequence[Try]) -> str:
  lines = ["", f"{'step at least':>14}{'MFU':>8}{'memory':>12}  bound by"]
  for t in tried:
    if t.reason:
      lines.append(f"{'—':>14}{'':>8}{'':>12}  {_named(t)}: {t.reason}")
    else:
      bound = max(t.plan.seconds, key=t.plan.seconds.get)
      lines.append(f"{planning.milliseconds(t.plan.step_seconds):>14}{100 * t.plan.mfu:>6.1f} %{planning.gigabytes(t.plan.memory['peak']):>12}  {bound:<8} {_named(t)}")
  return "\n".join(lines)
