"""The runs of a study: the data made ready, what a step of each arm costs, and with that each run's steps, address and command.

A budget of steps is taken as it is; of tokens or operations, each arm has the number of steps that comes nearest to it. Operations are those of the model, counted
from the jaxpr of the training step as training does for MFU, on one CPU device: nothing is compiled or run. The learning-rate schedule follows the
number of steps by itself; the warm-up, which a config gives in steps, keeps its share of them, unless the study sets it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from research.core import config as configs
from research.core.errors import UserError
from research.core.overrides import flag
from research.core.types import PyTree, Vocab
from research.studies import address, results
from research.studies.results import RUNS, STUDY, at
from research.studies.study import WARMUP, Arm, Study, arms_of, factors, resolved

if TYPE_CHECKING:
  from ml_collections import ConfigDict

DATA = "data"  # what is prepared of the data, for all runs


class Known(NamedTuple):
  """What a run must know of its data before it is built."""

  vocab: Vocab
  labels: tuple[str, ...]
  digest: str


class Cost(NamedTuple):
  """Of one step."""

  tokens: int
  flops: float
  parameters: int
  shapes: PyTree  # of the parameters


@dataclasses.dataclass(frozen=True)
class Run:
  arm: str
  block: int
  base: str
  overrides: dict[str, Any]  # flat: all that the command says beyond the base
  steps: int
  address: str
  config_hash: str
  data_hash: str
  code: str  # of the address
  code_now: str  # what a sweep found on disk: another than `code` where it was told that this does not matter
  components: frozenset[str]
  after: str | None  # the address of the run whose weights this one starts from
  evals: tuple[str, ...]
  tuned: Any = None  # the value that a run of tuning tries
  until: int | None = None  # the step at which a rung of halving ends; no part of what the run is

  def folder(self, root: str) -> str:
    return os.path.join(root, RUNS, self.address)

  def arguments(self, root: str) -> list[str]:
    """Of research.train."""
    rung = [] if self.until is None else [f"--until={self.until}"]
    return [f"--config={self.base}", f"--workdir={self.folder(root)}", *rung, *(flag(key, value) for key, value in self.overrides.items())]

  def command(self, root: str) -> str:
    """As it can be typed; no value in it can be more than a word."""
    return shlex.join(["python", "-m", "research.train", *self.arguments(root)])

  @property
  def goal(self) -> int:
    """The step to be reached for now."""
    return self.until or self.steps

  def __str__(self) -> str:
    tried, rung = (f" · trying {self.tuned}" if self.tuned is not None else ""), (f" · to step {self.until}" if self.until else "")
    return f"{self.arm} · block {self.block}{tried}{rung}"


class Ready:
  """A study whose data are prepared and whose costs are known: it can tell its runs."""

  def __init__(self, study: Study, root: str, say: Callable[[str], None] = print, keep_code: bool = False):
    """
    Args:
      root: the folder of the study; of it only `data` is written to.
      keep_code: runs that study.json lists keep their address where nothing but the code has changed.

    Raises:
      UserError: a mistake in a config, in the data, or in how the parts of a model go together.
    """
    self.study, self.root, self.arms = study, root, arms_of(study)
    self._keep_code = keep_code
    self._old = _listed(root, keep_code)
    self._made: dict[str, Run] = {}
    self._known: dict[str, Known] = {}
    self._costs: dict[str, Cost] = {}
    self._said: set[str] = set()
    self._say = say
    self.configs = [resolved(study, arm, _seeds(study.blocks[0]))[1] for arm in self.arms]
    self.costs = [self._cost(configs.typed(config), self._data(config)) for config in self.configs]
    self.steps = [self._steps(arm, cost) for arm, cost in zip(self.arms, self.costs)]
    for arm, config, cost, steps in zip(self.arms, self.configs, self.costs, self.steps):
      _, config = resolved(study, arm, self._budget(arm, config, steps))
      configs.make(configs.typed(config).optimizer, steps, cost.shapes)  # a schedule that does not fit the steps
    self.factors, self.levels = factors(self.arms, self.configs)

  def _data(self, config: "ConfigDict") -> Known:
    """What is known of a config's data, which are prepared once."""
    cfg = configs.typed(config).data
    key = repr(dataclasses.replace(cfg, directory=""))
    if key not in self._known:
      prepared = configs.module(cfg).prepare(cfg, os.path.join(self.root, DATA), self._once)
      self._known[key] = Known(prepared.vocab, tuple(getattr(prepared, "labels", ())), prepared.digest)
    return self._known[key]

  def _once(self, line: str) -> None:
    """Blocks differ in the order of rows alone: what was said of one's data is not said again of the next one's."""
    if line not in self._said:
      self._said.add(line)
      self._say(line)

  def _cost(self, cfg: Any, known: Known) -> Cost:
    """Of a step; nothing else than this moves it, so arms that are alike in this are counted once."""
    from research.data import text
    from research.training import experiment

    plain = experiment.Config(batch_size=cfg.batch_size, microbatches=cfg.microbatches, model=cfg.model, objective=cfg.objective, data=text.Config(length=cfg.data.length))
    key = repr((plain, known.vocab.size, known.labels))
    if key not in self._costs:
      self._costs[key] = step_cost(plain, known)
    return self._costs[key]

  def _steps(self, arm: Arm, cost: Cost) -> int:
    one = {"steps": 1, "tokens": cost.tokens, "flops": cost.flops}[self.study.equal]
    if not one:
      raise UserError(f"arm '{arm.name}' reads no tokens, so {self.study.equal} cannot be its budget: give the study steps or flops.")
    steps = round(self.study.amount / one)
    if steps < 1:
      raise UserError(f"{self.study.equal}={self.study.amount}: one step of arm '{arm.name}' takes {one:.6g} already; raise the budget or make the arm smaller.")
    return steps

  def _budget(self, arm: Arm, config: "ConfigDict", steps: int) -> dict[str, Any]:
    """Overrides that give an arm its number of steps."""
    found: Any = config
    for part in WARMUP.split("."):
      found = found.get(part) if configs.is_config(found) else None
    changes = {"steps": steps}
    if found is not None and steps != config.steps and WARMUP not in {**self.study.common, **arm.overrides}:
      changes[WARMUP] = round(found * steps / config.steps)
    return changes

  def run(self, name: str, block: int, chosen: Mapping[str, Any], tried: Any = None) -> Run:
    """The run of an arm and a block.

    Args:
      chosen: arm -> the value it was tuned to.
      tried: of a run of tuning, the value instead.
    """
    i = [arm.name for arm in self.arms].index(name)
    arm, study = self.arms[i], self.study
    starts = self._before(arm, block, chosen)
    changes = {} if study.tuning is None else {study.tuning.key: chosen[name] if tried is None else tried}
    changes |= {**self._budget(arm, self.configs[i], self.steps[i]), **_seeds(block)}
    if starts is not None:
      changes["init_from"] = starts
    if (key := repr((name, changes, tried))) in self._made:
      return self._made[key]
    overrides, config = resolved(study, arm, changes)
    evals = arm.evals if tried is None or study.tuning_metric.startswith("evaluations.") else ()
    data, parts, before = self._data(config).digest, address.components(config), starts and os.path.basename(starts)
    code = address.code_hash(parts)
    made = Run(name, block, study.base, overrides, self.steps[i], address.address(config, data, code, before), configs.digest(config), data, code, code, parts,
               before, evals, tried)  # fmt: skip
    if (old := self._earlier(arm, made, changes)) is not None and self._keep_code:
      made = dataclasses.replace(made, address=old["address"], code=old["code"])
    elif old is not None and self._reached(old) == made.steps:
      self._once("runs here are done that differ in nothing but code: --keep_code counts them, if you vouch that the change does not matter")
    self._made[key] = made
    return made

  def _earlier(self, arm: Arm, run: Run, changes: Mapping[str, Any]) -> dict[str, Any] | None:
    """The run of study.json that differs from this one in nothing but code, and in the folder of the study, which is part of where it starts from; of several the furthest."""
    found = []
    for old in self._old:
      if old["code"] == run.code and not self._keep_code:
        continue  # it has this run's address, if it is this run
      starts, config_hash = old["overrides"].get("init_from"), run.config_hash
      if run.after and starts and os.path.basename(starts) == run.after:
        config_hash = configs.digest(resolved(self.study, arm, {**changes, "init_from": starts})[1])
      if (old["config_hash"], old["data_hash"]) == (config_hash, run.data_hash):
        found.append(old)
    return max(found, key=self._reached, default=None)

  def _reached(self, old: Mapping[str, Any]) -> int:
    """The step at which a listed run stands."""
    from research.training.book import read_summary

    return read_summary(os.path.join(self.root, RUNS, old["address"])).get("step", 0)

  def _before(self, arm: Arm, block: int, chosen: Mapping[str, Any]) -> str | None:
    """The workdir of the run whose weights the arm's run of `block` starts from; None: it starts at random, or as its config says.

    Raises:
      UserError: it is one of another study, which lacks it or has not trained it to its end.
    """
    if arm.after is not None:
      return os.path.join(self.root, RUNS, self.run(arm.after, block, chosen).address)
    if arm.other is None:
      return None
    folder, name = arm.other
    found = next((run for run in results.read(folder).runs if (run.arm, run.block) == (name, block)), None)
    if found is None or not found.ended:
      raise UserError(f"arm '{arm.name}' starts from another study, but that in '{folder}' has no run of arm '{name}' and block {block} that has ended: sweep it first.")
    return os.path.join(folder, found.folder)

  def runs(self, chosen: Mapping[str, Any] = {}) -> list[Run]:  # noqa: B006  read only
    """All runs of the comparison, block by block. With tuning, those of the arms in `chosen` alone."""
    names = [arm.name for arm in self.arms if self.study.tuning is None or arm.name in chosen]
    return _distinct([self.run(name, block, chosen) for block in self.study.blocks for name in names])

  def tuning_runs(self, chosen: Mapping[str, Any], given_up: Sequence[str] = ()) -> list[Run]:
    """Those that must end before more arms can be tuned: an arm that starts from another's weights is tuned after that one."""
    if self.study.tuning is None:
      return []
    now = [arm.name for arm in self.arms if arm.name not in (*chosen, *given_up) and (arm.after is None or arm.after in chosen)]
    return _distinct([self.run(name, block, chosen, value) for block in self.study.tuning_blocks for name in now for value in self.study.tuning.values])

  def record(self, chosen: Mapping[str, Any], tuning_runs: Sequence[Run] = (), ends: Mapping[str, int] = {}) -> str:  # noqa: B006  read only
    """The text of study.json: the same study in the same folder gives the same bytes.

    Args:
      ends: the address of a run that halving does not let go on -> the step at which it ends.
    """
    study, runs = self.study, {(run.arm, run.block): run for run in self.runs(chosen)}
    absent = {"address": "", "overrides": {}, "command": "", "config_hash": "", "data_hash": "", "code": ""}  # of an arm that is not tuned yet
    listed = lambda run: {"address": run.address, "arm": run.arm, "block": run.block, "overrides": run.overrides, "command": run.command(self.root),
                          "config_hash": run.config_hash, "data_hash": run.data_hash, "code": run.code,
                          **({"until": ends[run.address]} if run.address in ends else {})}  # fmt: skip
    halved = lambda halving: halving and {"rungs": halving.rungs, "eta": halving.eta}
    plain = {
      "name": study.name, "question": study.question, "hypothesis": study.hypothesis, "base": study.base, "factors": self.factors,
      "arms": [{"name": arm.name, "overrides": arm.overrides, "levels": levels, "after": ":".join(arm.other) if arm.other else arm.after, "evals": arm.evals, "parameters": cost.parameters, "steps": steps,
                "tokens": steps * cost.tokens, "flops": steps * cost.flops,
                **({"flops_before": results.read(arm.other[0]).total_flops(arm.other[1])} if arm.other else {})}
               for arm, levels, cost, steps in zip(self.arms, self.levels, self.costs, self.steps)],
      "common": study.common, "blocks": study.blocks, "budget": {"equal": study.equal, "amount": study.amount},
      "metrics": [{"name": name, "better": better} for name, better in study.metrics.items()],
      "decides": {"metric": study.metric, "baseline": study.baseline or self.arms[0].name},
      "halving": halved(study.halving),
      "search": study.search and {"space": {key: str(values) for key, values in study.search.space.items()}, "rounds": study.search.rounds, "count": study.search.count},
      "tuning": study.tuning and {"halving": halved(study.tuning.halving), "key": study.tuning.key, "values": study.tuning.values, "metric": study.tuning_metric, "blocks": study.tuning_blocks,
                                  "rule": study.tuning_rule, "chosen": chosen, "runs": [{**listed(run), "value": run.tuned} for run in tuning_runs]},
      "runs": [listed(runs[arm.name, block]) if (arm.name, block) in runs else {**absent, "arm": arm.name, "block": block}
               for block in study.blocks for arm in self.arms],
    }  # fmt: skip
    now = {run["address"] for run in [*plain["runs"], *(plain["tuning"] or {"runs": []})["runs"]]}
    if earlier := [run for run in self._old if run["address"] not in now and os.path.isdir(os.path.join(self.root, RUNS, run["address"]))]:
      plain["earlier"] = earlier  # that --keep_code may want, once the code has changed
    return json.dumps(plain, indent=1, ensure_ascii=False, default=lambda value: value.item() if hasattr(value, "item") else dict(value)) + "\n"

  def table(self) -> str:
    """What each arm costs, for a person."""
    rows = [("arm", "parameters", "steps", "tokens", "FLOPs")]
    for arm, cost, steps in zip(self.arms, self.costs, self.steps):
      rows.append((arm.name, f"{cost.parameters:,}", f"{steps:,}", f"{steps * cost.tokens:,}", f"{steps * cost.flops:.4g}"))
    wide = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join("  ".join([row[0].ljust(wide[0]), *(cell.rjust(width) for cell, width in zip(row[1:], wide[1:]))]) for row in rows)


