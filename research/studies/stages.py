"""A study from its first run to its last: tuning, halving and search, where it asks for them, and the comparison; study.json is written before and after each.

What a stage decides follows from what its runs have left in their folders, so a sweep that is started again comes to the same decisions without running anything twice.
A run that diverged loses to the others; where one failed for another reason, nothing is decided, for who would have won is not known.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from research.studies import design
from research.studies.board import DONE, ELSEWHERE, FAILED
from research.studies.document import shown
from research.studies.launch import Outcome
from research.studies.results import STUDY
from research.studies.runs import Ready, Run, choose, measured
from research.studies.study import Halving, Study, arms_of
from research.training.alarms import diverged
from research.training.book import read_summary
from research.training.monitor import read_metrics

Start = Callable[[Sequence[Run]], Outcome]  # runs what is not done of a list, or hands it on
Say = Callable[[str], None]


class Ended(NamedTuple):
  """How far a sweep came."""

  status: int  # of the command
  stopped: bool  # by a signal, because its runs have been handed on, because the code was edited, or because what is next cannot be decided
  runs: Sequence[Run] = ()  # of the comparison


def sweep(ready: Ready, start: Start, say: Say = print, write: bool = True) -> int:
  """Brings a study to its end, or as far as its launcher can.

  Args:
    write: keep study.json; a dry run does not.

  Returns:
    an exit status: 0 all runs are done or handed on, 1 some have failed, 128 + the signal that stopped the sweep.
  """
  return _Sweep(ready, start, say, write).run().status


def search(make: Callable[[Study], Ready], study: Study, start: Start, say: Say = print, write: bool = True) -> int:
  """A study whose arms are suggested round by round by the scores of those before. Arguments and result as of `sweep`; a failed run tells the search that its arm is no good.

  Args:
    make: makes a study ready; asked anew for each round, whose study has more arms.
  """
  design.sampler_library()  # what is missing is told before the first round has been trained
  plan = study.search
  study = _named(study)
  for number in range(plan.rounds + 1):
    ready = make(study)
    ended = _Sweep(ready, start, say, write).run()
    if ended.stopped or number == plan.rounds:
      return ended.status
    told = [(arm.overrides, _mean([measured(run, ready.root, study.metric) for run in ended.runs if run.arm == arm.name])) for arm in ready.arms]
    told = [(overrides, math.nan if score is None else score) for overrides, score in told if plan.space.keys() <= overrides.keys()]
    seen = [{key: overrides[key] for key in plan.space} for overrides, _ in told]
    arms = [arm for arm in design.suggest(plan.count, plan.space, told, study.metrics[study.metric], seed=number) if arm not in seen]
    if not arms:
      say(f"search: after round {number + 1} no arm is suggested that has not been tried")
      return ended.status
    say(f"search: round {number + 2} of {plan.rounds + 1}, {len(arms)} more arms\n{design.table(arms)}")
    study = _named(dataclasses.replace(study, arms=[*study.arms, *arms]))
  raise AssertionError


def _named(study: Study) -> Study:
  """With the names that its arms have now: default ones hang on the others, and more arms would give new ones to all, the baseline among them."""
  return dataclasses.replace(study, arms=[{**arm, "name": named.name} for arm, named in zip(study.arms, arms_of(study))])


class _Sweep:
  """A sweep under way: what it has decided, and what of that stands in study.json."""

  def __init__(self, ready: Ready, start: Start, say: Say, write: bool):
    self._ready, self._study, self._root, self._start, self._say, self._write = ready, ready.study, ready.root, start, say, write
    self._chosen: dict[str, Any] = {}  # arm -> the value it is tuned to
    self._tuning: list[Run] = []
    self._ends: dict[str, int] = {}  # address of a run that halving ends early -> its last step

  def run(self) -> Ended:
    ready, study = self._ready, self._study
    given_up: list[str] = []
    while stage := ready.tuning_runs(self._chosen, given_up):
      self._tuning += stage
      found, outcome = self._tuned(stage)
      if outcome is not None:
        return self._stopped(outcome, "tuning runs")
      self._chosen |= found
      names = list(dict.fromkeys(run.arm for run in stage))
      for name in names:
        self._tell(name, found)
      given_up += [name for name in names if name not in found]
    self._keep()
    runs = ready.runs(self._chosen)
    if study.halving:
      groups = {"": {name: [run for run in runs if run.arm == name] for name in dict.fromkeys(run.arm for run in runs)}}
      alive, early, outcome = halve(groups, study.halving, study.metric, study.metrics[study.metric], self._root, self._start, self._say, [study.baseline or ready.arms[0].name])
      self._ends |= early
      self._keep()
      if outcome is not None:
        return self._stopped(outcome, "runs")
      runs = [run for run in runs if run.arm in alive[""]]
    outcome = self._start(runs)
    status = closing(outcome, self._say, "runs", self._write)
    return Ended(status or int(study.tuning is not None and any(arm.name not in self._chosen for arm in ready.arms)), outcome.stopped, runs)

  def _tuned(self, stage: Sequence[Run]) -> tuple[dict[str, Any], Outcome | None]:
    """Brings tuning runs as far as it takes to choose: arm -> its value, and the outcome at which the sweep has to stop, None where it has not."""
    study, root = self._study, self._root
    last, found = list(stage), {}
    if study.tuning.halving:
      self._say(f"tuning: {study.tuning_rule}")
      self._keep()
      groups: dict[Hashable, dict[Any, list[Run]]] = {}
      for run in stage:
        groups.setdefault(run.arm, {}).setdefault(run.tuned, []).append(run)
      alive, early, outcome = halve(groups, study.tuning.halving, study.tuning_metric, study.tuning_better, root, self._start, self._say)
      if outcome is not None:
        return {}, outcome
      sources = {arm.after for arm in self._ready.arms}  # others start from these, so they are trained to their end
      found = {name: next(iter(values)) for name, values in alive.items() if len(values) == 1}
      last = [run for name, values in alive.items() if len(values) > 1 or name in sources for runs in values.values() for run in runs]
      self._ends |= {address: step for address, step in early.items() if address not in {run.address for run in last}}
    if any(measured(run, root, study.tuning_metric) is None for run in last):
      if not study.tuning.halving:
        self._say(f"tuning: {study.tuning_rule}")
      self._keep(found | choose(study, last, root))
      outcome = self._start(last)
      if outcome.stopped or undecided(last, root, study.tuning_metric, self._say):
        return {}, outcome
    return found | choose(study, last, root, all_ended=True), None

  def _stopped(self, outcome: Outcome, what: str) -> Ended:
    return Ended(closing(outcome, self._say, what, self._write) or int(not outcome.stopped), True)

  def _tell(self, name: str, found: Mapping[str, Any]) -> None:
    tuning = self._study.tuning
    said = f"tuned to {tuning.key}={shown(found[name])}" if name in found else f"could not be tuned, for no value gave a {self._study.tuning_metric}; it is left out"
    numbers = len(tuning.values) > 2 and all(isinstance(value, (int, float)) for value in tuning.values)
    edge = numbers and found.get(name) in (min(tuning.values), max(tuning.values))
    self._say(f"{name}: {said}" + (", at the edge of the values that were tried: a better one may lie beyond" if edge else ""))

  def _keep(self, more: Mapping[str, Any] = {}) -> None:  # noqa: B006  read only
    if self._write:
      save(self._ready, {**self._chosen, **more}, self._tuning, self._ends)


def halve(groups: Mapping[Hashable, Mapping[Any, Sequence[Run]]], plan: Halving, metric: str, better: str, root: str, start: Start, say: Say,
          kept_always: Sequence[Any] = ()) -> tuple[dict[Hashable, dict[Any, list[Run]]], dict[str, int], Outcome | None]:  # fmt: skip
  """Takes candidates, group by group, through all rungs but the last.

  Args:
    groups: group -> candidate -> its runs, one a block; a candidate's score is their mean.
    metric: of validation, at the rung's last step.
    kept_always: candidates that are never dropped.

  Returns:
    what is left of the groups; the runs that have come to their end already, by address, and the step of that; and the outcome of the rung in which the sweep had to
    stop, None where it had not.
  """
  alive = {group: {candidate: list(runs) for candidate, runs in candidates.items()} for group, candidates in groups.items()}
  ends: dict[str, int] = {}
  for rung in range(plan.rungs - 1):
    due = lambda run, rung=rung: dataclasses.replace(run, until=design.rungs(run.steps, plan.rungs, plan.eta)[rung])
    going = {group: candidates for group, candidates in alive.items() if len(candidates) > 1}
    stage = [due(run) for candidates in going.values() for runs in candidates.values() for run in runs]
    if not stage:
      break
    outcome = start(stage)
    if outcome.stopped or undecided(stage, root, metric, say):
      return alive, ends, outcome
    for group, candidates in going.items():
      scores = {candidate: _mean([measured(due(run), root, metric) for run in runs]) for candidate, runs in candidates.items()}
      best = design.halving(list(groups[group]), scores, rung, plan.eta, better)
      alive[group] = {candidate: runs for candidate, runs in candidates.items() if candidate in best or candidate in kept_always}
      over = candidates if len(alive[group]) == 1 and not kept_always else {c: runs for c, runs in candidates.items() if c not in alive[group]}
      ends |= {run.address: due(run).until for candidate, runs in over.items() if scores[candidate] is not None for run in runs}
      told = ", ".join(f"{shown(c)} {'diverged' if scores[c] is None else format(scores[c], '.4f')}" for c in candidates if c not in alive[group])
      say(f"halving{f' of {group}' if group else ''}: after rung {rung + 1} of {plan.rungs} dropped {told or 'none'}")
  return alive, ends, None


def undecided(runs: Sequence[Run], root: str, metric: str, say: Say) -> bool:
  """Whether one of the runs that have ended lacks the metric though it has not diverged; they are named."""
  found = [run for run in runs if measured(run, root, metric) is None and not diverged(read_metrics(run.folder(root)))]
  past = [run for run in found if run.until is not None and read_summary(run.folder(root)).get("step", 0) > run.until]
  if past:
    say(f"nothing is decided: {'; '.join(map(str, past))} went further before the study was halved so, and has no {metric} of that step: sweep into another folder, or without that halving")
  elif found:
    say(f"nothing is decided: no {metric} of {'; '.join(map(str, found))}, though no loss has diverged there: mend what ended it, or take that value or arm out of the study")
  return bool(found)


def _mean(scores: Sequence[float | None]) -> float | None:
  """None where one is missing or not finite."""
  return None if not scores or any(score is None or not math.isfinite(score) for score in scores) else sum(scores) / len(scores)


def save(ready: Ready, chosen: dict[str, Any], tuning: Sequence[Run], ends: Mapping[str, int] = {}) -> None:  # noqa: B006  read only
  """Writes study.json, whole or not at all."""
  path = os.path.join(ready.root, STUDY)
  with open(path + ".tmp", "w", encoding="utf-8") as file:
    file.write(ready.record(chosen, tuning, ends))
  os.replace(path + ".tmp", path)


def closing(outcome: Outcome, say: Say, what: str, told: bool) -> int:
  """Says how it ended, and where runs were `told` to start, how it goes on; the exit status."""
  counts = Counter(outcome.states.values())
  done, failed = counts[DONE], counts[FAILED]
  of = f"{done} of {len(outcome.states)} {what} are done" + (f", {failed} have failed" if failed else "")
  if outcome.signal:
    elsewhere = f"; {counts[ELSEWHERE]} that other processes train go on" if counts[ELSEWHERE] else ""
    say(f"stopped by {signal.Signals(outcome.signal).name}: {of}; those under way here have saved what they had{elsewhere}, and the same command goes on")
    return 128 + outcome.signal
  if outcome.edited:
    say(f"{of}; the code was edited meanwhile: sweep again (with --keep_code, if no run that is done would come out otherwise)")
    return 1
  if outcome.pending:
    say(of + ("; when the others have ended, the same command tells what is left" if told else ""))
  elif failed:
    say(f"{of}; the same command tries these again")
  else:
    say(of)
  return int(failed > 0)
