"""Watching over a long run: where its time goes, whether it still moves, and starting it again.

The loop says which part of its work it is at (`enter`) and that a step is through (`beat`). A thread of its own ends a process whose training
stands still: one that waits for a collective whose other side is gone, or for a disk, cannot be ended by an exception. What supervises it then
starts it again, from the last checkpoint. Nothing here imports JAX.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

HEARTBEAT = "heartbeat.json"
HUNG = 75  # exit status of a process that stood still (EX_TEMPFAIL of sysexits.h), as of one that lost another of its run (parallel/distributed)
TICK = 1.0  # seconds between two looks
WRITE = 10  # looks between two heartbeats on disk
PARTS = ("set_up", "compile", "train", "evaluate", "save", "lost")  # lost: in runs that were killed, after the checkpoint that this one began from
FINAL = (0, 2, 128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit statuses that another start would not mend, or that someone asked for


class Watch:
  """Counts the seconds of each part of a run, over all its restarts; as a context, watches that training moves."""

  def __init__(self, workdir: str, hang_seconds: float, before: Mapping[str, float] = {}, process: int = 0, tick: float = TICK,  # noqa: B006  read only
               end: Callable[[int], None] = os._exit):  # fmt: skip
    """
    Args:
      hang_seconds: training that finishes no step for so long has hung; 0: it is not watched.
      before: seconds of each part, as the checkpoint tells that the run goes on from.
      process: of several; the first keeps the heartbeat.
      end: ends the process with a status.
    """
    self._workdir, self._hang, self._process, self._tick, self._end = workdir, hang_seconds, process, tick, end
    self._seconds = {**dict.fromkeys(PARTS, 0.0), **before}
    known = sum(self._seconds.values())
    self._seconds["lost"] += max(0.0, sum(_read(workdir).get("seconds", {}).values()) - known)
    self._part, self._since, self._step, self._beats = "set_up", time.perf_counter(), 0, 0
    self._seen, self._still, self._looks = 0, 0.0, 0
    self._lock, self._done = threading.Lock(), threading.Event()
    self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

  def enter(self, part: str) -> None:
    """From now on time goes to `part`; only in 'train' is a standstill a hang: compiling and evaluating take as long as they take."""
    with self._lock:
      self._seconds, self._since = self._counted(), time.perf_counter()
      self._part = part
      self._beats += 1

  def beat(self, step: int) -> None:
    """Step number `step` was handed to the device; with the step hanging, the device soon takes no more."""
    self._step = step
    self._beats += 1

  def seconds(self) -> dict[str, float]:
    """Of each part, so far."""
    with self._lock:
      return self._counted()

  def _counted(self) -> dict[str, float]:
    return {**self._seconds, self._part: self._seconds[self._part] + time.perf_counter() - self._since}

  def __enter__(self) -> "Watch":
    self._thread.start()
    return self

  def __exit__(self, kind, *_) -> None:
    self._done.set()
    self._thread.join()
    if kind is not None:
      self._write()
    elif self._process == 0 and os.path.isfile(path := os.path.join(self._workdir, HEARTBEAT)):
      os.remove(path)  # all is saved: nothing can be lost

  def _run(self) -> None:
    while not self._done.wait(self._tick):
      self.look()

  def look(self) -> None:
    """One look. Time is counted in looks, so that a process that was itself suspended is not taken for one that stands still."""
    if self._looks % WRITE == 0:
      self._write()
    self._looks += 1
    moved, self._seen = self._beats != self._seen, self._beats
    self._still = 0.0 if moved or self._part != "train" else self._still + self._tick
    if self._hang and self._still >= self._hang:
      self._hung()

  def _write(self) -> None:
    """The heartbeat, for the next start and for whoever looks from outside."""
    path = os.path.join(self._workdir, HEARTBEAT)
    with contextlib.suppress(OSError):  # a full disk is the loop's to tell
      if self._process == 0:
        with open(path + ".tmp", "w", encoding="utf-8") as file:
          json.dump({"time": time.time(), "step": self._step, "part": self._part, "seconds": self.seconds()}, file)
        os.replace(path + ".tmp", path)

  def _hung(self) -> None:
    faulthandler.dump_traceback_later(60, exit=True)  # should it be the disk that hangs, the lines below hang too
    self._write()
    name = "hang.txt" if self._process == 0 else f"hang_{self._process}.txt"
    path = os.path.join(self._workdir, name)
    sentence = f"no step finished for {self._hang:g} s (log.hang_seconds) after step {self._step}: the process ends with status {HUNG}, and the same command " \
               f"goes on from the last checkpoint; where each thread stood is in '{path}'."  # fmt: skip
    with open(path, "w", encoding="utf-8") as file:
      print(sentence, file=file, flush=True)
      faulthandler.dump_traceback(file, all_threads=True)
    faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
    print(f"error: {sentence}", file=sys.__stderr__, flush=True)
    faulthandler.cancel_dump_traceback_later()
    self._end(HUNG)


def goodput(seconds: Mapping[str, float]) -> float:
  """The share of a run's time that went to training steps which counted."""
  return seconds["train"] / max(sum(seconds.values()), 1e-9)


def _read(workdir: str) -> dict:
  """The last heartbeat; empty where there is none, or where it was cut off."""
  try:
    with open(os.path.join(workdir, HEARTBEAT), encoding="utf-8") as file:
      return json.load(file)
  except (OSError, ValueError):
    return {}


def supervise(command: Sequence[str], restarts: int, say: Callable[[str], None] = print) -> int:
  """Runs a command, and again after a crash or a hang, at most `restarts` times; SIGTERM is passed on to it.

  Returns:
    its last exit status, 128 + number where a signal ended it. A user's mistake (2) and a run that was asked to stop are not started again.
  """
  child, stopped = None, False

  def stop(number, frame):
    nonlocal stopped
    stopped = True
    if child is not None:
      child.terminate()

  before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop), signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None)}  # a terminal tells the child too
  try:
    for number in range(restarts + 1):
      child = subprocess.Popen(command)
      if stopped:  # between two children
        child.terminate()
      status = child.wait()
      status = 128 - status if status < 0 else status
      if status in FINAL or stopped or number == restarts:
        return status
      say(f"the run ended with status {status}{' (it hung, or lost another process)' if status == HUNG else ''}: restart {number + 1} of {restarts}, from its last checkpoint")
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
