"""A sweep that is killed again and again ends with the same study.json, the same runs, each once, and the same report as one that nobody disturbs.

  python -m tests.sweep_under_kill --kills=10 [--together=4]          prints the table

A study of 2 arms × 4 blocks is swept undisturbed. The same is swept in another folder and killed at random moments, in turn: the sweep alone by SIGKILL (its runs live on),
the sweep and its runs by SIGKILL (a machine that goes down), the sweep by SIGTERM; and started again each time. Compared at the end: study.json, byte by byte; the folders
of the runs; the report, byte by byte but for the file of times and machines; and of each run all arrays of its last checkpoint, bit by bit, the lines of metrics.jsonl but for times, and what counts in summary.json. The test suite kills
one sweep once, and many stand-ins of runs (tests/studies/sweep_test.py).
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from tests import resume_under_kill as tiny

ROOT = pathlib.Path(__file__).parent.parent
HOW = ("sweep", "all", "SIGTERM")
STUDY = """
from research.studies.study import Study

def get_study():
  return Study("Does width matter?", "tiny.py", [{"model.width": 16}, {"model.width": 32}], seeds=4, steps=600, name="width")
"""
COUNTS = ("step", "train", "valid", "best", "parameters", "tokens", "flops", "config_hash", "data_hash", "version", "skipped", "stopped_by")


def start(folder: str, together: int) -> subprocess.Popen:
  """`python -m research.sweep study.py --workdir=out` in `folder`: no path in study.json tells the two apart."""
  environment = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": os.path.join(os.path.dirname(folder), "cache"),
  }
  command = [sys.executable, "-m", "research.sweep", "study.py", "--workdir=out", "--parallel=2", f"--together={together}"]
  return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def children(process: subprocess.Popen) -> list[int]:
  return [int(number) for number in subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout.split()]


def report(folder: str) -> dict[str, bytes]:
  """What `python -m research.report out` in `folder` writes, by name, but for what it found of times and machines."""
  run = subprocess.run([sys.executable, "-m", "research.report", "out"], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
  assert run.returncode == 0, run.stdout + run.stderr
  top = pathlib.Path(folder, "out")
  files = [path for name in ("report.*", "*.csv", "*.tex", "figures/*") for path in top.glob(name)]
  return {str(path.relative_to(top)): path.read_bytes() for path in files}


def kill(folder: str, how: str, seconds: float, together: int) -> tuple[float, int, str] | None:
  """Starts the sweep and kills it after `seconds`: when, how many runs were under way, and its last line. None where it had ended before."""
  process = start(folder, together)
  begun = time.monotonic()
  try:
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output[-3000:]
    return None
  except subprocess.TimeoutExpired:
    pass
  runs = children(process)
  process.send_signal(signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL)
  for number in runs if how == "all" else ():
    os.kill(number, signal.SIGKILL)
  after = time.monotonic() - begun
  output, _ = process.communicate()
  assert process.returncode in (-signal.SIGKILL, -signal.SIGTERM, 143), output[-3000:]
  return after, len(runs), (output.strip().splitlines() or [""])[-1]


def same(whole: str, broken: str) -> list[str]:
  """What differs between the two folders."""
  wrong = []
  texts = [pathlib.Path(folder, "study.json").read_bytes() for folder in (whole, broken)]
  if texts[0] != texts[1]:
    wrong.append("study.json differs")
  expected = sorted(run["address"] for run in json.loads(texts[0])["runs"])
  for folder in (whole, broken):
    if (found := sorted(os.listdir(os.path.join(folder, "runs")))) != expected:
      wrong.append(f"{folder} holds the runs {found}, not {expected}")
  one, other = (report(os.path.dirname(folder)) for folder in (whole, broken))
  wrong += [f"the report's {name} differs" for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
  for address in expected:
    one, other = (os.path.join(folder, "runs", address) for folder in (whole, broken))
    wrong += [f"{address}: {name} differs" for name in tiny.same_arrays(one, other)]
    if tiny.lines(one) != tiny.lines(other):
      wrong.append(f"{address}: metrics.jsonl differs")
    plain = lambda value: {key: item for key, item in value.items() if key not in tiny.TIMES} if isinstance(value, dict) else value
    a, b = (json.loads(pathlib.Path(folder, "summary.json").read_text()) for folder in (one, other))
    wrong += [f"{address}: {key} of summary.json differs" for key in COUNTS if plain(a[key]) != plain(b[key])]
  return wrong


def main(kills: int = 10, seed: int = 0, together: int = 1) -> int:
  logging.getLogger("absl").setLevel(logging.ERROR)
  rng = random.Random(seed)
  with tempfile.TemporaryDirectory() as top:
    folders = [os.path.join(top, name) for name in ("whole", "broken")]
    for folder in folders:
      os.mkdir(folder)
      tiny.write_config(folder)
      pathlib.Path(folder, "study.py").write_text(STUDY)
    begun = time.monotonic()
    tiny.finish(start(folders[0], together))
    seconds = time.monotonic() - begun
    print(f"uninterrupted: {seconds:.1f} s\n{'kill':>4}  {'what':<9}{'after, s':>9}{'runs under way':>16}  last line", flush=True)
    done = 0
    while done < kills:
      found = kill(folders[1], HOW[done % 3], seconds * rng.uniform(0.03, 0.15), together)
      if found is None:
        print(f"it has ended after {done} kills: there is nothing left to kill; take more steps", flush=True)
        break
      done += 1
      print(f"{done:>4}  {HOW[(done - 1) % 3]:<9}{found[0]:>9.1f}{found[1]:>16}  {found[2]}", flush=True)
    print(tiny.finish(start(folders[1], together)).strip().splitlines()[-1])
    wrong = same(*(os.path.join(folder, "out") for folder in folders))
    print("\n".join(wrong) or "study.json and report: the same bytes; the same runs, each once: arrays of the last checkpoints, metrics and summaries equal", flush=True)
    return int(bool(wrong) or done < kills)


if __name__ == "__main__":
  import argparse

  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--kills", type=int, default=10)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--together", type=int, default=1)
  arguments = parser.parse_args()
  sys.exit(main(arguments.kills, arguments.seed, arguments.together))
