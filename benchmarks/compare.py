"""Contestants taking turns on one machine: what the benchmarks share.

Each contestant is a process that keeps its compiled model and sleeps on a pipe until it is its turn, so only one computes at a time and
slow drifts of the machine (clock, memory, neighbours) meet all alike. Around each turn the CPU time of everything else is read from
/proc/stat; a turn in which others took more than FOREIGN of the machine is dropped, and repeated when they rest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from research.core import startup
from research.core.errors import UserError

FOREIGN = 0.12  # share of the machine's CPU time that others may take during a turn
PATIENCE = 900  # seconds to wait for the machine to be at rest
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Contestant:
  """A worker process. Construction returns when it has sent its first answer, `started`."""

  def __init__(self, name: str, python: str, module: str, *arguments: str, env: dict[str, str] | None = None):
    self.name = name
    self._log = tempfile.TemporaryFile("w+")
    start = time.perf_counter()
    self._process = subprocess.Popen(
        [python, "-m", f"benchmarks.workers.{module}", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": ROOT, **(env or {})},
    )  # fmt: skip
    self.started = self._answer()
    self.start_seconds = time.perf_counter() - start  # from the start of the process
    self.peak_bytes = self.started["peak_bytes"]

  def turn(self, **command: Any) -> tuple[dict[str, Any], float]:
    """The worker's answer, and the share of the machine that others took meanwhile."""
    before = self._ticks()
    self._process.stdin.write(json.dumps(command) + "\n")
    self._process.stdin.flush()
    answer = self._answer()
    total, busy, own = (b - a for a, b in zip(before, self._ticks()))
    self.peak_bytes = answer["peak_bytes"]
    return answer, max(0, busy - own) / max(1, total)

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()

  def _answer(self) -> dict[str, Any]:
    line = self._process.stdout.readline()
    if not line:
      self._process.wait()
      self._log.seek(0)
      raise RuntimeError(f"the worker of '{self.name}' ended with status {self._process.returncode}:\n{self._log.read()}")
    return json.loads(line)

  def _ticks(self) -> tuple[int, int, int]:
    """CPU time so far of the machine, of its busy part, and of worker and parent together."""
    return *_machine_ticks(), _process_ticks(self._process.pid) + _process_ticks(os.getpid())


def _machine_ticks() -> tuple[int, int]:
  """CPU time so far of the whole machine and of its busy part (time stolen by other virtual machines too)."""
  with open("/proc/stat", encoding="ascii") as stat:
    user, nice, system, idle, iowait, *rest = map(int, stat.readline().split()[1:9])
  busy = user + nice + system + sum(rest)
  return busy + idle + iowait, busy


def _process_ticks(pid: int) -> int:
  with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
    fields = stat.read().rpartition(")")[2].split()
  return int(fields[11]) + int(fields[12])  # utime, stime of all threads


def ours(name: str, *arguments: str, module: str = "ours") -> Contestant:
  """A worker of this package, under the malloc that its commands start themselves with; compilation is not cached."""
  path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
  env = {"PYTHONPATH": path, "GLIBC_TUNABLES": startup.MALLOC, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
  return Contestant(name, sys.executable, module, *arguments, env=env)


def peer(name: str, python: str, scratch: str, *arguments: str) -> Contestant:
  """A worker of the peer in its own interpreter, with an empty cache of compiled kernels in the folder `scratch`."""
  return Contestant(name, python, "hf", *arguments, env={"TORCHINDUCTOR_CACHE_DIR": scratch, "HF_HUB_OFFLINE": "1"})


def peer_python(flag: str | None) -> str:
  """The interpreter of the peer's workers: `flag`, or this one.

  Raises:
    UserError: it cannot be run, or torch or transformers are missing there.
  """
  python = flag or sys.executable
  probe = "import importlib.util, sys; sys.exit([m for m in ('torch', 'transformers') if not importlib.util.find_spec(m)] or 0)"
  try:
    run = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=False)
  except OSError as error:
    raise UserError(f"--peer_python={python}: cannot be run ({error.strerror}).") from error
  if run.returncode:
    raise UserError(f"torch or transformers is missing in {python}: `pip install -e .[bench]`, or name another one by --peer_python.")
  return python


def quiet_turn(contestant: Contestant, **command: Any) -> dict[str, Any]:
  """One turn that others did not disturb; where they do, the next try waits for a second of rest.

  Raises:
    UserError: there was no rest for PATIENCE seconds.
  """
  end = time.monotonic() + PATIENCE
  while True:
    answer, foreign = contestant.turn(**command)
    if foreign <= FOREIGN:
      return answer
    print(f"dropped a turn of '{contestant.name}': others took {foreign:.0%} of the machine", file=sys.stderr, flush=True)
    while not _at_rest() and time.monotonic() < end:
      pass
    if time.monotonic() > end:
      raise UserError(f"other programs have kept the machine busy for {PATIENCE} s; stop them and try again.")


def _at_rest() -> bool:
  """Looks at the machine for a second."""
  total, busy = _machine_ticks()
  time.sleep(1.0)
  later, busier = _machine_ticks()
  return busier - busy <= FOREIGN * (later - total)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Columns as wide as they need, the first to the left, the others to the right."""
  lines = [header, *rows]
  widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
  return "\n".join("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))) for line in lines)


def machine() -> str:
  with open("/proc/cpuinfo", encoding="utf-8") as info:
    model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), "unknown CPU")
  return f"{model}, {os.cpu_count()} cores"
