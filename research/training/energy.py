"""Energy by the machine's own counters: of CPU packages (RAPL, by Linux's powercap) and of the NVIDIA GPUs that the process may use (NVML).

They count all that runs there, not this process alone; many virtual machines, and most users without rights, see none, and then nothing is said.
"""

from __future__ import annotations

import ctypes
import glob
import os
from collections.abc import Callable
from typing import NamedTuple

POWERCAP = "/sys/class/powercap"
NVML = "libnvidia-ml.so.1"


class Counter(NamedTuple):
  kind: str  # cpu or gpu
  read: Callable[[], float]  # joules since some time before
  range: float  # at which it begins again from 0; inf: never


class Meter:
  """Joules since it was made, by kind; ask more often than a counter needs to go round (RAPL: minutes to hours)."""

  def __init__(self, counters: list[Counter] | None = None):
    self._counters = find() if counters is None else counters
    self._last = [counter.read() for counter in self._counters]
    self._sums = [0.0] * len(self._counters)

  def joules(self) -> dict[str, float]:
    """Kind -> joules; without a kind that has no counter."""
    for i, counter in enumerate(self._counters):
      now = counter.read()
      self._sums[i] += now - self._last[i] if now >= self._last[i] else now + counter.range - self._last[i]
      self._last[i] = now
    kinds = dict.fromkeys(counter.kind for counter in self._counters)
    return {kind: sum(value for value, counter in zip(self._sums, self._counters) if counter.kind == kind) for kind in kinds}


def find() -> list[Counter]:
  """The counters that this process can read."""
  return [*_packages(), *_gpus()]


def _packages() -> list[Counter]:
  found = []
  for zone in sorted(glob.glob(os.path.join(POWERCAP, "*-rapl:[0-9]*"))):
    if os.path.basename(zone).count(":") > 1:  # a part of a package, which is in its sum
      continue
    read = lambda name, zone=zone: float(_text(os.path.join(zone, name))) / 1e6
    try:
      read("energy_uj")
      found.append(Counter("cpu", lambda read=read: read("energy_uj"), read("max_energy_range_uj")))
    except (OSError, ValueError):  # it is for root alone
      continue
  return found


def _text(path: str) -> str:
  with open(path, encoding="ascii") as file:
    return file.read()


def _gpus() -> list[Counter]:
  visible = os.environ.get("CUDA_VISIBLE_DEVICES")
  if visible == "" or os.environ.get("JAX_PLATFORMS") == "cpu":
    return []
  try:
    nvml = ctypes.CDLL(NVML)
    if nvml.nvmlInit_v2():
      return []
    count = ctypes.c_uint()
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
  except (OSError, AttributeError):  # no driver, or one without these functions
    return []
  found = []
  for name in visible.split(",") if visible else map(str, range(count.value)):
    device = ctypes.c_void_p()
    by_index = name.strip().isdigit()
    failed = nvml.nvmlDeviceGetHandleByIndex_v2(int(name), ctypes.byref(device)) if by_index else nvml.nvmlDeviceGetHandleByUUID(name.strip().encode(), ctypes.byref(device))
    read = lambda device=device: _millijoules(nvml, device) / 1000
    if not failed and read() > 0:
      found.append(Counter("gpu", read, float("inf")))
  return found


def _millijoules(nvml: ctypes.CDLL, device: ctypes.c_void_p) -> int:
  """Since the driver was loaded; 0 where the GPU has no such counter."""
  value = ctypes.c_ulonglong()
  return 0 if nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(value)) else value.value
