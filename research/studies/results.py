"""What a study's folder holds: `study.json`, which the sweep wrote, and a workdir for each run. Only read here, and without JAX."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.training import alarms, monitor

STUDY = "study.json"
RUNS = "runs"  # the folder of the runs' workdirs
LOG = "log.txt"  # what a run has printed
KEYS = ("name", "question", "hypothesis", "base", "factors", "arms", "blocks", "budget", "metrics", "decides", "tuning", "runs")


@dataclasses.dataclass(frozen=True)
class Run:
  arm: str
  block: int
  folder: str  # as seen from the study's folder; empty: not planned yet
  state: str  # done, diverged, unscored, dropped, chosen (in tuning, before its end), unfinished, failed, missing; scores count of the first alone
  note: str  # what there is to say of its state
  plan: Mapping[str, Any]  # what study.json says of it
  config: Mapping[str, Any]  # empty: not started
  summary: Mapping[str, Any]  # empty: not ended
  evaluations: Mapping[str, Any]

  def found(self, metric: str) -> Any:
    """What its files say of a metric, whatever its state; None: nothing."""
    head, _, rest = metric.partition(".")
    return at(self.evaluations, rest) if head == "evaluations" else at(self.summary, metric)

  def score(self, metric: str) -> float:
    """The metric of a run that is done; nan else."""
    value = self.found(metric) if self.state == "done" else None
    return float(value) if isinstance(value, (int, float)) else math.nan

  @property
  def settled(self) -> bool:
    """It is done as far as the study wants it."""
    return self.state in ("done", "dropped", "chosen")

  @property
  def ended(self) -> bool:
    """It has reached its last step, whatever its score."""
    return self.state in ("done", "diverged", "unscored") and bool(self.summary)


@dataclasses.dataclass(frozen=True)
class Results:
  folder: str
  study: Mapping[str, Any]
  runs: tuple[Run, ...]  # of the comparison, in the study's order
  tuning: tuple[Run, ...]  # those that chose a value for each arm

  @property
  def arms(self) -> list[str]:
    return [arm["name"] for arm in self.study["arms"]]

  @property
  def blocks(self) -> list[int]:
    return list(self.study["blocks"])

  @property
  def baseline(self) -> int:
    """The place of the arm that the others are compared with."""
    return self.arms.index(self.study["decides"]["baseline"])

  def of(self, arm: str) -> list[Run]:
    return [run for run in self.runs if run.arm == arm]

  def scores(self, metric: str) -> np.ndarray:
    """float [arms, blocks], nan where a run has no score."""
    table = {(run.arm, run.block): run.score(metric) for run in self.runs}
    return np.array([[table.get((arm, block), math.nan) for block in self.blocks] for arm in self.arms])

  def cost(self, arm: str, name: str) -> float:
    """What a run of an arm takes: step, tokens, flops or parameters of the summary, mean over the ended runs, and what was planned where none has ended; or `targets`,
    tokens and labels with a loss, by the mean over logged steps. nan: not known."""
    ended = [run for run in self.of(arm) if run.ended]
    if name == "targets":
      found = [targets for run in ended if math.isfinite(targets := _targets(os.path.join(self.folder, run.folder)) * run.summary["step"])]
    else:
      found = [run.summary[name] for run in ended if run.summary.get(name) is not None]
    planned = self.arm(arm).get({"step": "steps"}.get(name, name))
    return float(np.mean(found)) if found else math.nan if planned is None else float(planned)

  def arm(self, name: str) -> Mapping[str, Any]:
    """What study.json says of an arm."""
    return self.study["arms"][self.arms.index(name)]

  def total_flops(self, arm: str) -> float:
    """With those of the arms whose weights it starts from."""
    plan = self.arm(arm)
    before = plan["flops_before"] if "flops_before" in plan else self.total_flops(plan["after"]) if plan.get("after") else 0.0
    return self.cost(arm, "flops") + before


def _targets(workdir: str) -> float:
  """Of a step, the mean over those that were logged."""
  found = [line["targets"] for line in monitor.read_metrics(workdir) if line["split"] == "train" and "targets" in line]
  return float(np.mean(found)) if found else math.nan


def read(folder: str) -> Results:
  """Reads all there is, finished or not.

  Raises:
    UserError: the folder is no study's, or its study.json is damaged.
  """
  folder = os.path.normpath(folder)
  path = os.path.join(folder, STUDY)
  study = _json(path)
  if study is None:
    raise UserError(f"'{folder}' holds no {STUDY}: name the folder of a study, as research.sweep leaves it.")
  if lacking := [key for key in KEYS if key not in study]:
    raise UserError(f"'{path}' lacks '{lacking[0]}': let research.sweep write it anew.")
  names = [arm["name"] for arm in study["arms"]]
  if study["decides"]["baseline"] not in names:
    raise UserError(f"'{path}': the baseline '{study['decides']['baseline']}' is none of its arms.")
  if study["decides"]["metric"] not in [metric["name"] for metric in study["metrics"]]:
    raise UserError(f"'{path}': what decides, '{study['decides']['metric']}', is none of its metrics.")
  tuning = study["tuning"] or {}
  decides, evals = study["decides"]["metric"], {arm["name"]: arm.get("evals") for arm in study["arms"]}
  asked = lambda arm, metric: evals[arm] is None or not metric.startswith("evaluations.") or evaluation_of(metric) in [words.split()[0] for words in evals[arm]]
  runs = tuple(_run(folder, plan, decides if asked(plan["arm"], decides) else "step") for plan in study["runs"])
  return Results(folder, study, runs, tuple(_tuning(_run(folder, plan, tuning["metric"]), tuning["chosen"]) for plan in tuning.get("runs", ())))


def _tuning(run: Run, chosen: Mapping[str, Any]) -> Run:
  """A run of tuning: where halving left no other value, the one that was chosen ended early too."""
  if run.state != "dropped" or run.arm not in chosen or chosen[run.arm] != run.plan["value"]:
    return run
  return dataclasses.replace(run, state="chosen", note=run.note.replace("halving ended it", "no other value was left"))


def evaluation_of(metric: str) -> str:
  """The name of the evaluation that finds a metric `evaluations.NAME.…`."""
  return re.split(r"[. ]", metric.removeprefix("evaluations."), maxsplit=1)[0]


def _json(path: str) -> Any:
  """None where there is no such file; a file that is being written, or was cut off, is an error."""
  try:
    with open(path, encoding="utf-8") as file:
      return json.load(file)
  except (FileNotFoundError, NotADirectoryError):
    return None
  except ValueError as error:
    raise UserError(f"'{path}' is not readable as JSON ({error}): if it is being written just now, try again; otherwise start its run or sweep once more.") from error


def _run(root: str, plan: Mapping[str, Any], metric: str) -> Run:
  if not plan["address"]:
    return Run(plan["arm"], plan["block"], "", "missing", "its arm is not tuned yet", plan, {}, {}, {})
  folder = f"{RUNS}/{plan['address']}"
  workdir = os.path.join(root, folder)
  try:
    config, summary, evaluations = (_json(os.path.join(workdir, f"{name}.json")) or {} for name in ("config", "summary", "evaluations"))
    if not all(isinstance(each, dict) for each in (config, summary, evaluations)) or summary and not isinstance(summary.get("step"), int):
      raise UserError(f"'{workdir}' holds a config.json, summary.json or evaluations.json that no run has written: start its run or sweep once more.")
  except UserError as error:
    return Run(plan["arm"], plan["block"], folder, "failed", str(error).replace(root + os.sep, ""), plan, {}, {}, {})
  run = Run(plan["arm"], plan["block"], folder, "done", "", plan, config, summary, evaluations)
  state, note = _state(run, workdir, metric)
  if state in ("unfinished", "unscored") and (end := _end_of_log(workdir)):
    failed = re.match(r"error: |[\w.]*(Error|Exception|Interrupt)\b", end)
    state, note = ("failed" if failed else state), f"{note}; its log ends with `{end}`"
  return dataclasses.replace(run, state=state, note=note)


def _end_of_log(workdir: str) -> str:
  """The last line of what the run has printed, as far as a table has room for it."""
  try:
    with open(os.path.join(workdir, LOG), encoding="utf-8", errors="replace") as file:
      return next((line.strip()[:300].replace("`", "'") for line in reversed(file.readlines()) if line.strip()), "")
  except FileNotFoundError:
    return ""


def _state(run: Run, workdir: str, metric: str) -> tuple[str, str]:
  steps = run.plan["overrides"].get("steps", run.config.get("steps"))
  if not os.path.isdir(workdir):
    return "missing", "not started"
  if run.summary and run.summary["step"] == steps and not run.summary.get("stopped_by"):
    if run.plan.get("data_hash") and run.summary["data_hash"] != run.plan["data_hash"]:
      return "failed", f"its data changed: hash {run.summary['data_hash']}, {run.plan['data_hash']} in {STUDY}"
    found = run.found(metric)
    if not isinstance(found, (int, float)):
      return "unscored", f"{metric} is not there"
    return ("done", "") if math.isfinite(found) else ("diverged", f"{metric} is {found}")
  if (until := run.plan.get("until")) and run.summary.get("step") == until:
    return "dropped", f"halving ended it at step {until} of {steps}"
  lines = monitor.read_metrics(workdir)
  last = max((line["step"] for line in lines), default=0)
  where = f"step {last} of {steps}" if steps else f"step {last}"
  if how := alarms.diverged(lines):
    return "diverged", f"{how} at {where}"
  if os.path.isfile(os.path.join(workdir, "hang.txt")):
    return "failed", f"hung at {where}, see hang.txt"
  return "unfinished", where + (f", stopped by {run.summary['stopped_by']}" if run.summary.get("stopped_by") else "")


def at(tree: Any, path: str) -> Any:
  """What stands at a dotted path, None where nothing does.

  A key may have dots in it; the name of an evaluation may go without its file (`minimal_pairs` for `minimal_pairs of FILE`); of a score the value is meant.
  """
  if not path:
    return tree.get("value") if isinstance(tree, Mapping) else tree
  if not isinstance(tree, Mapping):
    return None
  keys = sorted(tree, key=len, reverse=True)
  for name, key in (*((key, key) for key in keys), *((key.partition(" of ")[0], key) for key in keys)):
    if (path == name or path.startswith(name + ".")) and (found := at(tree[key], path[len(name) + 1 :])) is not None:
      return found
  return at(tree["scores"], path) if "scores" in tree else None
