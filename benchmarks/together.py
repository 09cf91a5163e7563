"""Many runs in one program beside the same runs one after the other: time, and how far apart they end.

  python -m benchmarks.together [--steps=200] [--rates=8] [--seeds=2] [--singles=16] [--config=configs/shakespeare_char.py]

Learning rates from a quarter of the config's to four times it, seeds that share their data order; the data are prepared before, and runs of one kind share a cache of
compiled programs, as in a sweep: the first compiles for all. Where fewer `singles` are run than there are runs, the mean of those after the first stands for the others, and
it is said so. Differences are told by rate: one that is nearly too high makes much of a little rounding. On a GPU `JAX_DEFAULT_MATMUL_PRECISION=highest` compares in
float32; its own default, TF32, rounds a product to three digits.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time

from absl import flags

from benchmarks import compare
from research.core.errors import UserError, command
from research.core.flags import parse

FLAGS = flags.FlagValues()
flags.DEFINE_string("config", "configs/shakespeare_char.py", "what is trained", flag_values=FLAGS)
flags.DEFINE_integer("steps", 200, "updates of a run", lower_bound=21, flag_values=FLAGS)
flags.DEFINE_integer("rates", 8, "learning rates", lower_bound=2, flag_values=FLAGS)
flags.DEFINE_integer("seeds", 2, "seeds of each", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("singles", None, "runs that are made alone too; default: all", lower_bound=1, flag_values=FLAGS)
EARLY = 20  # steps in which rounding has not grown


def main(arguments: list[str]) -> None:
  parse(arguments, FLAGS, __doc__)
  with tempfile.TemporaryDirectory() as root:
    prepare(root)
    rates = [4 ** (2 * i / (FLAGS.rates - 1) - 1) for i in range(FLAGS.rates)]
    runs = [(rate, seed) for seed in range(FLAGS.seeds) for rate in rates]
    order = sorted(range(len(runs)), key=lambda i: i * 7 % len(runs))  # of the few that are made alone: of all rates
    singles = order[: FLAGS.singles or len(runs)]
    print(f"{compare.machine()}; {len(runs)} runs of {FLAGS.steps} steps, {FLAGS.config}", flush=True)
    alone = [timed(root, "alone", ["research.train", *words(root, "alone", i, *runs[i])]) for i in singles]
    print(f"alone: {sum(alone):.1f} s for {len(alone)} runs, {min(alone):.1f} to {max(alone):.1f} s each", flush=True)
    listed = os.path.join(root, "runs.txt")
    with open(listed, "w", encoding="utf-8") as file:
      file.writelines(shlex.join(["python", "-m", "research.train", *words(root, "together", i, *run)]) + "\n" for i, run in enumerate(runs))
    together = timed(root, "together", ["research.together", listed])
    later = alone[1:] or alone
    whole = sum(alone) + sum(later) / len(later) * (len(runs) - len(alone))
    print(f"in one program: {together:.1f} s; {whole / together:.2f} times as fast as {whole:.1f} s alone" + ("" if len(alone) == len(runs) else f" ({len(alone)} measured, the others as the mean of those after the first)"))
    found = {i: apart(root, i) for i in singles}
  print(f"training loss, relative difference    first {EARLY} steps   step {FLAGS.steps}, and the validation loss with it")
  for rate in rates:
    if mine := [found[i] for i in singles if runs[i][0] == rate]:
      print(f"  {rate:5.2f} × the config's learning rate  {line(mine)}")
  print(f"  all of them                         {line(list(found.values()))}")


def line(differences: list[tuple[float, float]]) -> str:
  early, late = map(max, zip(*differences))
  return f"{early:12.1e}   {late:10.1e}"


def words(root: str, kind: str, i: int, rate: float, seed: int) -> list[str]:
  flag = lambda key, value: f"--config.{key}={value}"
  from research.core.overrides import load

  peak = load(FLAGS.config).optimizer.schedule.peak * rate
  return [f"--config={FLAGS.config}", f"--workdir={os.path.join(root, kind, str(i))}", flag("seed", seed), flag("optimizer.schedule.peak", f"{peak:.6g}"),
          flag("steps", FLAGS.steps), flag("data.directory", os.path.join(root, "data")), flag("log.every", 1), flag("log.tensorboard", "false"),
          flag("evaluate.every", FLAGS.steps), flag("checkpoint.every", FLAGS.steps), flag("optimizer.schedule.warmup", FLAGS.steps // 10)]  # fmt: skip


def prepare(root: str) -> None:
  timed(root, "prepare", ["research.preview", f"--config={FLAGS.config}", f"--config.data.directory={os.path.join(root, 'data')}"])


def timed(root: str, kind: str, arguments: list[str]) -> float:
  """Seconds of a command, from its start to its end."""
  env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": os.path.join(root, f"cache_{kind}"), "PYTHONPATH": os.pathsep.join(filter(None, (compare.ROOT, os.environ.get("PYTHONPATH"))))}
  started = time.perf_counter()
  run = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False, env=env, cwd=compare.ROOT)
  if run.returncode:
    raise UserError(f"`{shlex.join(arguments)}` ended with status {run.returncode}: {(run.stderr or run.stdout).strip()[-800:]}")
  return time.perf_counter() - started


def apart(root: str, i: int) -> tuple[float, float]:
  """The largest relative difference of the losses of run i in the first steps, and at the end."""
  lines = [[json.loads(line) for line in open(os.path.join(root, kind, str(i), "metrics.jsonl"), encoding="utf-8")] for kind in ("alone", "together")]
  found = [(a["step"], abs(a["loss"] - b["loss"]) / abs(a["loss"])) for a, b in zip(*lines, strict=True)]
  return max(d for step, d in found if step <= EARLY), max(d for step, d in found if step == FLAGS.steps)


if __name__ == "__main__":
  command(main)
