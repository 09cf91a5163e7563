"""A worker's side of the pipe: one JSON line on stdin is a turn, one on stdout the answer. In between the worker sleeps.

Standard library only, for it runs in the peer's interpreter too.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def serve(started: dict[str, Any], turn: Callable[..., dict[str, Any]]) -> None:
  """Sends `started`, then answers each command {…} with `turn(**command)` and the process's peak memory, until stdin ends."""
  _send(started)
  for line in sys.stdin:
    _send(turn(**json.loads(line)))


def own_stdout() -> None:
  """Call before any library is imported: what they print goes to stderr, and stdout carries answers alone."""
  global _answers
  _answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)


def _send(answer: dict[str, Any]) -> None:
  print(json.dumps({**answer, "peak_bytes": _peak_bytes()}), file=_answers, flush=True)


def _peak_bytes() -> int:
  # VmHWM and not ru_maxrss: the latter begins with the memory of the process that started this one.
  with open("/proc/self/status", encoding="ascii") as status:
    return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
