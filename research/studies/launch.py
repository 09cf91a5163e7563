"""Runs of a study in processes of this machine, so many at a time.

What has been done stands in the workdirs and nowhere else: `left` reads there what a run still needs, and a sweep that is started again asks the same. What is done is
not run again; what was killed goes on, since the same command of research.train does; what failed is shown, and does not stop the others.
A run that another process is writing to (one that outlived its sweep, a job of a cluster) is waited for.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from research.core.errors import UserError
from research.core.overrides import flag, load
from research.studies.address import code_hash
from research.studies.board import DONE, ELSEWHERE, FAILED, RUNS, WAITS, Board
from research.studies.results import LOG
from research.studies.runs import DATA, Run, evaluations, measured
from research.studies.study import evaluation
from research.training.book import read_summary
from research.training.checkpoint import FOLDER as CHECKPOINTS
from research.training.stop import Stop
from research.training.workdir import held

TRAINING = "training"  # what a run needs before its evaluations
TOGETHER = "together"  # folder of the lists of runs that are one program, and of their logs
MEMORY = 0.9  # of a GPU: what runs that share it may take of it, all together
ALLOCATION = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_ALLOCATOR")  # JAX's variables; who sets one decides alone
SHOWN = 12  # lines of a failed run's log
TICK = 0.1  # seconds between two looks


class Todo(NamedTuple):
  what: str  # TRAINING, or the name of an evaluation
  words: list[str]  # what follows `python -m`


class Outcome(NamedTuple):
  states: dict[str, str]  # address -> DONE, FAILED, or what it was when the sweep was told to stop
  signal: int | None = None  # that told it to stop
  pending: bool = False  # the runs have been handed on, to end some time later
  edited: bool = False  # the code is no longer the one that the runs are addressed by, so no more were started

  @property
  def stopped(self) -> bool:
    """Whether runs are left that may still end well, so that nothing follows from what there is."""
    return self.signal is not None or self.pending or self.edited


class Share(NamedTuple):
  """What one of the runs at a time has of this machine."""

  environment: dict[str, str]
  cores: frozenset[int] = frozenset()  # none: all


class Child(NamedTuple):
  runs: tuple[Run, ...]  # several where they are one program
  what: str
  process: subprocess.Popen
  share: Share
  log: str
  start: int  # of its part of the log
  began: float


def left(run: Run, root: str) -> list[Todo]:
  """The commands that a run still needs, one after the other; none: it is done.

  Raises:
    UserError: it was trained on other data than the study's.
  """
  summary, found = read_summary(run.folder(root)), evaluations(run, root)
  trained = summary.get("step") == run.steps if run.until is None else summary.get("step", 0) >= run.until
  if trained and summary["data_hash"] != run.data_hash:
    raise UserError(f"it was trained on other data (hash {summary['data_hash']}) than the study's ({run.data_hash}): a file changed while the study ran; sweep again.")
  tasks = [] if trained else [Todo(TRAINING, ["research.train", *run.arguments(root)])]
  for text in run.evals if run.until is None else ():
    name, flags = evaluation(text)
    of, at = (f" of {flags['data']}" if "data" in flags else ""), (f" at step {flags['step']}" if "step" in flags else "")
    settings = found.get(name + of + at, {}).get("settings", {})
    if not trained or settings.get("step") != int(flags.get("step", run.steps)) or str(settings.get("pairs_each")) != flags.get("pairs", "None"):
      words = ["research.evaluate", f"--workdir={run.folder(root)}", f"--evals={name}", *(f"--{key}={value}" for key, value in flags.items())]
      tasks.append(Todo(name + of + at, words))
  return tasks


def make_folder(run: Run, root: str) -> None:
  """The run's workdir, with the data that are prepared already. A link, not data.directory: the config stays that of the run alone, and the study can be moved."""
  os.makedirs(run.folder(root), exist_ok=True)
  if not os.path.lexists(link := os.path.join(run.folder(root), DATA)):
    os.symlink(os.path.join("..", "..", DATA), link)


