"""How fast a device could be, and what share of that a run reaches (MFU: Chowdhery et al. 2022, PaLM, appendix B)."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.parallel import chips


class Pace:
  """Metrics of a logged step, left on the device until the one after it is under way; and the steps per second from one such step to the next."""

  def __init__(self):
    self._pending: tuple[int, Any] | None = None
    self._step, self._mark = 0, 0.0  # a step, and when it was through

  def start(self, step: int) -> None:
    """`step` is through, and time counts from now on."""
    self._step, self._mark = step, time.perf_counter()

  def hold(self, step: int, metrics: Any) -> None:
    self._pending = step, metrics

  def take(self) -> tuple[int, Any, float | None] | None:
    """The step that was held, its metrics on the host, and the steps per second up to it (None: none was timed); None where none is held."""
    if self._pending is None:
      return None
    (step, metrics), self._pending = self._pending, None
    metrics = jax.device_get(metrics)  # waits until the step is through
    now = time.perf_counter()
    speed = (step - self._step) / (now - self._mark) if step > self._step else None
    self._step, self._mark = step, now
    return step, metrics, speed

  def pause(self, seconds: float) -> None:
    """So long nothing was trained."""
    self._mark += seconds


def peak(device: jax.Device) -> tuple[float, str]:
  """(FLOP/s of one device, where the number comes from): from the table, or measured on a CPU; (0, …) where neither is known."""
  if device.platform == "cpu":
    # Simulated devices share the same cores: each can claim only its share.
    return measured_cpu_peak() / jax.local_device_count(), "measured float32 matmul"
  chip = chips.of_kind(device.device_kind)
  if chip:
    return chip.flops / chip.devices, "data sheet, bfloat16"
  return 0.0, f"unknown for '{device.device_kind}'"


@functools.cache  # once a process: the machine stays the same
def measured_cpu_peak(size: int = 1536, tries: int = 3) -> float:
  """The best of a few float32 matmuls on all cores, FLOP/s."""
  device = jax.local_devices()[0]
  best = float("inf")
  with jax.set_mesh(jax.make_mesh((1,), ("one",), devices=[device], axis_types=(jax.sharding.AxisType.Auto,))):  # whatever mesh the caller is in
    x = jax.device_put(np.ones((size, size), np.float32), device)
    matmul = jax.jit(jnp.matmul)
    matmul(x, x).block_until_ready()
    for _ in range(tries):
      start = time.perf_counter()
      matmul(x, x).block_until_ready()
      best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best
