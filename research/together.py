"""Trains many runs in one program: those that differ only in seeds and in numbers of the optimizer.

  python -m research.together runs.txt

`runs.txt` has a line for each run, the command that would train it alone: `python -m research.train --config=FILE --workdir=DIR [--until=STEP]
[--config.key=value …]`. Runs that are one program are compiled once and trained side by side; several programs, one after the other. Each run leaves in its
workdir what it leaves alone, and the same command goes on where it stopped. A run that is given up is named, and the status is then 1; SIGTERM and Ctrl-C save
all and stop.
"""

from __future__ import annotations

from research.core import startup

if __name__ == "__main__":
  startup.prepare()

import os
import shlex
import signal
from typing import Any

from absl import flags

from research.core.errors import UserError, command
from research.core.flags import parse
from research.core.overrides import load

FLAGS = flags.FlagValues()


def main(arguments: list[str]) -> int:
  files = [argument for argument in arguments if not argument.startswith("-")]
  parse([argument for argument in arguments if argument not in files], FLAGS, __doc__)
  if len(files) != 1:
    raise UserError("name one file of runs: python -m research.together runs.txt.")
  runs = read(files[0])
  startup.compilation_cache(os.path.join(runs[0][1], "compilation_cache"))

  from research.training import together

  programs: dict[tuple[str, int | None], list[tuple[Any, str]]] = {}
  for config, workdir, until in runs:
    programs.setdefault((together.program(config), until), []).append((config, workdir))
  failed = 0
  for number, ((_, until), group) in enumerate(programs.items(), 1):
    if len(programs) > 1:
      print(f"program {number} of {len(programs)}", flush=True)
    outcomes = together.train(*map(list, zip(*group)), say=lambda line: print(line, flush=True), until=until)
    for i, ((_, workdir), outcome) in enumerate(zip(group, outcomes)):
      valid = outcome.summary.get("valid")
      how = f"FAILED: {outcome.failed}" if outcome.failed else f"step {outcome.summary['step']}" + (f"  loss {valid['loss']:.4f}" if valid else "")
      print(f"[{i}] {workdir}: {how}", flush=True)
    failed += sum(outcome.failed is not None for outcome in outcomes)
    if (stopped := next((outcome.summary["stopped_by"] for outcome in outcomes if outcome.summary.get("stopped_by")), None)) is not None:
      print(f"stopped by {stopped}, saved: the same command goes on from there", flush=True)
      return 128 + signal.Signals[stopped].value
  return 1 if failed else 0


def read(path: str) -> list[tuple[Any, str, int | None]]:
  """(resolved config, workdir, step to stop at) of each line of a file of runs.

  Raises:
    UserError: no such file, no runs in it, or a line that is no command of research.train.
  """
  try:
    with open(path, encoding="utf-8") as file:
      lines = [(number, line.strip()) for number, line in enumerate(file, 1) if line.strip() and not line.lstrip().startswith("#")]
  except OSError as error:
    raise UserError(f"the file of runs '{path}' cannot be read ({error.strerror}).") from error
  if not lines:
    raise UserError(f"the file of runs '{path}' names none: write a line for each, python -m research.train --config=FILE --workdir=DIR.")
  return [_run(f"line {number} of '{path}'", line) for number, line in lines]


def _run(where: str, line: str) -> tuple[Any, str, int | None]:
  try:
    words = shlex.split(line)
  except ValueError as error:
    raise UserError(f"{where}: {str(error)[:1].lower()}{str(error)[1:]}; close its quotes.") from error
  told = {key: value for key, equals, value in (word.partition("=") for word in words[3:]) if key in ("--config", "--workdir", "--until") and equals}
  overrides = [word for word in words[3:] if word.startswith("--config.")]
  known = {"--config", "--workdir"} <= told.keys() and told.get("--until", "1").isdigit()
  if words[1:3] != ["-m", "research.train"] or not known or len(told) + len(overrides) < len(words) - 3:
    raise UserError(f"{where} is not python -m research.train --config=FILE --workdir=DIR [--until=STEP] [--config.key=value …], and nothing else may stand in it.")
  return load(told["--config"], overrides), told["--workdir"], int(told["--until"]) if "--until" in told else None


if __name__ == "__main__":
  command(main)
