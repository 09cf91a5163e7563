"""Writes studies up from what research.sweep left, finished or not.

  python -m research.report DIR [DIR …]

Each DIR, the folder of a study, gets report.md, report.html (self-contained), results.csv (a line a run), table.tex and figures/: the same folder gives
the same bytes. Times, devices and versions go to environment.md. Reads study.json and the runs' folders alone; JAX is not needed.
"""

from __future__ import annotations

from absl import flags

from research.core.errors import UserError, command
from research.core.flags import parse

FLAGS = flags.FlagValues()


def main(arguments: list[str]) -> None:
  folders = [argument for argument in arguments if not argument.startswith("-")]
  if parse([argument for argument in arguments if argument.startswith("-")], FLAGS, __doc__):
    raise UserError("report takes no --config.… flags: it tells of runs as they are.")
  if not folders:
    raise UserError("name the folder of a study: python -m research.report DIR.")
  from research.studies import writing

  for folder in folders:
    print(writing.write(folder), flush=True)


if __name__ == "__main__":
  command(main)
