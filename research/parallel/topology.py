"""Devices that one does not have: what programs are compiled for, never run on.

`v5e:16x16` names a chip of `chips.CHIPS` and the shape of its torus; the compiler is libtpu's, which needs no TPU. `cpu:8` are simulated devices of this
machine, which need nothing and can run too. `gpu:1` are GPUs of this machine: their compiler needs them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from research.core.errors import UserError, nearest
from research.parallel.chips import CHIPS, Chip, of_kind

TPUS = [name for name, chip in CHIPS.items() if chip.kind.startswith("TPU")]
# Two cores of these work as one device; without the name of that form each core would be a device.
FORMS = {"v4": {"chip_config_name": "megacore"}, "v5p": {"chip_config_name": "megacore"}}


class Topology(NamedTuple):
  name: str
  chip: Chip
  devices: list[Any]


def prepare(name: str) -> None:
  """Sets what must be set before JAX starts: nothing asks a cloud's metadata server, and no accelerator of this machine is touched unless it is asked for."""
  os.environ["JAX_PLATFORMS"] = "cuda,cpu" if name.startswith("gpu") else "cpu"
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # a process that only compiles holds no chip
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")  # libtpu complains where these two are missing, and reads no more of them
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  for level in ("TPU_MIN_LOG_LEVEL", "TPU_STDERR_LOG_LEVEL"):  # its partitioner's warnings are read (`heard`)
    os.environ.setdefault(level, "1")
  told = os.environ.get("XLA_FLAGS", "")
  if (match := re.fullmatch(r"cpu:(\d+)", name)) and "device_count" not in told:
    os.environ["XLA_FLAGS"] = f"{told} --xla_force_host_platform_device_count={match.group(1)}".strip()


def make(name: str) -> Topology:
  """The devices of a topology.

  Raises:
    UserError: no such chip or shape, no libtpu, or fewer GPUs or simulated devices than asked for.
  """
  chip, colon, form = name.partition(":")
  if chip not in ("cpu", "gpu", *TPUS):
    raise UserError(f"--topology={name}: no chip '{chip}' to compile for.{nearest(chip, ['cpu', 'gpu', *TPUS])}")
  if chip == "gpu":
    return _gpus(name, form)
  if chip == "cpu":
    if not form.isdigit() or int(form) < 1:
      raise UserError(f"--topology={name}: write cpu:NUMBER of devices, such as cpu:8.")
    devices = jax.devices("cpu")
    if len(devices) < int(form):
      raise UserError(f"--topology={name}: this process has {len(devices)} simulated devices: set XLA_FLAGS=--xla_force_host_platform_device_count={form} before it starts.")
    return Topology(name, CHIPS[chip], devices[: int(form)])
  if not colon or not re.fullmatch(r"\d+(x\d+)+", form):
    raise UserError(f"--topology={name}: write the chips along each dimension of the torus, such as {chip}:{'x'.join(['2'] * 2 + ['1'] * (CHIPS[chip].dimensions - 2))}.")
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(f"--topology={name} needs the compiler of TPUs, libtpu, which is not installed: pip install -e '.[tpu]' (no TPU is needed), or take --topology=cpu:8.")
  from jax.experimental import topologies

  try:
    with heard([]):
      described = topologies.get_topology_desc(platform="tpu", topology_name=name, **FORMS.get(chip, {}))
  except Exception as error:  # libtpu's own, of a type that JAX does not export
    raise UserError(f"--topology={name} is none that libtpu knows: {str(error).splitlines()[0].rstrip('.')}.") from error
  return Topology(name, CHIPS[chip], list(described.devices))


def _gpus(name: str, form: str) -> Topology:
  if not form.isdigit() or int(form) < 1:
    raise UserError(f"--topology={name}: write gpu:NUMBER of GPUs, such as gpu:1.")
  try:
    devices = jax.devices("gpu")
  except RuntimeError:
    devices = []
  if len(devices) < int(form):
    raise UserError(f"--topology={name}: this process sees {len(devices)} GPUs, which are what it would compile for; for chips that are elsewhere name TPUs, such as v5e:4x4.")
  chip = of_kind(devices[0].device_kind)
  if chip is None or chip.bandwidth is None:
    raise UserError(f"--topology={name}: research/parallel/chips.py does not know what a '{devices[0].device_kind}' can do: add a row.")
  return Topology(name, chip._replace(memory=(devices[0].memory_stats() or {}).get("bytes_limit")), devices[: int(form)])


@contextlib.contextmanager
def heard(said: list[str]) -> Iterator[None]:
  """Keeps what is written to the process's standard error, by C++ too, in `said`."""
  sys.stderr.flush()
  kept = os.dup(2)
  with tempfile.TemporaryFile() as file:
    os.dup2(file.fileno(), 2)
    try:
      yield
    finally:
      sys.stderr.flush()
      os.dup2(kept, 2)
      os.close(kept)
      file.seek(0)
      said.append(file.read().decode(errors="replace"))
