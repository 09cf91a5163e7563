"""Many runs in one program: K models that differ only in seeds and in numbers of the optimizer are trained by one compiled step.

They go in threads on a CPU, and side by side on an accelerator (`abreast`). A batch is read once for all that share data.seed. Each run has its own folder as
if it had been trained alone, checkpoints too, so research.train can go on with it, and this can go on with runs of research.train that stand at one step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core import config as configs
from research.core.errors import UserError
from research.core.types import Array, Batch, TrainState
from research.data import stream
from research.evals import loss as loss_eval
from research.model.layers import platform
from research.optim import guard, numbers
from research.parallel import mesh as meshes
from research.parallel.rules import RULES
from research.training import book as books
from research.training import loop, steps, throughput, watch
from research.training.abreast import Abreast, SideBySide, Threaded
from research.training.checkpoint import Checkpoints
from research.training.stop import Stop
from research.training.workdir import claimed

VARYING = ("seed", "data.seed", *(f"optimizer.{key}" for key in numbers.NUMBERS))  # keys in which runs of one program may differ
FEW = 4  # runs of which each is told of line by line; of more, what they span
FREE = ("init_from", "data.directory")  # these too: they are data, no part of the program


class Member(NamedTuple):
  """One of the runs."""

  config: Any  # the resolved ConfigDict
  workdir: str
  run: loop.Run
  checkpoints: Checkpoints
  meta: dict[str, Any] | None
  stream: int  # which of the streams of batches it reads


class Outcome(NamedTuple):
  """How one run ended."""

  summary: dict[str, Any]  # as in its summary.json; empty where it failed
  failed: str | None  # why it was given up


def program(config: Any) -> str:
  """What runs of one program have in common: all keys but those in which they may differ, as text."""
  return json.dumps(_forms(config), sort_keys=True, default=str)


def _forms(config: Any) -> dict[str, Any]:
  """Key -> what the program knows of its value: nothing of a number that may differ, but whether there is one, and whether it does anything."""
  form = lambda key, value: numbers.used(key.removeprefix("optimizer."), value) if key in VARYING and isinstance(value, (int, float)) else value
  return {key: form(key, value) for key, value in configs.leaves(config) if key not in FREE}


def train(configs_: Sequence[Any], workdirs: Sequence[str], say: Callable[[str], None] = print, until: int | None = None) -> list[Outcome]:
  """Trains all runs to their end, or until SIGTERM or Ctrl-C, whereupon all save.

  Args:
    configs_: locked ConfigDicts of research.training.experiment, of one `program`.
    workdirs: a folder for each.
    say: receives lines for a person; those of run i begin with its number.
    until: as in loop.train.

  Returns:
    How each run ended. One whose updates are all skipped is given up, and named; the others go on.

  Raises:
    UserError: runs of two programs, two runs in one folder, checkpoints of different steps, several devices, and what loop.train raises.
  """
  _check(configs_, workdirs)
  with contextlib.ExitStack() as stack:
    for workdir in workdirs:
      os.makedirs(workdir, exist_ok=True)
      stack.enter_context(claimed(workdir))
    return _train(configs_, workdirs, say, until)


def _check(configs_: Sequence[Any], workdirs: Sequence[str]) -> None:
  if len({os.path.realpath(workdir) for workdir in workdirs}) < len(workdirs):
    raise UserError("two of the runs have one workdir: name a folder for each.")
  first = _forms(configs_[0])
  for config, workdir in zip(configs_, workdirs):
    other = _forms(config)
    if (key := next((key for key in {**first, **other} if first.get(key, ...) != other.get(key, ...)), None)) is not None:
      theirs, ours = (dict(configs.leaves(each)).get(key, "absent") for each in (config, configs_[0]))
      raise UserError(f"'{workdir}' cannot be trained in one program with '{workdirs[0]}': '{key}' is {theirs!r} there and {ours!r} here, and only seeds and numbers of "
                      f"the optimizer ({', '.join(VARYING)}) may differ.")  # fmt: skip


def _train(configs_: Sequence[Any], workdirs: Sequence[str], say: Callable[[str], None], until: int | None) -> list[Outcome]:
  started = time.perf_counter()
  typed = [configs.typed(config) for config in configs_]
  cfg, width = typed[0], len(str(len(typed) - 1))
  last = loop.last_step(cfg, until)
  said = [lambda line, i=i: say(f"[{i:>{width}}] {line}") for i in range(len(typed))]
  checkpoints = [Checkpoints(workdir, each.checkpoint) for workdir, each in zip(workdirs, typed)]
  start = _common_step(checkpoints, workdirs)
  metas = [each.meta(start) if start is not None else None for each in checkpoints]
  for config, workdir, meta, tell in zip(configs_, workdirs, metas, said):
    if meta is not None:
      loop.check_resume(config, workdir, meta, tell)
  clock = watch.Watch(workdirs[0], cfg.log.hang_seconds, {} if metas[0] is None else metas[0].get("seconds", {}))
  members = _members(configs_, typed, workdirs, checkpoints, metas, say)
  run = members[0].run
  if run.mesh.devices.size > 1:
    raise UserError(f"runs of one program share one device, and the mesh has {run.mesh.devices.size}: set the mesh's axes to 1, or show the process one device alone.")

  with jax.set_mesh(run.mesh):
    abreast = Threaded() if platform() == "cpu" else SideBySide()
  state = abreast.gather(_initial(members, said) if start is None else [each.restore(run.state, start) for each in checkpoints])
  start = start or 0
  say(f"{len(members)} runs in one program, each: {loop.introduced(run)}" + (f" · resumed at step {start}" if start else ""))
  if start >= last and all(books.read_summary(workdir).get("step", 0) >= last for workdir in workdirs):
    say(f"{'finished' if start >= cfg.steps else 'stands'} at step {start} already")
    return [Outcome(books.read_summary(workdir), None) for workdir in workdirs]

  streams = [next(m.run for m in members if m.stream == i) for i in range(1 + max(m.stream for m in members))]
  rows = [books.rows_of(each) for each in streams]
  batch_of = lambda k: tuple(meshes.put(stream.batch(each.train, k, cfg.batch_size), run.mesh) for each in rows)
  few, quiet = len(members) <= FEW, lambda line: None
  kept = [books.Book(m.run, m.config, m.workdir, rows[m.stream], start, m.meta, started, clock, tell if few else quiet, bar=False, share=1 / len(members))
          for m, tell in zip(members, said)]  # fmt: skip
  failed: dict[int, str] = {}
  values = abreast.gather(_values(typed))
  eval_keys = abreast.gather([jax.random.key(m.run.cfg.seed + 1) for m in members])
  eval_batch = loop.eval_batch_size(cfg, run.mesh)
  first_step, peak, flop = None, 0.0, loop.operations(run)[0]

  with jax.set_mesh(run.mesh), nn.logical_axis_rules(RULES), Stop() as stop, clock, stream.prefetch(batch_of, start, last) as batches:
    compile_step = functools.partial(_compiled, abreast, run, values, [m.stream for m in members])
    score = abreast.score(loss_eval.make_step(run.apply, run.objective))

    def begun() -> None:
      nonlocal first_step, peak
      first_step = time.perf_counter() - started
      peak, source = throughput.peak(jax.local_devices()[0])
      say(f"first step after {first_step:.1f} s · {flop:.3g} FLOPs a step and run · peak {peak / 1e9:,.0f} GFLOP/s ({source})")

    def report(step: int, metrics: Any, speed: float | None) -> None:
      losses = []
      for i, book in enumerate(kept):
        if i not in failed:
          own = abreast.member(metrics, i)
          try:
            book.train(step, own, speed, flop, peak)
            losses.append(float(own["loss"]))
          except UserError as error:
            failed[i] = str(error)
            said[i](f"FAILED at step {step}: {error}")
      if losses and not few:
        fast = f"  {len(kept) * speed * cfg.batch_size:,.0f} rows/s" if speed else ""
        say(f"step {step:>{len(str(cfg.steps))}}/{cfg.steps}  train  loss {min(losses):.4f} … {max(losses):.4f}{fast}")

    def evaluate(step: int, state: Any) -> dict[int, float]:
      losses, params, at = {}, abreast.part(steps.evaluated_params, state), abreast.part(lambda each: each.step, state)
      for index, each in enumerate(rows):
        readers = [i for i, m in enumerate(members) if m.stream == index]
        theirs = (lambda all_: all_) if len(rows) == 1 else functools.partial(abreast.chosen, runs=readers)
        sums = loss_eval.sums(score, theirs(params), each.valid, eval_batch, run.mesh, theirs(eval_keys), theirs(at))
        for place, i in enumerate(readers):
          if i not in failed:
            valid = loss_eval.values(run.objective, abreast.member(sums, place))
            kept[i].valid(step, valid)
            losses[i] = valid["loss"]
      if losses and not few:
        best = min(losses, key=losses.get)
        say(f"step {step:>{len(str(cfg.steps))}}/{cfg.steps}  valid  loss {losses[best]:.4f} … {max(losses.values()):.4f}, the least of run {best}")
      return losses

    def save(step: int, state: Any, losses: dict[int, float] | None) -> None:
      for i, (m, book) in enumerate(zip(members, kept)):
        if i not in failed:
          m.checkpoints.save(abreast.member(state, i), book.record(step), (losses or {}).get(i))

    if metas[0] is None and 0 in cfg.checkpoint.steps:
      save(0, state, None)
    work = steps.Work(compile_step, begun, report, evaluate, save, lambda: len(failed) == len(kept))
    state, step = steps.drive(cfg, state, start, last, batches, work, clock, stop)
  clock.enter("save")
  stopped_by = None if step >= last or len(failed) == len(kept) else signal.Signals(stop.signal).name
  skipped = jax.device_get(abreast.part(lambda each: guard.skipped(each.opt_state), state))
  ended = []
  for i, (m, book) in enumerate(zip(members, kept)):
    m.checkpoints.close()
    book.close()
    ended.append(Outcome({} if i in failed else book.summary(step, flop, first_step, int(skipped[i]), stopped_by), failed.get(i)))
  return ended


# --- the program -------------------------------------------------------------------------------------------------------------


def _compiled(abreast: Abreast, run: loop.Run, values: Any, which: Sequence[int], states: Any, batches: tuple[Batch, ...]) -> Callable:
  """The step of every run: `loop.logged_step` with that run's numbers."""

  def step(state: TrainState, own: dict[str, Any], batch: Batch):
    cfg = dataclasses.replace(run.cfg, optimizer=numbers.replaced(run.cfg.optimizer, own))
    return loop.logged_step(run._replace(cfg=cfg, optimizer=configs.make(cfg.optimizer, cfg.steps)))(state, batch)

  return abreast.compiled(step, loop.step_shardings(run), states, values, which, batches)


