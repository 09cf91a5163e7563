"""Meshes of devices, and where the arrays of a run live on them.

Axes: `data` (rows of a batch), `fsdp` (rows, and the parameters split along their width), `expert` (rows, and the experts of a mixture),
`sequence` (the places of a row), `tensor` (heads, inner width, vocabulary). The same program runs on one device and on many; `jax.jit`
inserts the communication. Neighbours in the grid are nearest along the last axes, so the axes that talk most come last.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from research.core.errors import UserError
from research.core.trees import leaf_name, named_leaves
from research.core.types import Batch, PyTree
from research.parallel.rules import RULES

AXES = ("data", "fsdp", "expert", "sequence", "tensor")
ROWS = ("data", "fsdp", "expert")  # the axes that share out the rows of a batch


@dataclasses.dataclass(frozen=True)
class Config:
  data: int = -1  # devices along each axis; −1: all that the other axes leave
  fsdp: int = 1
  expert: int = 1
  sequence: int = 1
  tensor: int = 1


def make(cfg: Config, devices: list[Any] | None = None) -> Mesh:
  """A mesh over `devices` (default: all of them).

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [getattr(cfg, axis) for axis in AXES]
  wish = describe(dict(zip(AXES, sizes)))
  if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
    raise UserError(f"mesh {wish}: every axis needs a positive size, and at most one may be -1 (all that the others leave).")
  known = math.prod(size for size in sizes if size > 0)
  if len(devices) % known or (-1 not in sizes and known != len(devices)):
    raise UserError(f"mesh {wish} needs {'a divisor of ' if -1 in sizes else ''}{len(devices)} devices, which is how many there are; its axes give {known}.")
  sizes = [len(devices) // known if size == -1 else size for size in sizes]
  if len(devices) == 1:
    grid = np.array(devices).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
  # Linen's logical partitioning breaks on explicit axes, so they are never left to the default.
  try:
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
  except NotImplementedError:  # on a torus of chips an axis of the mesh is by default one of the torus's, or several; here it may be a part of one
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shape(mesh: Mesh) -> dict[str, int]:
  return dict(zip(mesh.axis_names, mesh.devices.shape))


def describe(sizes: dict[str, int]) -> str:
  """As a person writes it: the axes that are used, `data` always."""
  return " × ".join(f"{axis} {size}" for axis, size in sizes.items() if size != 1 or axis == "data")


def row_parts(mesh: Mesh) -> int:
  """How many parts the rows of a batch are cut into."""
  return math.prod(shape(mesh)[axis] for axis in ROWS)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over the axes that share them out."""
  return NamedSharding(mesh, PartitionSpec(ROWS))


def own_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """Which rows of a global batch this process's devices hold, int64, ascending."""
  parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def check_batch(mesh: Mesh, batch_size: int, microbatches: int) -> None:
  """Raises UserError where the rows cannot be dealt out evenly."""
  if batch_size % microbatches:
    raise UserError(f"batch_size {batch_size} is not a multiple of microbatches {microbatches}.")
  parts, rows = row_parts(mesh), batch_size // microbatches
  if rows % parts:
    near = max(1, round(rows / parts)) * parts * microbatches
    raise UserError(f"{rows} rows (batch_size {batch_size} / microbatches {microbatches}) cannot be split over "
                    f"{describe({axis: shape(mesh)[axis] for axis in ROWS})} = {parts} devices; the nearest batch_size that can is {near}.")  # fmt: skip


def put(batch: Batch, mesh: Mesh) -> Batch:
  """A global batch from each process's rows: arrays [b, …] of its `own_rows` -> arrays [B, …] over the mesh."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def state_shardings(boxed: PyTree, state: PyTree, mesh: Mesh) -> PyTree:
  """A sharding for every leaf of a train state.

  Args:
    boxed: shapes of the parameters in their boxes of logical axis names.
    state: shapes of the whole state, unboxed. A leaf whose name ends in a parameter's name and which has its shape (a moment, an average)
      lives where the parameter lives; all others are on every device.

  Raises:
    UserError: a dimension that its mesh axis does not divide, with the parameter's name.
  """
  specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), RULES)
  shapes = dict(named_leaves(nn.unbox(boxed)))
  by_name = {}
  for path, spec in jax.tree_util.tree_leaves_with_path(specs, is_leaf=lambda x: isinstance(x, PartitionSpec)):
    name = leaf_name(path)
    _check_divides(name, shapes[name].shape, spec, mesh)
    by_name[name] = spec
  everywhere = NamedSharding(mesh, PartitionSpec())

  def place(path, leaf):
    parts = leaf_name(path).split("/")
    for start in range(len(parts)):
      name = "/".join(parts[start:])
      if name in by_name:
        return NamedSharding(mesh, by_name[name]) if leaf.shape == shapes[name].shape else everywhere
    return everywhere

  return jax.tree_util.tree_map_with_path(place, state)


def _check_divides(name: str, dims: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> None:
  sizes = shape(mesh)
  for dim, axes in zip(dims, spec):
    axes = (axes,) if isinstance(axes, str) else (axes or ())
    parts = math.prod(sizes[axis] for axis in axes)
    if dim % parts:
      fits = [n for n in range(1, parts) if dim % n == 0]
      raise UserError(f"mesh axis {'×'.join(axes)} of size {parts} does not divide the {dim} of parameter '{name}' {dims}; "
                      f"the nearest size that does is {max(fits)}.")  # fmt: skip
