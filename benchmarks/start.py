"""How long from typing the command to the first step: cold, and with the compilation cache warm.

  python -m benchmarks.start [--config=configs/shakespeare_char.py] [--rounds=5]

The data is prepared beforehand. Each round starts `python -m research.train` anew and waits for the line that follows the first step.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time


def first_step(config: str, workdir: str, data: str, cache: str) -> float:
  """Seconds from starting the process to the line that the command prints after its first step."""
  command = [sys.executable, "-u", "-m", "research.train", f"--config={config}", f"--workdir={workdir}", f"--config.data.directory={data}"]
  environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache, "JAX_PLATFORMS": "cpu"}
  environment.pop("GLIBC_TUNABLES", None)
  start = time.perf_counter()
  with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
    for line in process.stdout:
      if line.startswith("first step"):
        seconds = time.perf_counter() - start
        process.kill()
        return seconds
  raise SystemExit("the command ended before its first step")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default="configs/shakespeare_char.py")
  parser.add_argument("--rounds", type=int, default=5)
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    data = os.path.join(folder, "data")
    first_step(flags.config, os.path.join(folder, "prepare"), data, os.path.join(folder, "prepare_cache"))
    print(f"{'compilation cache':<20}{'median s':>10}{'min':>8}{'max':>8}")
    warm_cache = os.path.join(folder, "warm")
    first_step(flags.config, os.path.join(folder, "warm_run"), data, warm_cache)
    for name in ("cold", "warm"):
      times = []
      for i in range(flags.rounds):
        cache = warm_cache if name == "warm" else os.path.join(folder, f"cold{i}")
        times.append(first_step(flags.config, os.path.join(folder, f"{name}{i}"), data, cache))
      print(f"{name:<20}{statistics.median(times):>10.1f}{min(times):>8.1f}{max(times):>8.1f}", flush=True)


if __name__ == "__main__":
  main()