def local(runs: Sequence[Run], root: str, board: Board, parallel: int, together: int = 1) -> Outcome:
  """Brings all runs to their end, in `parallel` processes at a time, of which each trains up to `together` runs that are one program.

  SIGTERM and Ctrl-C stop them, which save, and a second Ctrl-C kills them. Once the code is edited no other is started; those under way come to their end.

  Raises:
    UserError: there are GPUs, and `parallel` runs cannot share them evenly.
  """
  free, children, told, edited = shares(parallel), [], None, False
  states = {run.address: _first(run, root) for run in runs}
  known = {run.address: run for run in runs}
  awaits = lambda run: states.get(run.after, DONE) != DONE and not _trained(known[run.after], root)  # weights; the evaluations of the run that has them may come later
  try:
    with board, Stop() as stop:
      for run in (run for run in runs if states[run.address] == ELSEWHERE):
        board.say(f"waits  {run}: another process is at work on it · {run.folder(root)}")
      while True:
        for child in [child for child in children if child.process.poll() is not None]:
          children.remove(child)
          free.append(child.share)
          states |= {run.address: _ended(child, run, root, told is not None, board) for run in child.runs}
        if stop.signal is not None and told is None:
          told = stop.signal
          board.say(f"told to stop by {signal.Signals(told).name}: {len(children)} runs save")
          for child in children:
            child.process.terminate()
        for run in runs if told is None and not edited else ():
          if states[run.address] == ELSEWHERE and held(run.folder(root)) is None:
            states[run.address] = WAITS
          if states[run.address] != WAITS:
            continue
          if awaits(run):
            if states[run.after] == FAILED:
              states[run.address] = FAILED
              board.say(f"FAILED {run}: the run that it starts from has failed")
            continue
          if len(children) + list(states.values()).count(ELSEWHERE) >= parallel:
            continue
          states[run.address], task = _look(run, root, board)
          if task is not None and code_hash(run.components) != run.code_now:
            edited = True
            board.say(f"the code was edited under the sweep: {run} is not started, nor any other" + (f"; {len(children)} under way come to their end" if children else ""))
            break
          if task is not None and (holder := held(run.folder(root))):
            states[run.address] = ELSEWHERE
            board.say(f"waits  {run}: {holder} is writing to {run.folder(root)}")
          elif task is not None:
            group = [run, *_alike(run, task, [other for other in runs if states[other.address] == WAITS and not awaits(other)], root, together - 1)]
            states |= {each.address: RUNS for each in group}
            children.append(_start(group, task, root, free.pop(), board))
        ended = not children and (told is not None or edited or not {WAITS, ELSEWHERE} & set(states.values()))
        board.update(states, last=ended)
        if ended:
          return Outcome(states, told, edited=edited)
        time.sleep(TICK)
  finally:
    for child in children:
      child.process.kill()
      child.process.wait()


def _first(run: Run, root: str) -> str:
  if held(run.folder(root)):
    return ELSEWHERE
  with contextlib.suppress(UserError):
    return WAITS if left(run, root) else DONE
  return WAITS


def _trained(run: Run, root: str) -> bool:
  """Whether its weights are there."""
  with contextlib.suppress(UserError):
    return all(todo.what != TRAINING for todo in left(run, root))
  return False


def _look(run: Run, root: str, board: Board) -> tuple[str, Todo | None]:
  """What a run is that nobody works on, and what it needs next."""
  try:
    tasks = left(run, root)
  except UserError as error:
    board.say(f"FAILED {run}: {error}")
    return FAILED, None
  return (WAITS, tasks[0]) if tasks else (DONE, None)


def _alike(run: Run, task: Todo, runs: Sequence[Run], root: str, limit: int) -> list[Run]:
  """At most `limit` others of the runs, which could start now, that are one program with `run`, at the same step."""
  if limit < 1 or task.what != TRAINING:
    return []
  from research.training import together

  key = lambda each: (together.program(load(each.base, [flag(*item) for item in each.overrides.items()])), _last_step(each, root), each.until)
  mine, found = key(run), []
  for other in runs:
    if len(found) == limit:
      break
    with contextlib.suppress(UserError):  # it is told when its turn comes
      if other is not run and not held(other.folder(root)) and [todo.what for todo in left(other, root)[:1]] == [TRAINING] and key(other) == mine:
        found.append(other)
  return found


def _last_step(run: Run, root: str) -> int:
  """Of its checkpoints; -1 where it has none."""
  folder = os.path.join(run.folder(root), CHECKPOINTS)
  return max((int(name) for name in os.listdir(folder) if name.isdigit()), default=-1) if os.path.isdir(folder) else -1


