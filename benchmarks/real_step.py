"""The training loop's own step on made-up data: what the benchmarks run that ask what a config costs on the devices at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from research.core.types import Batch
from research.parallel import mesh as meshes
from research.parallel.rules import RULES
from research.training import experiment, loop, planning


class Step(NamedTuple):
  run: loop.Run
  flops: float  # of the model, in one step
  memory: dict[str, int]  # bytes on a device, as a plan tells them
  compile_seconds: float
  seconds: Callable[[int], list[float]]  # seconds of each of so many steps, one after the other, each from batch to loss
  together: Callable[[int], float]  # seconds of a step, of so many that are sent one behind the other as the loop sends them


def start(cfg: experiment.Config, devices: Sequence[Any]) -> Step:
  """Compiles the step, makes a fresh state and takes one step."""
  mesh = meshes.make(cfg.mesh, devices)
  run = loop.assemble(cfg, planning.Imagined(planning.vocabulary(cfg.data, None)), mesh)
  rng = np.random.default_rng(0)
  rows = {name: rng.integers(1, 100, (cfg.batch_size, *field.shape)).astype(field.dtype) for name, field in run.objective.element_spec.items()}
  rows = {name: np.ones_like(array) if name == "segments" else array for name, array in rows.items()}
  batch = meshes.put(Batch(rows, np.zeros((cfg.batch_size, 2), np.uint32), np.ones(cfg.batch_size, bool)), mesh)
  state = loop.initial_state(run)
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    traced = loop.jitted_step(run).trace(state, batch)
    started = time.perf_counter()
    compiled = traced.lower().compile()
    took = time.perf_counter() - started

  def advance(count: int) -> None:
    nonlocal state
    for _ in range(count):
      state, metrics = compiled(state, batch)
    if not np.isfinite(float(metrics["loss"])):
      raise FloatingPointError("the loss is not finite")

  def timed(count: int) -> float:
    started = time.perf_counter()
    advance(count)
    return time.perf_counter() - started

  advance(1)
  memory = planning.held(compiled.memory_analysis())
  return Step(run, loop.operations(run, traced.jaxpr)[0], memory, took, lambda count: [timed(1) for _ in range(count)], lambda count: timed(count) / count)
