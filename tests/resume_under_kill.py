"""A run that is killed again and again ends where an uninterrupted one ends, bit for bit.

  python -m tests.resume_under_kill --kills=20          prints the table

One run goes through undisturbed. Another is killed with SIGKILL, half of the times at a random moment, half of the times in the middle of
writing a checkpoint (as soon as an unfinished one is seen), and started again each time. Compared at the end: all arrays of the last
checkpoint, bit by bit, and metrics.jsonl: the same lines, none missing, none twice, equal but for the times in them. The test suite runs a
short form (tests/training/loop_test.py).
"""

from __future__ import annotations

import logging
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from typing import Any, NamedTuple

import numpy as np

from research.training.checkpoint import FOLDER
from research.training.monitor import read_metrics

ROOT = pathlib.Path(__file__).parent.parent
TIMES = ("tokens_per_second", "images_per_second", "mfu")  # what of a line of metrics may differ
CONFIG = """
  from research.core.config import use

  def get_config():
    return use(
        "training.experiment",
        steps=1500,
        batch_size=4,
        data=use(
            "data.text",
            sources={"text": use("data.sources.synthetic", documents=60)},
            tokenizer=use("data.tokenizer", kind="byte"),
            length=32,
        ),
        model=use("model.transformer", layers=2, width=16, attention=use("model.attention.grouped", heads=2), dropout=0.1),
        objective=use("objectives.masked_lm"),
        optimizer=use("optim.optimizer", ema=0.9, schedule=use("optim.schedule", warmup=10)),
        mesh=use("parallel.mesh", data=1),
        checkpoint=use("training.checkpoint", every=25),
        evaluate=use("training.evaluation", every=250),
        log=use("training.monitor", every=20, tensorboard=False),
    )
"""


class Kill(NamedTuple):
  moment: str  # 'random' or 'mid-save'
  seconds: float  # that the process had run
  saved: int  # the last checkpoint that was whole after it, 0: none
  unfinished: bool  # it was writing a checkpoint


def write_config(folder: str) -> str:
  path = os.path.join(folder, "tiny.py")
  pathlib.Path(path).write_text(textwrap.dedent(CONFIG))
  return path


def start(config: str, workdir: str, *overrides: str) -> subprocess.Popen:
  """`python -m research.train` in the background, on one device."""
  environment = {
    **os.environ,
    "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiling is most of so short a run
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": os.path.join(os.path.dirname(workdir), "cache"),
  }
  command = [sys.executable, "-m", "research.train", f"--config={config}", f"--workdir={workdir}", *overrides]
  return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
  """What a run that must succeed has printed."""
  output, _ = process.communicate(timeout=600)
  assert process.returncode == 0, output[-3000:]
  return output


def checkpoints(workdir: str) -> tuple[list[int], set[str]]:
  """Steps of the whole checkpoints, and the names of unfinished ones."""
  try:
    names = os.listdir(os.path.join(workdir, FOLDER))
  except FileNotFoundError:
    return [], set()
  return sorted(int(name) for name in names if name.isdigit()), {name for name in names if "tmp" in name}


def kill(config: str, workdir: str, moment: str, rng: random.Random, seconds: float, *overrides: str) -> Kill | None:
  """Starts the run and kills it: after up to `seconds`, or in the middle of one of its first saves. None where it had ended before."""
  process = start(config, workdir, *overrides)
  begun = time.monotonic()
  wait = rng.uniform(0, seconds)
  whole, remains = checkpoints(workdir)
  first = max(whole, default=0) + 25 * rng.randint(0, 4)  # the save is one after this step
  while process.poll() is None:
    elapsed = time.monotonic() - begun
    whole, unfinished = checkpoints(workdir)
    if (moment == "random" and elapsed >= wait) or (moment == "mid-save" and unfinished - remains and max(whole, default=0) >= first):
      break
    time.sleep(0.0005 if moment == "mid-save" else 0.01)
  ended = process.poll() is not None
  process.send_signal(signal.SIGKILL)
  process.communicate()
  whole, unfinished = checkpoints(workdir)
  return None if ended else Kill(moment, elapsed, whole[-1] if whole else 0, bool(unfinished - remains))


def arrays(workdir: str) -> tuple[int, dict[str, np.ndarray]]:
  """The last checkpoint's step and arrays, by name."""
  import jax
  import orbax.checkpoint as ocp

  from research.core.trees import named_leaves

  step = checkpoints(workdir)[0][-1]
  with ocp.PyTreeCheckpointer() as reader:
    folder = os.path.join(os.path.abspath(workdir), FOLDER, str(step), "state")
    like = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(folder).item_metadata.tree)
    return step, dict(named_leaves(reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=like))))


def same_arrays(one: str, other: str) -> list[str]:
  """Names of the arrays that differ in any bit."""
  (step, a), (last, b) = arrays(one), arrays(other)
  assert step == last and a.keys() == b.keys()
  return [name for name in a if a[name].dtype != b[name].dtype or a[name].tobytes() != b[name].tobytes()]


def lines(workdir: str) -> list[dict[str, Any]]:
  """The metrics without what may differ."""
  return [{key: value for key, value in line.items() if key not in TIMES} for line in read_metrics(workdir)]


def main(kills: int = 20, seed: int = 0) -> int:
  logging.getLogger("absl").setLevel(logging.ERROR)
  rng = random.Random(seed)
  with tempfile.TemporaryDirectory() as folder:
    config = write_config(folder)
    whole, broken = os.path.join(folder, "whole"), os.path.join(folder, "broken")
    finish(start(config, whole))
    begun = time.monotonic()
    finish(start(config, os.path.join(folder, "warm")))  # a second time, as the interrupted runs find all programs compiled
    seconds = time.monotonic() - begun
    print(
      f"uninterrupted: {seconds:.1f} s\n{'kill':>4}  {'moment':<9}{'after, s':>9}{'last whole checkpoint':>23}  while saving", flush=True
    )
    done, runs, wrong = 0, 1, 0
    while done < kills:
      found = kill(config, f"{broken}-{runs}", "mid-save" if done % 2 else "random", rng, seconds)
      if found is None:  # it came to its end before the moment: compare it, and kill another
        wrong += report(whole, f"{broken}-{runs}")
        runs += 1
        continue
      done += 1
      print(f"{done:>4}  {found.moment:<9}{found.seconds:>9.1f}{found.saved:>23}  {'yes' if found.unfinished else 'no'}", flush=True)
    finish(start(config, f"{broken}-{runs}"))
    return int(wrong + report(whole, f"{broken}-{runs}") > 0)


def report(whole: str, broken: str) -> int:
  """Prints the comparison; 1 where the runs differ."""
  differ, a, b = same_arrays(whole, broken), lines(whole), lines(broken)
  at = [(line["step"], line["split"]) for line in b]
  print(f"arrays of the last checkpoint: {len(arrays(whole)[1])}, of which {len(differ)} differ {differ[:3] or ''}")
  print(f"lines of metrics.jsonl: {len(a)} and {len(b)}, {len(at) - len(set(at))} twice, {'equal' if a == b else 'NOT equal'}", flush=True)
  return int(bool(differ) or a != b)


if __name__ == "__main__":
  import argparse

  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  sys.exit(main(arguments.kills, arguments.seed))
