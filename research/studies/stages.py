"""A study from its first run to its last: tuning, where it asks for that, then the comparison; study.json is written before each."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from research.studies.board import DONE, FAILED
from research.studies.launch import Outcome
from research.studies.results import STUDY
from research.studies.runs import Ready, Run, choose
from research.studies.study import shown

Start = Callable[[Sequence[Run]], Outcome]  # runs what is not done of a list, or hands it on


def sweep(ready: Ready, start: Start, say: Callable[[str], None] = print, write: bool = True) -> int:
  """Brings a study to its end, or as far as its launcher can.

  Args:
    write: keep study.json; a dry run does not.

  Returns:
    an exit status: 0 all runs are done or handed on, 1 some have failed, 128 + the signal that stopped the sweep.
  """
  study, root = ready.study, ready.root
  chosen: dict[str, Any] = {}
  given_up: list[str] = []
  tuning: list[Run] = []
  while stage := ready.tuning_runs(chosen, given_up):
    names = list(dict.fromkeys(run.arm for run in stage))
    tuning += stage
    found = choose(study, stage, root)
    if len(found) < len(names):
      if write:
        save(ready, chosen | found, tuning)
      say(f"tuning: {study.tuning_rule}")
      outcome = start(stage)
      if outcome.signal or outcome.pending:
        return closing(outcome, say, "tuning runs", write)
      found = choose(study, stage, root, all_ended=True)
    chosen |= found
    for name in names:
      said = f"tuned to {study.tuning.key}={shown(found[name])}" if name in found else f"could not be tuned, for no value gave a {study.tuning_metric}; it is left out"
      numbers = len(study.tuning.values) > 2 and all(isinstance(value, (int, float)) for value in study.tuning.values)
      edge = numbers and found.get(name) in (min(study.tuning.values), max(study.tuning.values))
      say(f"{name}: {said}" + (", at the edge of the values that were tried: a better one may lie beyond" if edge else ""))
    given_up += [name for name in names if name not in found]
  if write:
    save(ready, chosen, tuning)
  status = closing(start(ready.runs(chosen)), say, "runs", write)
  return status or int(any(arm.name not in chosen for arm in ready.arms) if study.tuning else False)


def save(ready: Ready, chosen: dict[str, Any], tuning: Sequence[Run]) -> None:
  """Writes study.json, whole or not at all."""
  path = os.path.join(ready.root, STUDY)
  with open(path + ".tmp", "w", encoding="utf-8") as file:
    file.write(ready.record(chosen, tuning))
  os.replace(path + ".tmp", path)


def closing(outcome: Outcome, say: Callable[[str], None], what: str, told: bool) -> int:
  """Says how it ended, and where runs were `told` to start, how it goes on; the exit status."""
  counts = Counter(outcome.states.values())
  done, failed = counts[DONE], counts[FAILED]
  of = f"{done} of {len(outcome.states)} {what} are done" + (f", {failed} have failed" if failed else "")
  if outcome.signal:
    say(f"stopped by {signal.Signals(outcome.signal).name}: {of}; those under way have saved what they had, and the same command goes on")
    return 128 + outcome.signal
  if outcome.pending:
    say(of + ("; when the others have ended, the same command tells what is left" if told else ""))
  elif failed:
    say(f"{of}; the same command tries these again")
  else:
    say(of)
  return int(failed > 0)
