"""One run in several processes on this machine: the same numbers, one killed, resumed on another mesh.

  python -m tests.several_processes          prints the tables

1, 2 and 4 processes hold the same mesh of 8 simulated devices. One of two processes is killed: how the other ends, and whether the run,
started again, ends with the arrays of an undisturbed one. A run that two processes have saved goes on in one process on another mesh.
The test suite runs a short form (tests/parallel/processes_test.py).
"""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

from tests import resume_under_kill as runs

COMMON = ("--config.batch_size=8", "--config.evaluate.every=1000", "--config.log.every=1")
STEPS = 50


def free_port() -> int:
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


def start(processes: int, devices: int, config: str, workdir: str, *overrides: str, each: dict[int, tuple[str, ...]] | None = None,
          port: int | None = None) -> list[subprocess.Popen]:  # fmt: skip
  """`python -m research.train` in `processes` processes of `devices` simulated devices; their output is in workdir.0.log, ….

  `each`: arguments of a process alone.
  """
  flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
  environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": os.path.join(os.path.dirname(workdir), f"cache{devices}")}
  port = port or free_port()
  found = []
  for i in range(processes):
    place = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={i}"] if processes > 1 else []
    command = [sys.executable, "-m", "research.train", f"--config={config}", f"--workdir={workdir}", *place, *COMMON, *overrides, *(each or {}).get(i, ())]
    with open(f"{workdir}.{i}.log", "w", encoding="utf-8") as log:
      found.append(subprocess.Popen(command, cwd=runs.ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT))
  return found


def output(workdir: str, process: int = 0) -> str:
  return pathlib.Path(f"{workdir}.{process}.log").read_text()


def wait(found: list[subprocess.Popen], seconds: float = 300) -> list[int]:
  """Exit statuses."""
  try:
    return [process.wait(timeout=seconds) for process in found]
  finally:
    for process in found:
      process.kill()


def until(workdir: str, step: int, found: list[subprocess.Popen]) -> None:
  """Returns once the metrics of `step` are written."""
  while max((line["step"] for line in runs.read_metrics(workdir)), default=0) < step:
    assert all(process.poll() is None for process in found), [output(workdir, i)[-2000:] for i in range(len(found))]
    time.sleep(0.02)


def losses(workdir: str) -> list[float]:
  return [line["loss"] for line in runs.read_metrics(workdir) if line["split"] == "train"]


def furthest(one: list[float], other: list[float]) -> float:
  assert len(one) == len(other) == STEPS, (len(one), len(other))
  return max(abs(a - b) for a, b in zip(one, other))


def same_numbers(folder: str, config: str) -> None:
  mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2", f"--config.steps={STEPS}")
  found = {}
  print("| processes × devices | step 1, relative | largest difference |\n| --- | --- | --- |")
  for processes in (1, 2, 4):
    workdir = os.path.join(folder, f"same{processes}")
    assert wait(start(processes, 8 // processes, config, workdir, *mesh)) == [0] * processes, output(workdir)[-3000:]
    found[processes] = losses(workdir)
    one, many = found[1], found[processes]
    print(f"| {processes} × {8 // processes} | {abs(many[0] / one[0] - 1):.1e} | {furthest(one, many):.1e} |", flush=True)


def killed(folder: str, config: str) -> None:
  keys = ("--config.mesh.data=1", "--config.mesh.fsdp=4", f"--config.steps={STEPS}", "--config.checkpoint.every=10")
  whole = os.path.join(folder, "whole")
  assert wait(start(2, 2, config, whole, *keys)) == [0, 0], output(whole)[-3000:]
  for victim in (1, 0):
    workdir = os.path.join(folder, f"killed{victim}")
    found = start(2, 2, config, workdir, *keys)
    until(workdir, 25, found)
    found[victim].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    status = wait(found)[1 - victim]
    told = [line for line in output(workdir, 1 - victim).splitlines() if line.startswith("error:") or "Terminating process" in line]
    print(f"\nprocess {victim} of 2 killed after step 25: the other ended after {time.monotonic() - begun:.0f} s with status {status}: {told[0][:240]}")
    assert wait(start(2, 2, config, workdir, *keys)) == [0, 0], output(workdir)[-3000:]
    differ = runs.same_arrays(whole, workdir)
    resumed = [line for line in output(workdir).splitlines() if "resumed at step" in line]
    print(f"started again ({resumed[0].rpartition('·')[2].strip()}): {len(differ)} of {len(runs.arrays(whole)[1])} arrays differ from an undisturbed run's, metrics "
          f"{'equal' if runs.lines(whole) == runs.lines(workdir) else 'NOT equal'}", flush=True)  # fmt: skip


def elastic(folder: str, config: str) -> None:
  keys = (f"--config.steps={STEPS}", "--config.checkpoint.every=10", "--config.evaluate.every=10")
  fsdp, tensor = ("--config.mesh.data=1", "--config.mesh.fsdp=4"), ("--config.mesh.data=2", "--config.mesh.tensor=2")
  whole, moved = os.path.join(folder, "stays"), os.path.join(folder, "moves")
  assert wait(start(2, 2, config, whole, *keys, *fsdp)) == [0, 0], output(whole)[-3000:]
  found = start(2, 2, config, moved, *keys, *fsdp)
  until(moved, 20, found)
  found[1].send_signal(signal.SIGTERM)
  status = wait(found)
  saved = runs.checkpoints(moved)[0][-1]
  assert wait(start(1, 4, config, moved, *keys, *tensor)) == [0], output(moved)[-3000:]
  evaluated = [[(line["step"], line["loss"]) for line in runs.read_metrics(path) if line["split"] == "valid"] for path in (whole, moved)]
  assert [step for step, _ in evaluated[0]] == [step for step, _ in evaluated[1]]
  print(f"\nSIGTERM to process 1 of 2 (fsdp 4): statuses {status}, both saved at step {saved}; resumed in 1 process on data 2 × tensor 2: largest difference of a loss "
        f"{furthest(losses(whole), losses(moved)):.1e}, of an evaluation {max(abs(a - b) for (_, a), (_, b) in zip(*evaluated)):.1e}")  # fmt: skip


def main() -> None:
  with tempfile.TemporaryDirectory() as folder:
    config = runs.write_config(folder)
    same_numbers(folder, config)
    killed(folder, config)
    elastic(folder, config)


if __name__ == "__main__":
  main()
