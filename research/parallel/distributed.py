"""Several processes, one run: where each stands, and what they agree on.

JAX runs the same program in every process (multi-controller); each holds its devices of one mesh. Process 0 starts a small service through
which all of them learn of each other's devices and exchange short messages. Everything here is the identity for one process.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax

from research.core.errors import UserError, full_device
from research.parallel.meeting import STATUS_LOST, Meeting, leave

T = TypeVar("T")

DAY = 86_400_000  # ms


class Place(NamedTuple):
  """Where a process stands among those of its run."""

  coordinator: str  # host:port of process 0
  processes: int
  process: int
  local_devices: tuple[int, ...] | None = None  # of its host's accelerators; None: all
  source: str = "flags"  # who said so


def find(coordinator: str | None, processes: int | None, process: int | None, environment: Mapping[str, str]) -> Place | None:
  """The place of this process: from flags, else from RESEARCH_COORDINATOR, RESEARCH_PROCESSES and RESEARCH_PROCESS, else from SLURM.

  None: this process is alone, or on a Cloud TPU, whose own runtime knows (`joined` asks it).

  Raises:
    UserError: some of the three are given and others not, or they contradict each other.
  """
  named = {"coordinator": coordinator, "processes": processes, "process": process}
  if all(value is None for value in named.values()):
    named = {name: environment.get(f"RESEARCH_{name.upper()}") for name in named}
    source, write = "environment", lambda name: f"RESEARCH_{name.upper()}"
  else:
    source, write = "flags", lambda name: f"--{name}"
  if any(value is not None for value in named.values()):
    if missing := [write(name) for name, value in named.items() if value is None]:
      raise UserError(f"{', '.join(missing)} missing: a run of several processes needs {write('coordinator')} (host:port of process 0), "
                      f"{write('processes')} (how many) and {write('process')} (which one this is, from 0).")  # fmt: skip
    try:
      count, index = int(named["processes"]), int(named["process"])
    except ValueError:
      raise UserError(f"{write('processes')}={named['processes']} and {write('process')}={named['process']} must be whole numbers.") from None
    if not 0 <= index < count:
      raise UserError(f"{write('process')}={index} is not one of 0 … {count - 1}, for {write('processes')}={count}.")
    if not re.fullmatch(r".+:\d+", named["coordinator"]):
      raise UserError(f"{write('coordinator')}={named['coordinator']}: write host:port, such as 10.0.0.1:1234.")
    return Place(named["coordinator"], count, index, source=source) if count > 1 else None
  return _slurm(environment)


def _slurm(environment: Mapping[str, str]) -> Place | None:
  """The place of a task of a SLURM step (srun). Outside a step, or in one of a single task, a process is alone."""
  names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_NODES")
  if any(name not in environment for name in names) or int(environment["SLURM_NTASKS"]) < 2:
    return None
  job, nodes, tasks, task, local, hosts = (environment[name] for name in names)
  host = first_host(nodes)
  # A port of its own for each job and step, from the ephemeral range.
  port = 61440 + (int(job) * 31 + int(environment.get("SLURM_STEP_ID", 0))) % 4096
  # Several tasks on one host that all see the same GPUs share them out; tasks bound to their own GPUs see no others.
  seen = [x for x in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if x]
  here = -(-int(tasks) // int(hosts))
  devices = None
  if here > 1 and len(seen) >= here and len(seen) % here == 0:
    share = len(seen) // here
    devices = tuple(range(int(local) * share, (int(local) + 1) * share))
  return Place(f"{host}:{port}", int(tasks), int(task), devices, "SLURM")


def first_host(nodes: str) -> str:
  """The first name of a SLURM node list: 'node[007-015,20],x' -> 'node007'."""
  found = re.match(r"([^,\[]+)(?:\[(\d+))?([^,\]]*\]([^,\[]*))?", nodes)
  prefix, number, suffix = found.group(1), found.group(2) or "", found.group(4) or ""
  return prefix + number + suffix if number else prefix


def _on_cloud_tpu(environment: Mapping[str, str]) -> bool:
  return environment.get("JAX_PLATFORMS", "tpu").startswith("tpu") and any(os.path.exists(path) for path in ("/dev/accel0", "/dev/vfio/0"))


@contextlib.contextmanager
def joined(coordinator: str | None = None, processes: int | None = None, process: int | None = None, mode: str = "auto", seconds: int = 50) -> Iterator[None]:
  """Inside it this process is one of its run's; enter before anything touches a device.

  An error that leaves it is told to the other processes, which then stop too, each with a sentence; and so they do when a process dies
  without a word. A process that stops in this way does not wait for the others.

  Args:
    coordinator, processes, process: as `find` takes them.
    mode: 'auto', or 'off' for a process that is alone whatever its surroundings say.
    seconds: how long to wait for the others.

  Raises:
    UserError: they cannot be found.
  """
  place = None if mode == "off" else find(coordinator, processes, process, os.environ)
  if place is None and (mode == "off" or not _on_cloud_tpu(os.environ)):
    yield
    return
  if place is None:  # a Cloud TPU, whose surroundings JAX reads itself
    jax.distributed.initialize(initialization_timeout=seconds)
    yield
    return
  meeting = Meeting(place.coordinator, place.processes, place.process, seconds)
  jax.distributed.initialize(
      place.coordinator, place.processes, place.process, list(place.local_devices) if place.local_devices else None,
      cluster_detection_method="deactivate", initialization_timeout=seconds, shutdown_timeout_seconds=60,
  )  # fmt: skip
  meeting.watch()
  try:
    yield
  except BaseException as error:
    _fail(meeting, place.process, error)
  meeting.close()
  jax.distributed.shutdown()


def _fail(meeting: Meeting, process: int, error: BaseException) -> None:
  """Ends this process for an error, once the others have been told. An error that another process's end has caused is told as such."""
  whole = " ".join(str(error).split())
  text = whole[:300]
  if isinstance(error, UserError):
    status, message, told = 2, str(error), f"process {process}: {error}"
  elif (full := full_device(error)) is not None:
    status, message, told = 2, full, f"process {process}: {full}"
  elif isinstance(error, KeyboardInterrupt):
    status, message, told = 130, "interrupted", f"process {process} was interrupted"
  elif isinstance(error, jax.errors.JaxRuntimeError) and any(sign in whole for sign in ("Gloo", "NCCL", "UNAVAILABLE", "onnection")):
    status, told = STATUS_LOST, f"process {process} has lost another process of the run"
    message = f"another process of this run is gone ({text}). The same command, in all processes, goes on from the last checkpoint"
  else:
    traceback.print_exception(error)
    status, message, told = 1, f"process {process} failed", f"process {process} failed ({type(error).__name__}: {text})"
  meeting.tell(told)
  leave(message, status)


