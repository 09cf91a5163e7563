"""Runs a study: every run that is not done yet, each in a process and a folder of its own.

  python -m research.sweep experiments/x/study.py --workdir=DIR [--parallel=N] [--together=K] [--launcher=local|slurm|gke|commands] [--config.key=value …]

Leaves DIR/study.json (the question, the arms, every run with its command), DIR/runs/<address> (a workdir of research.train for each run, with its log.txt) and
DIR/data. A run's address is a hash of its config, its data and its code, so the same command again runs what is not done, resumes what was killed and
tries again what failed. SIGTERM and Ctrl-C stop the runs, which save.

  local     on this machine, in N processes at a time, each with its share of the GPUs (or of one GPU's memory) or, without any, of the cores; with a live
            table; evaluations after each run.
            With --together=K a process trains up to K runs that differ only in seeds and numbers of the optimizer in one program (research.together):
            compiled once, and side by side on an accelerator
  slurm     one array, by launch/slurm.sh (its flags: --launcher_flags="--gpus-per-node=8 --time=1-0")
  gke       a JobSet for each run, by launch/gke.sh (its flags likewise)
  commands  prints the commands, a line for a run, and runs nothing

--config.key=value changes all arms. --dry_run prints what would be run, and costs; it prepares the data (the addresses need them) and writes nothing else.
"""

from __future__ import annotations

from research.core import startup

if __name__ == "__main__":
  startup.quiet()

import contextlib
import functools
import os
import sys

from absl import flags

from research.core.errors import UserError, command
from research.core.flags import parse

FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "folder of the study", flag_values=FLAGS)
flags.DEFINE_enum("launcher", "local", ["local", "slurm", "gke", "commands"], "where the runs are run", flag_values=FLAGS)
flags.DEFINE_integer("parallel", None, "runs at a time (default: local 1, slurm as many as it lets)", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("together", 1, "runs that one process trains in one program (local)", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("launcher_flags", "", "flags of launch/slurm.sh or launch/gke.sh", flag_values=FLAGS)
flags.DEFINE_boolean("dry_run", False, "print what would be run", flag_values=FLAGS)
flags.DEFINE_boolean("keep_code", False, "count the runs that study.json lists as they are, though the code has changed since: you vouch that it does not matter", flag_values=FLAGS)


def main(arguments: list[str]) -> int:
  path = next((argument for argument in arguments if not argument.startswith("-")), None)
  overrides = parse([argument for argument in arguments if argument != path], FLAGS, __doc__)
  if path is None:
    raise UserError("name the study: python -m research.sweep experiments/x/study.py --workdir=DIR.")
  if not FLAGS.workdir:
    raise UserError("--workdir is missing: name a folder for the study.")
  if os.path.exists(FLAGS.workdir) and not os.path.isdir(FLAGS.workdir):
    raise UserError(f"--workdir={FLAGS.workdir} is a file: name a folder for the study.")
  if FLAGS.launcher_flags and FLAGS.launcher not in ("slurm", "gke"):
    raise UserError(f"--launcher_flags are for slurm and gke; {FLAGS.launcher} takes none.")
  if FLAGS.together > 1 and FLAGS.launcher != "local":
    raise UserError(f"--together is for the local launcher; {FLAGS.launcher} gives each run a job of its own.")
  import jax

  jax.config.update("jax_platforms", "cpu")  # a sweep computes nothing itself, and must not hold what its runs need
  from research.studies import board, clusters, launch, stages
  from research.studies.runs import Ready
  from research.studies.study import load_study, words_of
  from research.training.workdir import claimed

  words = words_of(FLAGS.launcher_flags, "--launcher_flags")
  study = load_study(path, overrides)
  say = functools.partial(print, file=sys.stderr if FLAGS.launcher == "commands" or FLAGS.dry_run else sys.stdout, flush=True)
  os.makedirs(FLAGS.workdir, exist_ok=True)
  root, many = FLAGS.workdir, FLAGS.parallel

  def start(runs):
    if FLAGS.launcher == "slurm":
      return clusters.slurm(runs, root, say, study.name, words, many or 0, FLAGS.dry_run)
    if FLAGS.launcher == "gke":
      return clusters.gke(runs, root, say, study.name, words, FLAGS.dry_run)
    if FLAGS.launcher == "commands" or FLAGS.dry_run:
      return clusters.commands(runs, root, say, FLAGS.dry_run)
    return launch.local(runs, root, board.Board(runs, root, study.metric, say), many or 1, FLAGS.together)

  def make(study):
    ready = Ready(study, root, say, FLAGS.keep_code)
    say(f"{study.name}: {len(ready.arms)} arms × {len(study.blocks)} blocks, equal {study.equal} ({study.amount:,} each)\n{ready.table()}")
    return ready

  with contextlib.nullcontext() if FLAGS.dry_run else claimed(root):
    if study.search:
      return stages.search(make, study, start, say, write=not FLAGS.dry_run)
    return stages.sweep(make(study), start, say, write=not FLAGS.dry_run)


if __name__ == "__main__":
  command(main)
