"""Many runs of one program: what holds their states, and how a function of one run goes over all of them.

| | states | where |
| --- | --- | --- |
| Threaded | a list | CPUs: as many runs at a time as there are cores, for one small model's step leaves part of them idle |
| SideBySide | stacked, mapped by `vmap` | accelerators, of which one small model leaves the most idle |

Both compile once. `lax.map` over a stack would do so on a CPU too, but copies every state out of it and in again, and is slower (benchmarks/README.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from research.core.types import Batch, PyTree, TrainState
from research.model.layers import RUNS

Step = Callable[[TrainState, PyTree, Batch], tuple[TrainState, Any]]  # of one run: state, its numbers, its batch -> state, metrics
Score = Callable[[PyTree, Batch, Any, Any], PyTree]  # of one run: parameters, batch, key, step -> sums


class Abreast(Protocol):
  """Of K runs; `all_` is what holds a tree of each."""

  def gather(self, trees: Sequence[PyTree]) -> Any:
    """Holds them all."""

  def member(self, all_: Any, i: int) -> PyTree:
    """The tree of run i."""

  def chosen(self, all_: Any, runs: Sequence[int]) -> Any:
    """Those of some runs."""

  def part(self, take: Callable[[PyTree], PyTree], all_: Any) -> Any:
    """What `take` finds in the tree of each run; it computes nothing."""

  def compiled(self, step: Step, shardings: PyTree, states: Any, values: Any, which: Sequence[int], batches: tuple[Batch, ...]) -> Callable[[Any, tuple[Batch, ...]], tuple[Any, Any]]:
    """(states, batches) -> (states, metrics), run i reading batches[which[i]]; it takes the buffers of the states, and leaves those of a run where `shardings` say."""

  def score(self, score: Score) -> Callable[[Any, Batch, Any, Any], Any]:
    """(parameters, batch, keys, steps) -> sums, all runs reading one batch."""


class Threaded:
  """Each with arrays of its own, by one program of one run; of C cores thread i mod C sees to run i."""

  def __init__(self):
    self._threads = [ThreadPoolExecutor(1) for _ in range(_cores())]  # XLA runs on a CPU in order what one thread asks of it, and no more than that

  def gather(self, trees):
    return list(trees)

  def member(self, all_, i):
    return all_[i]

  def chosen(self, all_, runs):
    return [all_[i] for i in runs]

  def part(self, take, all_):
    return [take(tree) for tree in all_]

  def compiled(self, step, shardings, states, values, which, batches):
    one = jax.jit(step, donate_argnums=0, out_shardings=shardings).lower(states[0], values[0], batches[which[0]]).compile()

    def run(states, batches):
      ended = self._each(one, [(state, own, batches[i]) for state, own, i in zip(states, values, which)])
      return [state for state, _ in ended], [metrics for _, metrics in ended]

    return run

  def score(self, score):
    one = None  # batches have one shape

    def every(params, batch, keys, at):
      nonlocal one
      arguments = [(mine, batch, key, step) for mine, key, step in zip(params, keys, at)]
      one = one or jax.jit(score).lower(*arguments[0]).compile()  # here: the mesh is the calling thread's, the others know of none
      return self._each(one, arguments)

    return every

  def _each(self, program, arguments):
    """What the program gives for the arguments of each run; they are asked for at once, and not waited for."""
    asked = [self._threads[i % len(self._threads)].submit(program, *own) for i, own in enumerate(arguments)]
    return [each.result() for each in asked]


def _cores() -> int:
  """That this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SideBySide:
  """Stacked along a first axis."""

  def gather(self, trees):
    return jax.tree.map(lambda *parts: jnp.stack(parts), *trees)

  def member(self, all_, i):
    return jax.tree.map(lambda x: x[i], all_)

  def chosen(self, all_, runs):
    return jax.tree.map(lambda x: x[jnp.asarray(runs)], all_)

  def part(self, take, all_):
    return take(all_)

  def compiled(self, step, shardings, states, values, which, batches):
    del shardings  # one device holds the stack

    def every(states, values, which, batches):
      if len(batches) == 1:
        return self._mapped(lambda state, own: step(state, own, batches[0]))(states, values)
      stacked = self.gather(batches)
      return self._mapped(lambda state, own, i: step(state, own, self.member(stacked, i)))(states, values, which)

    which = jnp.asarray(which)
    one = jax.jit(every, donate_argnums=0).lower(states, values, which, batches).compile()
    return lambda states, batches: one(states, values, which, batches)

  def score(self, score):
    return jax.jit(lambda params, batch, keys, at: self._mapped(lambda mine, key, step: score(mine, batch, key, step))(params, keys, at))

  def _mapped(self, function):
    return jax.vmap(function, axis_name=RUNS)
