"""What one run writes down while a program trains it: metrics, alarms, the records of its checkpoints, and `summary.json` at the end."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from research.core import config as configs
from research.core.errors import UserError
from research.core.trees import size
from research.core.types import Mean
from research.objectives.base import tokens_of_row
from research.parallel import mesh as meshes
from research.training import alarms, energy, monitor, watch
from research.training.restore import TOKENIZER

if TYPE_CHECKING:
  from research.training.loop import Run

SUMMARY = "summary.json"


class Rows(NamedTuple):
  """What a run reads."""

  train: Any  # endless
  valid: Any
  baseline: str | None  # name of what a model must beat
  scores: dict[str, float]  # of the baseline: its loss in nats, and what else is known
  cut: dict[str, int]  # split -> records that were cut to the row's length


def rows_of(run: Run) -> Rows:
  data, cfg, spec = configs.module(run.cfg.data), run.cfg.data, run.objective.element_spec
  train, valid = data.train_rows(run.prepared, cfg, spec), data.valid_rows(run.prepared, cfg, spec)
  name, scores = data.baseline(run.prepared, cfg, spec) if hasattr(data, "baseline") else (None, {})
  return Rows(train, valid, name, scores, {split: rows.cut for split, rows in (("train", train), ("valid", valid)) if hasattr(rows, "cut")})


def sign(run: Run, config: Any, workdir: str) -> None:
  """Writes down what the run is."""
  with open(os.path.join(workdir, "config.json"), "w", encoding="utf-8") as file:
    file.write(configs.record(config))
  run.prepared.tokenizer.save(os.path.join(workdir, TOKENIZER))


class Book:
  """The folder of one run from the first step of this process to its last. Of several processes only the first writes."""

  def __init__(self, run: Run, config: Any, workdir: str, rows: Rows, start: int, meta: Mapping[str, Any] | None, began: float, clock: watch.Watch,
               say: Callable[[str], None], leads: bool = True, bar: bool = True, share: float = 1.0):  # fmt: skip
    """
    Args:
      config: the resolved ConfigDict.
      start: the step that this process goes on from; what was logged after it is dropped.
      meta: the record of the checkpoint that it goes on from; None where it starts afresh.
      began: when this process did, by time.perf_counter().
      clock: counts the seconds of each part of the work.
      bar: on a terminal a progress bar takes the place of lines.
      share: of the process's energy that is this run's.
    """
    self._run, self._config, self._workdir, self._rows, self._clock = run, config, workdir, rows, clock
    self._began = began - (0.0 if meta is None else meta["wall_seconds"])
    self._board = monitor.Monitor(workdir, run.cfg.log, run.cfg.steps, start, say, bar) if leads else monitor.Mute()
    self._alarms = alarms.Alarms(rows.baseline, rows.scores.get("loss"))
    self._lines: deque[dict[str, float]] = deque(maxlen=alarms.STREAK + 1)
    self._meter, self._share, self._used = energy.Meter(), share, {} if meta is None else meta.get("energy_joules") or {}

  def train(self, step: int, metrics: Mapping[str, Any], steps_per_second: float | None, work: float, peak: float) -> None:
    """A line of training metrics, which are on the host.

    Args:
      steps_per_second: since the line before; None where no step was timed.
      work: operations of a step.
      peak: operations per second of all devices; 0: not known.

    Raises:
      UserError: a long streak of updates was skipped.
    """
    cfg = self._run.cfg
    self._meter.joules()  # often enough that no counter goes round unseen
    values = {name: float(m.value() if isinstance(m, Mean) else m) for name, m in metrics.items()}
    if steps_per_second is not None:
      tokens = tokens_of_row(self._run.objective, cfg.data.length)
      values |= {"tokens_per_second" if tokens else "images_per_second": steps_per_second * cfg.batch_size * (tokens or 1)}
      if peak:
        values["mfu"] = steps_per_second * work / peak
    self._board.write(step, "train", values)
    for line in self._alarms.train(values):
      self._board.say(line)
    self._lines.append({"step": step, "skipped": values["skipped"]})
    if skipped := alarms.only_skips(self._lines):
      raise UserError(f"the last {skipped} updates were all skipped (loss or gradient not finite, or above optimizer.spike): "
                      f"lower the learning rate; checkpoints before step {step} are kept in '{self._workdir}'.")  # fmt: skip

  def valid(self, step: int, values: Mapping[str, float]) -> None:
    """A line of validation metrics."""
    self._board.write(step, "valid", values)
    first = next(iter(self._run.objective.factors))  # of several terms the first is that of the text
    for line in self._alarms.valid(step, values.get(f"loss_{first}", values["loss"])):
      self._board.say(line)

  def record(self, step: int) -> dict[str, Any]:
    """What a checkpoint tells of itself."""
    prepared = self._run.prepared
    return {"step": step, "config": json.loads(configs.record(self._config)), "config_hash": configs.digest(self._config), "data_hash": prepared.digest,
            "tokenizer": prepared.tokenizer.digest, "labels": list(getattr(prepared, "labels", ())), "batch_size": self._run.cfg.batch_size,
            "wall_seconds": time.perf_counter() - self._began, "seconds": self._clock.seconds(),
            "energy_joules": self._energy()}  # fmt: skip

  def _energy(self) -> dict[str, float] | None:
    """Of the process that leads, over all restarts from their checkpoints; None: no counter can be read."""
    now = self._meter.joules()
    return {kind: self._used.get(kind, 0.0) + self._share * now.get(kind, 0.0) for kind in {**self._used, **now}} or None

  def close(self) -> None:
    """No more lines come."""
    self._board.close()

  def summary(self, step: int, work: float, first_step: float | None, skipped: int, stopped_by: str | None) -> dict[str, Any]:
    """Writes `summary.json` and `loss.png`, and returns what it wrote.

    Args:
      first_step: seconds from the start of this process to its first step; None where it made none.
      stopped_by: the signal that ended it before its last step.
    """
    rows, seconds = self._rows, self._clock.seconds()
    summary = _summary(self._run, self._config, self._workdir, step, work)
    summary |= {"wall_seconds": time.perf_counter() - self._began, "first_step_seconds": first_step, "baseline": rows.baseline, "skipped": skipped, "stopped_by": stopped_by}
    summary |= {"goodput": watch.goodput(seconds), "seconds": seconds, "energy_joules": self._energy()}
    summary |= {**({"cut": rows.cut} if rows.cut else {}), **({"alarms": self._alarms.said} if self._alarms.said else {})}
    summary |= {rows.baseline: rows.scores} if rows.baseline else {}
    path = os.path.join(self._workdir, SUMMARY)
    with open(path + ".tmp", "w", encoding="utf-8") as file:
      json.dump(summary, file, indent=2)
    os.replace(path + ".tmp", path)
    monitor.draw(self._workdir, os.path.join(self._workdir, "loss.png"), {rows.baseline: rows.scores["loss"]} if rows.baseline else {})
    return summary


def read_summary(workdir: str) -> dict[str, Any]:
  """What a run has left in `summary.json`; empty where it has left nothing yet."""
  try:
    with open(os.path.join(workdir, SUMMARY), encoding="utf-8") as file:
      found = json.load(file)
  except (FileNotFoundError, ValueError):  # not there, or cut off by a full disk
    return {}
  return found if isinstance(found, dict) else {}


def _summary(run: Run, config: Any, workdir: str, step: int, work: float) -> dict[str, Any]:
  lines = monitor.read_metrics(workdir)
  of = lambda split: [{k: v for k, v in line.items() if k != "split"} for line in lines if line["split"] == split]
  train_lines, valid_lines = of("train"), of("valid")
  last = train_lines[-1] if train_lines else {}
  best = min(valid_lines, key=lambda line: line["loss"], default=None)
  import research

  devices = run.mesh.devices.flatten()
  return {
      "step": step,
      "train": last or None,
      "valid": valid_lines[-1] if valid_lines else None,
      "best": best and {"step": best["step"], "valid": best},
      "parameters": size(run.state.params),
      "tokens": step * run.cfg.batch_size * tokens_of_row(run.objective, run.cfg.data.length),
      "flops": step * work,
      "tokens_per_second": last.get("tokens_per_second"),  # null where rows are images alone
      "mfu": last.get("mfu"),
      "device": {"kind": devices[0].device_kind, "count": int(devices.size)},
      "mesh": meshes.shape(run.mesh),
      "config_hash": configs.digest(config),
      "data_hash": run.prepared.digest,
      "version": research.__version__,
  }
