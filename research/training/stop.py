"""A wish to stop, noted until the step in flight is done, and agreed on among the processes of a run."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stop:
  """Remembers SIGTERM and SIGINT until the step in flight is done; a second SIGINT interrupts at once.

  Of several processes the signal may reach only one, or each at another step. Then JAX's preemption service, which waits for SIGTERM
  itself, agrees on a step that none of them has reached yet.
  """

  def __init__(self):
    self.signal: int | None = None
    self._shared = jax.process_count() > 1
    self._old: dict[int, Any] = {}

  def __enter__(self):
    for number in (signal.SIGINT,) if self._shared else (signal.SIGTERM, signal.SIGINT):
      with contextlib.suppress(ValueError):  # not in the main thread: whoever runs us there handles signals
        self._old[number] = signal.signal(number, self._note)
    return self

  def _note(self, number, frame):
    if self.signal is not None and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.signal = number
    if self._shared:
      os.kill(os.getpid(), signal.SIGTERM)

  def wanted(self, step: int) -> bool:
    """Whether the run shall stop at `step`; ask after every step, in every process."""
    if not self._shared:
      return self.signal is not None
    if multihost_utils.reached_preemption_sync_point(step):
      self.signal = self.signal or signal.SIGTERM
      return True
    return False

  def __exit__(self, *_):
    for number, old in self._old.items():
      signal.signal(number, old)