def _start(runs: Sequence[Run], task: Todo, root: str, share: Share, board: Board) -> Child:
  for run in runs:
    make_folder(run, root)
  first, words = runs[0], task.words
  path, which = os.path.join(first.folder(root), LOG), f"{first} · {task.what} · {first.folder(root)}"
  if len(runs) > 1:
    os.makedirs(os.path.join(root, TOGETHER), exist_ok=True)
    stem = os.path.join(root, TOGETHER, first.address)
    with open(stem + ".txt", "w", encoding="utf-8") as file:
      file.writelines(run.command(root) + "\n" for run in runs)
    path, words, which = stem + ".log", ["research.together", stem + ".txt"], f"{len(runs)} runs in one program ({'; '.join(map(str, runs))}) · {stem}.txt"
  environment = {**os.environ, **share.environment, "PYTHONUNBUFFERED": "1"}  # the log of a run that is killed is whole
  environment.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(os.path.abspath(root), "compilation_cache"))  # runs that differ in seeds are one program
  with open(path, "a", encoding="utf-8") as log:
    start = log.tell()
    # A session of its own: Ctrl-C reaches the sweep alone, which then tells each run once.
    process = subprocess.Popen([sys.executable, "-m", *words], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
                               start_new_session=True)  # fmt: skip
  if share.cores:
    with contextlib.suppress(ProcessLookupError):  # it has ended already
      os.sched_setaffinity(process.pid, share.cores)
  board.say(f"start  {which}")
  return Child(tuple(runs), task.what, process, share, path, start, time.monotonic())


def _ended(child: Child, run: Run, root: str, stopping: bool, board: Board) -> str:
  """What one of the runs is whose process has ended: what it left counts, not its status."""
  status, seconds = child.process.returncode, time.monotonic() - child.began
  state, task = _look(run, root, board)
  if state == FAILED:
    return FAILED
  if task is None or task.what != child.what:
    score = measured(run, root, board.metric)
    board.say(f"done   {run} · {child.what}" + (f" · {board.metric} {score:.4f}" if score is not None else "") + f" · {seconds:.0f} s")
    return state
  if stopping:
    return WAITS
  if held(run.folder(root)):
    return ELSEWHERE
  how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
  board.say(f"FAILED {run}: {child.what} {how}; the end of {child.log}:\n{tail(child.log, child.start)}")
  return FAILED


def tail(path: str, start: int) -> str:
  """The last lines of a log from `start` on, indented."""
  with open(path, "rb") as file:
    file.seek(start)
    lines = file.read().decode("utf-8", "replace").rstrip().splitlines()
  return "\n".join(f"  | {line}" for line in lines[-SHOWN:]) or "  | (it is empty)"


def shares(parallel: int) -> list[Share]:
  """For each of the runs at a time its share of this machine's GPUs, or of one GPU its share of the memory; where there are none, of its CPU cores: small models use few well.

  Raises:
    UserError: the GPUs cannot be shared evenly.
  """
  if parallel == 1:
    return [Share({})]
  if os.environ.get("JAX_PLATFORMS") == "cpu":
    return _cores(parallel)
  gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
  if not gpus and "CUDA_VISIBLE_DEVICES" not in os.environ and shutil.which("nvidia-smi"):
    gpus = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=False).stdout.split()
  if not gpus:
    return _cores(parallel)
  if parallel % len(gpus) == 0:
    each = parallel // len(gpus)
    memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{MEMORY / each:.3f}"} if each > 1 and not any(key in os.environ for key in ALLOCATION) else {}
    return [Share({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)], **memory}) for i in range(parallel)]
  if len(gpus) % parallel:
    raise UserError(f"--parallel={parallel}: {len(gpus)} GPUs cannot be shared evenly by so many runs; take a divisor or a multiple of {len(gpus)}.")
  share = len(gpus) // parallel
  return [Share({"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * share : (i + 1) * share])}) for i in range(parallel)]


def _cores(parallel: int) -> list[Share]:
  """The cores that this process may use, dealt out; where there are fewer than runs at a time, or the system cannot tell, all to all."""
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
  return [Share({}, frozenset(cores[i::parallel] if len(cores) >= parallel else ())) for i in range(parallel)]
