"""Runs of a study handed on, to end some time later: to SLURM and Google Kubernetes Engine by the scripts of launch/, to anything else as a list of commands.

SLURM gets one array by launch/slurm.sh, not by submitit: the script knows what a run of several nodes needs, requeues a job that was told to stop, hands arguments on
as words, and is tried on a real SLURM; submitit would add a second way to requeue (it pickles a function) and a dependency.

Only runs that can start are handed on: one that starts from another's weights, or whose arm is not tuned yet, comes with the same command once those have ended; so do
the evaluations, which a sweep on one machine (--launcher=local) adds.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence

from research.core.errors import UserError
from research.studies.address import ROOT
from research.studies.board import DONE, FAILED, WAITS
from research.studies.launch import TRAINING, Outcome, Todo, left, make_folder
from research.studies.runs import Run

JOBS = "slurm.json"  # address -> job of SLURM
LOGS = "slurm_logs"


def commands(runs: Sequence[Run], root: str, say: Callable[[str], None], dry_run: bool) -> Outcome:
  """Prints what is left to do, a line for a shell each: run after run, its evaluations after its training. No value in it can be more than a word."""
  states, listed = {}, set()
  for run in runs:
    states[run.address], tasks = _left(run, root, say)
    if not tasks:
      continue
    if run.after in listed:
      print("# from here on: when the runs above have ended", flush=True)
      listed.clear()
    listed.add(run.address)
    print(" && ".join(shlex.join(["python", "-m", *task.words]) for task in tasks), flush=True)
    if not dry_run:
      make_folder(run, root)
  return Outcome(states, pending=WAITS in states.values())


def _left(run: Run, root: str, say: Callable[[str], None]) -> tuple[str, list[Todo]]:
  """What a run is, and the commands that it still needs."""
  try:
    tasks = left(run, root)
  except UserError as error:
    say(f"FAILED {run}: {error}")
    return FAILED, []
  return WAITS if tasks else DONE, tasks


def _ready(runs: Sequence[Run], root: str, say: Callable[[str], None]) -> tuple[list[Run], dict[str, str]]:
  """The runs whose training can start now, and what all are."""
  found, states, untrained = [], {}, set()
  for run in runs:
    states[run.address], tasks = _left(run, root, say)
    if states[run.address] == FAILED or any(task.what == TRAINING for task in tasks):
      untrained.add(run.address)
    if tasks and run.address not in untrained:
      say(f"trained {run}: its evaluations are added by --launcher=local")
    elif tasks and run.after in untrained:
      say(f"later  {run}: it starts from the weights of a run that has not ended")
    elif tasks:
      found.append(run)
  return found, states


def slurm(runs: Sequence[Run], root: str, say: Callable[[str], None], name: str, flags: Sequence[str], parallel: int, dry_run: bool) -> Outcome:
  """Submits one array of all runs that can start and are not in the queue already.

  Args:
    flags: of launch/slurm.sh: --nodes, --gpus-per-node, --time, …
    parallel: how many of the array run at a time; 0: as many as SLURM lets.

  Raises:
    UserError: no SLURM on this machine, or a flag that the script refuses.
  """
  root = os.path.abspath(root)  # jobs start in the checkout
  now, states = _ready(runs, root, say)
  jobs = {} if dry_run else _jobs(root)
  queued = set() if dry_run or not jobs else set(_output(["squeue", "--noheader", "--array", "--me", "--format=%i"]).split())
  for run in [run for run in now if jobs.get(run.address) in queued]:
    now.remove(run)
    say(f"queued  {run}: job {jobs[run.address]}")
  if not now:
    return Outcome(states, pending=WAITS in states.values())
  for run in now if not dry_run else ():
    make_folder(run, root)
  limit = [f"--array=%{parallel}"] if parallel else []
  with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
    file.writelines(shlex.join(_absolute(run, root)) + "\n" for run in now)
    file.flush()
    command = ["bash", _script("slurm.sh"), f"--name={_slug(name)}", f"--logs={os.path.join(root, LOGS)}", f"--array-file={file.name}", *limit, *flags]
    printed = _output([*command, *(["--dry-run"] if dry_run else [])])
  print(printed, flush=True)
  if not dry_run:
    job = re.search(r"Submitted batch job (\d+)", printed)
    if job is None:
      raise UserError(f"sbatch told no job: {printed.splitlines()[-1]}")
    _save_jobs(root, jobs | {run.address: f"{job[1]}_{i}" for i, run in enumerate(now)})
  return Outcome(states, pending=True)


def _absolute(run: Run, root: str) -> list[str]:
  """The arguments of a run, with paths that do not depend on where it starts."""
  full = lambda word, flag: flag + os.path.abspath(word.removeprefix(flag)) if word.startswith(flag) else word
  config, *rest = run.arguments(root)
  return [full(config, "--config="), *(full(word, "--config.init_from=") for word in rest)]


def gke(runs: Sequence[Run], root: str, say: Callable[[str], None], name: str, flags: Sequence[str], dry_run: bool) -> Outcome:
  """Applies a JobSet for each run that can start; one that is there already stays as it is.

  Args:
    flags: of launch/gke.sh: --image, --tpu, --volume, … `root` must lie on the volume.
  """
  now, states = _ready(runs, root, say)
  for run in now:
    if not dry_run:
      make_folder(run, root)
    named = f"{_slug(name).lower()[:24].strip('-')}-{run.address}" + (f"-{run.until}" if run.until else "")  # each rung of halving is a job of its own
    command = ["bash", _script("gke.sh"), f"--name={named}", *flags, *(["--dry-run"] if dry_run else []), "--", *run.arguments(root)]
    print(_output(command), flush=True)
  return Outcome(states, pending=WAITS in states.values())


def _script(name: str) -> str:
  path = os.path.join(ROOT, "launch", name)
  if not os.path.isfile(path):
    raise UserError(f"there is no launch/{name} beside the package: start the sweep from a checkout.")
  return path


def _slug(name: str) -> str:
  """Letters, digits and dashes, a letter first."""
  return re.sub(r"[^A-Za-z0-9]+", "-", f"x{name}" if not name[:1].isalpha() else name).strip("-")


def _output(command: Sequence[str]) -> str:
  if shutil.which(command[0]) is None:
    raise UserError(f"there is no {command[0]} on this machine: start the sweep where jobs are submitted, or take another --launcher.")
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    last = (done.stderr or done.stdout).strip().splitlines()[-1:]
    raise UserError(f"{os.path.basename(command[1] if command[0] == 'bash' else command[0])}: {' '.join(last).removeprefix('error: ')}")
  return done.stdout.rstrip()


def _jobs(root: str) -> dict[str, str]:
  try:
    with open(os.path.join(root, JOBS), encoding="utf-8") as file:
      return json.load(file)
  except FileNotFoundError:
    return {}


def _save_jobs(root: str, jobs: dict[str, str]) -> None:
  path = os.path.join(root, JOBS)
  with open(path + ".tmp", "w", encoding="utf-8") as file:
    json.dump(jobs, file, indent=1, sort_keys=True)
  os.replace(path + ".tmp", path)
