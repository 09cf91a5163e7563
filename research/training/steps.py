"""The loop over steps, of one run and of several in one program: what happens after which of them.

The device is kept busy: the metrics of a step are read once the one after it is under way, and nothing else waits for it but evaluations and checkpoints.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from research.core.types import Batch, PyTree, TrainState
from research.optim import optimizer as optimizers
from research.training import experiment, throughput, watch
from research.training.stop import Stop


class Work(NamedTuple):
  """What a loop does, each part called where it is due. The state is one run's, or what holds those of several (`abreast`)."""

  compile: Callable[[TrainState, Batch], Callable[[TrainState, Batch], tuple[TrainState, Any]]]  # the step, which gives metrics too and may take the state's buffers
  begun: Callable[[], None]  # the first step is through
  report: Callable[[int, Any, float | None], None]  # step, its metrics on the host, steps per second since the last such step
  evaluate: Callable[[int, TrainState], Any]  # what it returns is passed to `save`
  save: Callable[[int, TrainState, Any], None]  # with None where nothing was evaluated
  hopeless: Callable[[], bool] = lambda: False  # whether to end before the last step


def drive(cfg: experiment.Config, state: TrainState, start: int, last: int, batches: Iterable[Batch], work: Work, clock: watch.Watch, stop: Stop,
          profile: range = range(0), workdir: str = "") -> tuple[TrainState, int]:  # fmt: skip
  """Makes the steps after `start` up to `last`, or until it is told to stop.

  Args:
    batches: those of the steps, from `start` on.
    profile: steps whose profiler trace is kept under workdir/profile.

  Returns:
    The state, which has been evaluated and saved, and its step.
  """
  compiled, step, pace = None, start, throughput.Pace()

  def report() -> None:
    if (held := pace.take()) is not None:
      work.report(*held)

  for batch in batches:
    if compiled is None:
      clock.enter("compile")
      compiled = work.compile(state, batch)
      clock.enter("train")
    if step in profile and step == profile.start:
      jax.profiler.start_trace(os.path.join(workdir, "profile"))
    state, metrics = compiled(state, batch)
    step += 1
    clock.beat(step)
    if step == profile.stop and len(profile):
      jax.block_until_ready(state)
      jax.profiler.stop_trace()
    if step == start + 1:
      jax.block_until_ready(state)
      work.begun()
      pace.start(step)
    report()
    if step % cfg.log.every == 0 or step in (1, cfg.steps):
      pace.hold(step, metrics)
    done = step == last
    ending = stop.wanted(step) or done or work.hopeless()
    evaluated, kept = step % cfg.evaluate.every == 0 or done, step % cfg.checkpoint.every == 0 or step in cfg.checkpoint.steps or ending
    if not (evaluated or kept):
      continue
    report()
    jax.block_until_ready(state)
    pause, losses = time.perf_counter(), None
    if evaluated:
      clock.enter("evaluate")
      losses = work.evaluate(step, state)
    if kept:
      clock.enter("save")
      work.save(step, state, losses)
    clock.enter("train")
    pace.pause(time.perf_counter() - pause)
    if ending:
      break
  return state, step


def evaluated_params(state: TrainState) -> PyTree:
  """The parameters that are scored: their average, where the optimizer keeps one."""
  average = optimizers.ema_params(state.opt_state)
  return state.params if average is None else average