def _client() -> Any:
  """The connection to the service of process 0; None for a process that is alone. JAX has no public name for it; orbax uses the same one."""
  return jax._src.distributed.global_state.client


_numbers = itertools.count()  # of exchanges; the processes make them in the same order


def leads() -> bool:
  """Whether this is process 0, which says and writes for all."""
  return jax.process_index() == 0


def lead(function: Callable[[], T]) -> T:
  """Calls `function` on process 0, and when it is done there on the others: what it leaves on disk, they find."""
  client = _client()
  if client is None:
    return function()
  key = f"research/lead/{next(_numbers)}"
  if jax.process_index() == 0:
    found = function()
    client.key_value_set(key, "done")
    return found
  client.blocking_key_value_get(key, DAY)
  return function()


def agree(**values: str) -> None:
  """Every process must give the same texts.

  Raises:
    UserError: one differs from process 0's; names it.
  """
  client = _client()
  if client is None:
    return
  key = f"research/same/{next(_numbers)}"
  if jax.process_index() == 0:
    client.key_value_set(key, json.dumps(values))
    return
  first = json.loads(client.blocking_key_value_get(key, DAY))
  for name in {**first, **values}:
    mine, theirs = values.get(name, "absent"), first.get(name, "absent")
    if mine != theirs:
      raise UserError(f"the processes of this run differ in {name}: {mine} on process {jax.process_index()}, {theirs} on process 0. Start all of them with the same "
                      "command, on the same files.")  # fmt: skip