def _seeds(block: int) -> dict[str, int]:
  return {"seed": block, "data.seed": block}


def step_cost(cfg: Any, known: Known) -> Cost:
  """What a step of an experiment costs, of its jaxpr alone, as training counts it."""
  import jax

  from research.core.trees import size
  from research.objectives.base import tokens_of_row
  from research.parallel import mesh as meshes
  from research.training import loop

  run = loop.assemble(cfg, known, meshes.make(meshes.Config(data=1), jax.devices()[:1]))
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), run.state.params)
  return Cost(cfg.batch_size * tokens_of_row(run.objective, cfg.data.length), loop.operations(run)[0], size(run.state.params), shapes)


def choose(study: Study, runs: Sequence[Run], root: str, all_ended: bool = False) -> dict[str, Any]:
  """Arm -> the value it is tuned to, by the study's rule, of what the tuning runs have left.

  Args:
    all_ended: a value whose runs have diverged drops out; otherwise its arm waits for it.
  """
  better = min if study.tuning_better == "lower" else max
  chosen = {}
  for name in dict.fromkeys(run.arm for run in runs):
    found: dict[Any, list[float | None]] = {}
    for run in runs:
      if run.arm == name:
        found.setdefault(run.tuned, []).append(measured(run, root, study.tuning_metric))
    if not all_ended and any(score is None for scores in found.values() for score in scores):
      continue
    means = {value: sum(scores) / len(scores) for value, scores in found.items() if all(score is not None and math.isfinite(score) for score in scores)}
    if means:
      chosen[name] = better(means, key=means.get)
  return chosen