def _initial(members: Sequence[Member], said: Sequence[Callable[[str], None]]) -> list[TrainState]:
  """The runs' fresh states: of each the values that it has alone."""
  run = members[0].run
  with jax.set_mesh(run.mesh), nn.logical_axis_rules(RULES):
    make = loop.initializer(run)
    states = [make(jax.random.key(m.run.cfg.seed)) for m in members]
  return [loop.started_from(m.run, state, tell) for m, state, tell in zip(members, states, said)]


def _values(typed: Sequence[Any]) -> list[dict[str, Array]]:
  """Of each run the numbers of the optimizer in which the runs differ. A schedule is float32 whatever the parameters are, so its numbers are."""
  kind = lambda key: jnp.float32 if key.startswith("schedule.") else float
  differing = [key for key in numbers.NUMBERS if len({_number(cfg, key) for cfg in typed}) > 1]
  return [{key: jnp.asarray(_number(cfg, key), kind(key)) for key in differing} for cfg in typed]


def _number(cfg: Any, key: str) -> Any:
  outer, _, inner = key.rpartition(".")
  return getattr(getattr(cfg.optimizer, outer) if outer else cfg.optimizer, inner, None)


# --- folders -----------------------------------------------------------------------------------------------------------------


def _common_step(checkpoints: Sequence[Checkpoints], workdirs: Sequence[str]) -> int | None:
  """The last step that every run has a checkpoint of; None where none has any. What a run has beyond it is dropped: it was killed while all were saving."""
  found = [set(each.steps()) for each in checkpoints]
  common = set.intersection(*found)
  if common:
    return max(common)
  if not any(found):
    return None
  behind = next(i for i, steps in enumerate(found) if not steps or max(steps) == min(max(each, default=-1) for each in found))
  raise UserError(f"'{workdirs[behind]}' has no checkpoint of a step that all the runs have: bring it to the step of the others with research.train, or train it apart.")


