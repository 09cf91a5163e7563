"""Compiles the real training step for devices that need not be there, and reads from it what it costs.

The step is the loop's own (`loop.assemble`, `loop.jitted_step`), lowered with shapes instead of arrays. Data is not read: the size of the vocabulary stands
in the config of the tokenizer.
"""

from __future__ import annotations

import re
import time
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from research.core.errors import UserError, memory_exhausted
from research.core.trees import size
from research.core.types import Vocab
from research.data import tokenizer
from research.parallel import collectives, hlo, topology
from research.parallel import mesh as meshes
from research.parallel.chips import Chip
from research.parallel.rules import RULES
from research.training import experiment, loop

_SHARDING = r"devices=\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?(?: last_tile_dim_replicate)?"


class Imagined(NamedTuple):
  """Stands for prepared data of which nothing is known but its vocabulary."""

  vocab: Vocab


class Plan(NamedTuple):
  """What one step costs. Bytes and seconds are those of one device, operations of all together."""

  topology: str
  devices: int
  mesh: dict[str, int]
  batch_size: int
  parameters: int
  flops: float  # of the model, the convention of MFU
  executed_flops: float  # with what the backward pass computes again
  fits: bool
  over: int | None  # bytes beyond the device's memory, as the compiler tells; None: it fits, or the compiler told no number
  capacity: int | None  # bytes of the device's memory; None: that of the machine
  memory: dict[str, int]  # arguments, outputs, aliased, temporaries, code, peak; empty where it does not fit
  traffic: int | None  # bytes read from and written to main memory
  collectives: list[collectives.Collective]
  seconds: dict[str, float]  # compute, memory, network: the least that each part takes
  step_seconds: float  # the largest of these, or their sum where nothing overlaps: no step is faster
  mfu: float  # that this time would give
  warnings: list[str]
  compile_seconds: float

  def record(self) -> dict[str, Any]:
    """As JSON."""
    return self._asdict() | {"collectives": [c._asdict() for c in self.collectives]}

  def page(self) -> str:
    """For a person."""
    rows = [
        ("mesh", f"{meshes.describe(self.mesh)} on {self.devices} devices ({self.topology})"),
        ("parameters", f"{self.parameters:,}"),
        ("batch", f"{self.batch_size} rows"),
        ("operations", f"{self.flops:.4g} FLOPs a step, {self.executed_flops:.4g} with what is computed again"),
    ]
    size = f" of {gigabytes(self.capacity)}" if self.capacity else ""
    if self.memory:
      parts = " · ".join(f"{name} {gigabytes(self.memory[name])}" for name in ("arguments", "temporaries", "code"))
      rows.append(("memory", f"{gigabytes(self.memory['peak'])}{size} a device ({parts})"))
    if not self.fits:
      rows.append(("DOES NOT FIT", f"over the memory{size} of a device" + (f" by {gigabytes(self.over)}" if self.over else "")))
    rows += [("collectives" if i == 0 else "", str(c)) for i, c in enumerate(self.collectives)]
    floors = " · ".join(f"{name} {milliseconds(value)}" for name, value in self.seconds.items() if value)
    rows.append(("time of a step", f"at least {milliseconds(self.step_seconds)}, MFU at most {100 * self.mfu:.1f} % ({floors})"))
    rows += [("warning", text) for text in self.warnings]
    rows.append(("compiled in", f"{self.compile_seconds:.1f} s"))
    return "\n".join(f"{name:<16}{value}" for name, value in rows)


def gigabytes(count: float) -> str:
  return f"{count / 2**30:.2f} GiB"


def milliseconds(seconds: float) -> str:
  return f"{1000 * seconds:.3g} ms" if seconds < 10 else f"{seconds:.1f} s"


def vocabulary(data: Any, vocab_size: int | None) -> Vocab:
  """A vocabulary of the right size and reserved tokens, whose words are made up.

  Raises:
    UserError: the config does not tell its size (characters), or it is too small.
  """
  cfg = data.tokenizer
  if cfg.path and vocab_size is None:
    return tokenizer.load(cfg.path).vocab
  count = vocab_size or {"bpe": cfg.vocab_size, "wordpiece": cfg.vocab_size, "byte": tokenizer.FIRST + 256}.get(cfg.kind)
  if count is None:
    raise UserError(f"a vocabulary of kind '{cfg.kind}' has as many entries as the text has characters: tell the number with --vocab_size=N.")
  if count <= tokenizer.FIRST:
    raise UserError(f"a vocabulary of {count} holds no text: {tokenizer.FIRST} entries are reserved.")
  plain = np.arange(count) >= tokenizer.FIRST
  special = {name: i for i, name in enumerate(tokenizer.RESERVED)}
  return Vocab(count, special, plain & (np.arange(count) % 2 == 0), 4 * plain.astype(np.int32))


