"""What the devices of a compiled program send each other, by kind and by axis of the mesh."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from research.parallel.hlo import Computation, Instruction, Program, Run, sizes

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute", "collective-broadcast")
Groups = list[tuple[int, ...]]


class Collective(NamedTuple):
  """The collectives of one kind over the same axes of the mesh, in one step of one device."""

  kind: str
  axes: tuple[str, ...]
  count: int  # how often one runs
  bytes: int  # of the whole arrays: what is gathered, reduced, scattered or exchanged
  sent: float  # bytes that a device sends, by rings
  dimensions: int  # of the torus that a group spans; 0: unknown

  def __str__(self) -> str:
    return f"{self.count} × {self.kind} over {' × '.join(self.axes)}: {self.bytes / 2**20:.1f} MiB, of which a device sends {self.sent / 2**20:.1f} MiB"


def found(program: Program, runs: list[Run], mesh: Mesh) -> list[Collective]:
  """The collectives of a program whose partitions are `mesh.devices` in their order, the ones that send most first."""
  totals: dict[tuple, np.ndarray] = {}
  for kind, run in _each(program, runs):
    instruction = run.instruction
    groups = replica_groups(instruction.attributes, mesh.devices.size)
    size = _size(instruction, len(groups[0]))
    share = _share(kind, len(groups[0]))
    if share == 0:
      continue
    key = kind, axes_of(groups, mesh), _dimensions(groups, mesh)
    totals[key] = totals.get(key, np.zeros(3)) + run.times * np.array([1, size, size * share])
  listed = [Collective(kind, axes, int(count), int(size), float(sent), dims) for (kind, axes, dims), (count, size, sent) in totals.items()]
  return sorted(listed, key=lambda c: (-c.sent, c.kind, c.axes))


def _each(program: Program, runs: list[Run]):
  """(kind, run) of every collective, once.

  A TPU's asynchronous collective stands in three fused computations, all under one channel: where it starts, in the work that hides it, where it ends.
  """
  channels: dict[str, int] = {}
  for run in runs:
    opcode = run.instruction.opcode.removesuffix("-start")
    if opcode not in KINDS:
      continue
    kind = "reduce-scatter" if opcode == "all-reduce" and _scatters(run.computation) else opcode
    channel = re.search(r"channel_id=(\d+)", run.instruction.attributes)
    if run.fused and channel and channels.setdefault(channel.group(1), id(run.computation)) != id(run.computation):
      continue
    yield kind, run


def _scatters(computation: Computation) -> bool:
  """A TPU's reduce-scatter is a fusion of an all-reduce and a slice."""
  return computation.name.startswith("all-reduce-scatter")


def _size(instruction: Instruction, group: int) -> int:
  """Bytes of the whole arrays."""
  parts = sizes(instruction.shape)
  if instruction.opcode.endswith("-start") and instruction.opcode != "all-reduce-start":  # (operands, results, flags)
    count = len(instruction.operands)
    parts = parts[count : 2 * count]
  if instruction.opcode.startswith("reduce-scatter"):
    return sum(parts) * group
  return sum(parts)


def _share(kind: str, group: int) -> float:
  """What a device of a group sends of the whole array: rings (Thakur et al. 2005, section 4)."""
  if kind in ("collective-permute", "collective-broadcast"):
    return 1.0
  return (2 if kind == "all-reduce" else 1) * (group - 1) / group


def replica_groups(attributes: str, devices: int) -> Groups:
  """The groups of partitions that talk to each other, of a permute the pairs (source, target).

  Reads `{{0,1},{2,3}}`, `[4,64]<=[64,4]T(1,0)` (an iota, transposed), `mesh['a'=2,'b'=4] {'b'}` (axes of the compiler's own mesh), and nothing at all
  or `{}`: all devices.
  """
  pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
  if pairs:
    return _listed(pairs.group(1))
  told = re.search(r"replica_groups=(.*)", attributes)
  text = told.group(1) if told else "{}"
  if match := re.match(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
    rows, columns, dims, order = match.groups()
    numbers = np.arange(int(rows) * int(columns)).reshape(_numbers(dims))
    numbers = numbers.transpose(_numbers(order)) if order else numbers
    return [tuple(row) for row in numbers.reshape(int(rows), int(columns)).tolist()]
  if match := re.match(r"mesh\[([^\]]*)\]\s*(?:,\s*device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}", text):
    return _of_mesh(*match.groups())
  if match := re.match(r"\{((?:\{[\d,]*\},?)+)\}", text):
    return _listed(match.group(1))
  return [tuple(range(devices))]


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(n) for n in text.split(","))


def _listed(text: str) -> Groups:
  return [_numbers(inner) for inner in re.findall(r"\{([\d,]+)\}", text)]


def _of_mesh(axes: str, dims: str | None, order: str | None, over: str) -> Groups:
  """`'a'=2,'b'=4` and `'b'`, or a part of an axis, `'b':(2)2`: the digits of `b` of size 2 below the first 2."""
  names = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
  digits: list[tuple[str, int, int]] = []  # axis, what stands before it in the axis, its size
  wanted = [(name, int(before or 1), int(size or names[name])) for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", over)]
  for name, whole in names.items():
    cuts = sorted({1, whole, *(cut for axis, before, size in wanted if axis == name for cut in (before, before * size))})
    digits += [(name, low, high // low) for low, high in zip(cuts, cuts[1:])]
  numbers = np.arange(math.prod(names.values()))
  if dims:
    numbers = numbers.reshape(_numbers(dims))
    numbers = numbers.transpose(_numbers(order)) if order else numbers
  numbers = numbers.reshape([size for _, _, size in digits])
  chosen = [i for i, digit in enumerate(digits) if digit in wanted]
  numbers = np.moveaxis(numbers, chosen, range(numbers.ndim - len(chosen), numbers.ndim))
  return [tuple(row) for row in numbers.reshape(-1, math.prod(digits[i][2] for i in chosen)).tolist()]


def axes_of(groups: Groups, mesh: Mesh) -> tuple[str, ...]:
  """The axes of the mesh along which the members of a group differ."""
  places = np.stack(np.unravel_index(np.arange(mesh.devices.size), mesh.devices.shape), axis=1)
  differ = np.zeros(places.shape[1], bool)
  for group in groups:
    of = places[list(group)]
    differ |= (of != of[0]).any(axis=0)
  return tuple(name for name, apart in zip(mesh.axis_names, differ) if apart)


def _dimensions(groups: Groups, mesh: Mesh) -> int:
  """How many dimensions of the chips' torus the first group spans; 0 where the devices have no coordinates."""
  devices = [mesh.devices.flat[i] for i in groups[0]]
  if not all(hasattr(device, "coords") for device in devices):
    return 0
  coords = np.array([device.coords for device in devices])
  return int((coords != coords[0]).any(axis=0).sum())
