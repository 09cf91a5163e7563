"""Energy counters: which are read, that one may go round, and what a run writes of them. NVML is a stand-in: what it must answer is NVIDIA's documentation's."""

from __future__ import annotations

import ctypes
import math
import types

import pytest

from research.training import energy
from research.training.energy import Counter, Meter


def test_a_counter_that_goes_round_loses_nothing():
  cpu, gpu = iter([900.0, 950.0, 20.0, 30.0]), iter([5.0, 5.0, 8.0, 8.5])
  meter = Meter([Counter("cpu", lambda: next(cpu), 1000.0), Counter("gpu", lambda: next(gpu), math.inf)])
  assert [meter.joules() for _ in range(3)] == [{"cpu": 50.0, "gpu": 0.0}, {"cpu": 120.0, "gpu": 3.0}, {"cpu": 130.0, "gpu": 3.5}]
  assert Meter([]).joules() == {}


def test_packages_are_read_and_their_parts_are_not_added(tmp_path, monkeypatch):
  for zone, joules in (("intel-rapl:0", 2_000_000), ("intel-rapl:1", 3_000_000), ("intel-rapl:0:0", 1_000_000), ("intel-rapl-mmio:0", 7_000_000)):
    (tmp_path / zone).mkdir()
    (tmp_path / zone / "energy_uj").write_text(f"{joules}\n")
    (tmp_path / zone / "max_energy_range_uj").write_text("262143328850\n")
  (tmp_path / "intel-rapl:2").mkdir()  # one that cannot be read
  monkeypatch.setattr(energy, "POWERCAP", str(tmp_path))
  found = energy._packages()
  assert [(counter.kind, counter.read(), counter.range) for counter in found] == [("cpu", 2.0, 262143.32885), ("cpu", 3.0, 262143.32885)]
  meter = Meter(found)
  (tmp_path / "intel-rapl:1" / "energy_uj").write_text("4500000\n")
  assert meter.joules() == {"cpu": 1.5}


@pytest.fixture
def nvml(monkeypatch):
  """Four GPUs; GPU i has used 1000·(i + 1) J, but the last has no counter."""

  def handle(index, device):
    ctypes.cast(device, ctypes.POINTER(ctypes.c_void_p))[0] = index + 1
    return 0

  def used(device, value):
    ctypes.cast(value, ctypes.POINTER(ctypes.c_ulonglong))[0] = 1_000_000 * device.value
    return 3 if device.value == 4 else 0  # NVML_ERROR_NOT_SUPPORTED

  def count(value):
    ctypes.cast(value, ctypes.POINTER(ctypes.c_uint))[0] = 4
    return 0

  library = types.SimpleNamespace(
    nvmlInit_v2=lambda: 0, nvmlDeviceGetCount_v2=count, nvmlDeviceGetHandleByIndex_v2=handle, nvmlDeviceGetTotalEnergyConsumption=used,
    nvmlDeviceGetHandleByUUID=lambda name, device: handle(int(name.decode().rpartition("-")[2]), device))  # fmt: skip
  monkeypatch.setattr(energy.ctypes, "CDLL", lambda name: library)
  monkeypatch.setenv("JAX_PLATFORMS", "")
  return library


@pytest.mark.parametrize("visible, joules", [(None, [1000, 2000, 3000]), ("1", [2000]), ("2,0", [3000, 1000]), ("GPU-a-1", [2000]), ("", []), ("3", [])])
def test_of_the_gpus_those_that_the_process_may_use_are_read(nvml, monkeypatch, visible, joules):
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
  if visible is not None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
  assert [counter.read() for counter in energy._gpus()] == joules


def test_without_a_driver_there_is_no_counter(nvml, monkeypatch):
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
  nvml.nvmlInit_v2 = lambda: 9  # NVML_ERROR_DRIVER_NOT_LOADED
  assert energy._gpus() == []

  def absent(name):
    raise OSError("no such library")

  monkeypatch.setattr(energy.ctypes, "CDLL", absent)
  assert energy._gpus() == []
