"""What a sweep tells while it runs: a live table on a terminal (arms down, blocks across), and a line for each event, which is all that a pipe gets."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research.studies.runs import Run, measured
from research.training.monitor import METRICS

WAITS, RUNS, ELSEWHERE, DONE, FAILED = "waits", "runs", "elsewhere", "done", "failed"
COLOURS = {WAITS: "dim", RUNS: "cyan", ELSEWHERE: "yellow", DONE: "green", FAILED: "red"}
REFRESH = 0.5  # seconds


class Board:
  """A context: inside it, on a terminal, the table is at the foot of the screen."""

  def __init__(self, runs: Sequence[Run], root: str, metric: str, say: Callable[[str], None] = print):
    self.metric, self._runs, self._root, self._say = metric, runs, root, say
    self._live, self._shown, self._cells = None, 0.0, {}
    if sys.stdout.isatty():
      from rich.live import Live

      self._live = Live(auto_refresh=False)

  def __enter__(self) -> "Board":
    if self._live is not None:
      self._live.start()
    return self

  def __exit__(self, *_: Any) -> None:
    if self._live is not None:
      self._live.stop()

  def say(self, text: str) -> None:
    if self._live is None:
      self._say(text)
    else:
      self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)

  def update(self, states: Mapping[str, str], last: bool = False) -> None:
    """Shows the table, at most twice a second; the last one stays."""
    if self._live is not None and (last or time.monotonic() - self._shown >= REFRESH):
      self._shown = time.monotonic()
      self._live.update(self._table(states), refresh=True)

  def _table(self, states: Mapping[str, str]):
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    blocks = list(dict.fromkeys(run.block for run in self._runs))
    rows: dict[tuple, dict[int, Run]] = {}
    for run in self._runs:
      rows.setdefault((run.arm, run.tuned), {})[run.block] = run
    counts = " · ".join(f"{list(states.values()).count(state)} {state}" for state in COLOURS if state in states.values())
    table = Table("arm", *(f"block {block}" for block in blocks))
    for (arm, tuned), found in rows.items():
      cells = [self._cell(found[block], states[found[block].address]) if block in found else Text() for block in blocks]
      table.add_row(Text(arm if tuned is None else f"{arm} [{tuned}]"), *cells)
    return Group(table, Text(f"{self.metric} · {counts}"))

  def _cell(self, run: Run, state: str):
    from rich.text import Text

    if (run.address, state) not in self._cells or state in (RUNS, ELSEWHERE):
      text = state
      if state == DONE and (score := measured(run, self._root, self.metric)) is not None:
        text = f"{score:.4f}"
      if state in (RUNS, ELSEWHERE):
        step, loss = progress(run.folder(self._root))
        text = f"{step}/{run.goal}" + ("" if loss is None else f" {loss:.3f}")
      self._cells[run.address, state] = Text(text, style=COLOURS[state])
    return self._cells[run.address, state]


def progress(workdir: str) -> tuple[int, float | None]:
  """Step and loss of the last whole line of a run's metrics."""
  try:
    with open(os.path.join(workdir, METRICS), "rb") as file:
      file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
      lines = file.read().splitlines()
  except FileNotFoundError:
    return 0, None
  for line in reversed(lines):
    try:
      found = json.loads(line)
      return found["step"], found["loss"]
    except (ValueError, KeyError, TypeError):  # cut off at either end
      continue
  return 0, None