def measured(run: Run, root: str, metric: str) -> float | None:
  """A metric of a run that has reached its last step, or that of its rung; None: it has not, or lacks it."""
  from research.training.book import read_summary
  from research.training.monitor import read_metrics

  head, _, rest = metric.partition(".")
  if run.until is not None:
    there = (line for line in read_metrics(run.folder(root)) if (line["split"], line["step"]) == (head, run.until))
    return next((line.get(rest) for line in there), None)
  summary = read_summary(run.folder(root))
  if summary.get("step") != run.steps:
    return None
  if head != "evaluations":
    return at(summary, metric)
  return at(evaluations(run, root), rest)


def evaluations(run: Run, root: str) -> dict[str, Any]:
  """What `evaluations.json` of a run holds; one that is damaged holds nothing, so that the run is evaluated again."""
  try:
    with open(os.path.join(run.folder(root), "evaluations.json"), encoding="utf-8") as file:
      found = json.load(file)
  except (FileNotFoundError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _distinct(runs: list[Run]) -> list[Run]:
  seen: dict[str, Run] = {}
  for run in runs:
    if run.address in seen:
      raise UserError(f"'{run}' and '{seen[run.address]}' are one and the same run: their configs do not differ.")
    seen[run.address] = run
  return runs


def _listed(root: str, needed: bool) -> list[dict[str, Any]]:
  """The runs that study.json lists, and those that it has listed before; none where there is no such file yet.

  Raises:
    UserError: the file is damaged, and `needed`.
  """
  path = os.path.join(root, STUDY)
  try:
    with open(path, encoding="utf-8") as file:
      plain = json.load(file)
    return [run for run in [*plain["runs"], *((plain["tuning"] or {}).get("runs", [])), *plain.get("earlier", [])] if run["address"]]
  except FileNotFoundError:
    return []
  except (ValueError, KeyError, TypeError) as error:
    if not needed:
      return []
    raise UserError(f"'{path}' is damaged ({error}), so --keep_code cannot tell which runs it has listed: leave the flag out, or bring the file back.") from error