def make(cfg: experiment.Config, target: topology.Topology, vocab_size: int | None = None) -> Plan:
  """Compiles one training step of `cfg` for `target`.

  Raises:
    UserError: the mesh, the batch and the model do not go together. A step that does not fit into memory is a Plan, no error.
  """
  mesh = meshes.make(cfg.mesh, target.devices)
  meshes.check_batch(mesh, cfg.batch_size, cfg.microbatches)
  run = loop.assemble(cfg, Imagined(vocabulary(cfg.data, vocab_size)), mesh)
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    traced = loop.jitted_step(run).trace(run.state, loop.batch_shapes(run))
    started, said, over, compiled = time.perf_counter(), [], None, None
    lowered = traced.lower()
    try:
      with topology.heard(said):
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      if not memory_exhausted(str(error)):
        raise
      over = exceeded(str(error))
  took = time.perf_counter() - started

  model, executed = loop.operations(run)
  chip, share = target.chip, target.chip.devices
  seconds = {"compute": (executed + loop.update_flops(run)) / (mesh.devices.size * chip.flops / share), "memory": 0.0, "network": 0.0}
  memory, traffic, found, warnings = {}, None, [], rematerialised("".join(said), mesh)
  if compiled is not None:
    memory = held(compiled.memory_analysis())
    program = hlo.parse(compiled.as_text())
    runs, unknown = hlo.walk(program)
    traffic, found = hlo.traffic(program, runs), collectives.found(program, runs, mesh)
    seconds["memory"] = traffic / (chip.bandwidth / share)
    seconds["network"] = sum(c.sent / (chip.network / share * _links(c, chip)) for c in found)
    warnings += gathered_by_reducing(found)
    if unknown:
      warnings.append(f"{unknown} loops whose trip count the program does not tell: their bodies are counted once")
  capacity = None if chip.memory is None else chip.memory // share
  fits = compiled is not None and (capacity is None or memory["peak"] <= capacity)
  if compiled is not None and not fits:
    over = memory["peak"] - capacity
  step = chip.least(seconds.values())
  return Plan(target.name, mesh.devices.size, meshes.shape(mesh), cfg.batch_size, size(run.state.params), model, executed, fits, over, capacity, memory, traffic,
              found, seconds, step, model / (step * mesh.devices.size * chip.flops / share), warnings, took)  # fmt: skip


def _links(c: collectives.Collective, chip: Chip) -> float:
  """The share of a chip's links that a collective drives: those along the dimensions of the torus that its groups span; all where that is not known."""
  return min(1.0, c.dimensions / chip.dimensions) if c.dimensions else 1.0


def held(stats: Any) -> dict[str, int]:
  """Bytes of one device, by part, of what a compiled program's `memory_analysis()` tells; `peak` is the most that it holds."""
  parts = {name: int(getattr(stats, f"{key}_size_in_bytes")) for name, key in
           (("arguments", "argument"), ("outputs", "output"), ("aliased", "alias"), ("temporaries", "temp"), ("code", "generated_code"))}  # fmt: skip
  whole = parts["arguments"] + parts["outputs"] - parts["aliased"] + parts["temporaries"]
  return parts | {"peak": max(whole, int(getattr(stats, "peak_memory_in_bytes", 0)))}


def exceeded(message: str) -> int | None:
  """Bytes by which a program is over, of the compiler's message: `Used 21.5G of 15.75G hbm`, `656.49G exceeds available HBM (15.75G)`."""
  unit = r"([\d.]+)([KMGT]?)i?B?"
  number = lambda value, prefix: float(value) * 1024 ** " KMGT".index(prefix or " ")
  if match := re.search(rf"[Uu]sed {unit} of {unit}", message):
    return round(number(*match.groups()[:2]) - number(*match.groups()[2:]))
  if match := re.search(rf"{unit}\)? exceeds available \w+ \({unit}\)", message):
    return round(number(*match.groups()[:2]) - number(*match.groups()[2:]))
  return None


def gathered_by_reducing(found: list[collectives.Collective]) -> list[str]:
  """A sentence where all-reduces are all that goes along `fsdp`, by which libtpu gathers along three dimensions of a torus."""
  along = [c for c in found if "fsdp" in c.axes]
  if any(c.kind != "all-reduce" for c in along) or all(c.dimensions < 3 for c in along):
    return []
  return ["parameters are gathered along fsdp by all-reduces, which send twice as much, for fsdp spans three dimensions of the torus: a smaller mesh.fsdp, with more of mesh.data, spans two"]


def rematerialised(log: str, mesh: jax.sharding.Mesh) -> list[str]:
  """A sentence for each array that the partitioner replicated to lay it out anew, with the rows of `RULES` that can be to blame."""
  found = {}
  for line in log.splitlines():
    if "full rematerialization" not in line:
      continue
    shardings = re.findall(_SHARDING, line)
    axes = [_axes_of_dims(sharding, mesh) for sharding in shardings[:2]]
    moved = sorted(set(axes[0]).symmetric_difference(axes[1])) if len(axes) == 2 else sorted({pair for pairs in axes for pair in pairs})
    blamed = [f"('{logical}', {target!r})" for logical, target in RULES if target and {axis for _, axis in moved} & set((target,) if isinstance(target, str) else target)]
    where = re.search(r'op_name="([^"]*)"', line)
    shape = re.search(r"= (\w+\[[\d,]*\])", line)
    what = f"{where.group(1) if where else 'an operation'}{f' {shape.group(1)}' if shape else ''}"
    found[what] = (f"the partitioner gathers the whole of {what} on every device, for no cheaper way leads to the layout that is asked for"
                   + (f"; in rules.py it is laid out by {' or '.join(blamed)}" if blamed else ""))  # fmt: skip
  return list(found.values())


def _axes_of_dims(sharding: str, mesh: jax.sharding.Mesh) -> list[tuple[int, str]]:
  """(dimension, axis of the mesh) of a sharding such as `devices=[1,4,2]<=[2,4]T(1,0)`."""
  tiles, dims, order = re.match(r"devices=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", sharding).groups()
  numbers = lambda text: tuple(int(n) for n in text.split(","))
  ids = np.arange(mesh.devices.size).reshape(numbers(dims))
  ids = (ids.transpose(numbers(order)) if order else ids).reshape(numbers(tiles))
  pairs = []
  for dim in range(ids.ndim - sharding.endswith("replicate")):  # the last of these holds copies
    line = np.moveaxis(ids, dim, 0).reshape(ids.shape[dim], -1)[:, 0]
    pairs += [(dim, axis) for axis in collectives.axes_of([tuple(line.tolist())], mesh)]
  return pairs