def _members(configs_, typed, workdirs, checkpoints, metas, say) -> list[Member]:
  """The runs, built; data are prepared once for each data.seed, and kept in the first run's folder, to which the others link."""
  prepared: dict[Any, Any] = {}
  folder = os.path.join(workdirs[0], "data")
  members: list[Member] = []
  base = None
  for config, cfg, workdir, each, meta in zip(configs_, typed, workdirs, checkpoints, metas):
    seed = getattr(cfg.data, "seed", None)
    if seed not in prepared:
      prepared[seed] = configs.module(cfg.data).prepare(cfg.data, folder, say)
    if os.path.isdir(folder) and not os.path.lexists(link := os.path.join(workdir, "data")):
      os.symlink(os.path.relpath(folder, workdir), link)
    if base is None:
      mesh = meshes.make(cfg.mesh)
      meshes.check_batch(mesh, cfg.batch_size, cfg.microbatches)
      base = loop.assemble(cfg, prepared[seed], mesh)
    run = base._replace(cfg=cfg, prepared=prepared[seed], optimizer=configs.make(cfg.optimizer, cfg.steps, base.state.params))
    if meta is not None and meta["data_hash"] != run.prepared.digest:
      raise UserError(f"the data of '{workdir}' has changed since step {meta['step']} (hash {meta['data_hash']}, now {run.prepared.digest}): "
                      "bring the old files back, or start a new workdir.")  # fmt: skip
    books.sign(run, config, workdir)
    members.append(Member(config, workdir, run, each, meta, list(prepared).index(seed)))
  return members
