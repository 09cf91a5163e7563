"""The training loop: prepare, restore, step, evaluate, save.

The position of a run is one number, the step. Batch k of the stream, the masks in it and the dropout of step k follow from it and the
seeds, so a run that was killed goes on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import time
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from research.core import config as configs
from research.core import flops
from research.core.errors import UserError
from research.core.trees import map_named, named_leaves, size
from research.core.types import Array, Batch, PyTree, TrainState
from research.data import stream
from research.evals import loss as loss_eval
from research.model import transformer
from research.model.attention.core import KERNELS
from research.objectives.base import Objective
from research.optim import guard
from research.optim import optimizer as optimizers
from research.parallel import distributed
from research.parallel import mesh as meshes
from research.parallel.rules import RULES
from research.training import book as books
from research.training import experiment, steps, throughput, watch
from research.training.checkpoint import Checkpoints
from research.training.restore import check_same, heads_matched
from research.training.step import make_train_step
from research.training.stop import Stop
from research.training.workdir import claimed


class Run(NamedTuple):
  """Everything that a config stands for, built but not started."""

  cfg: experiment.Config
  prepared: Any  # what the data component makes ready: tokenizer, vocab, digest, and labels where it has classes
  objective: Objective
  model: transformer.Transformer
  apply: transformer.Apply
  optimizer: Any
  mesh: jax.sharding.Mesh
  state: TrainState  # of jax.ShapeDtypeStruct, with shardings


def build(cfg: experiment.Config, directory: str, say: Callable[[str], None] = print, training: bool = True) -> Run:
  """Prepares the data and builds objective, model, optimizer and mesh.

  Args:
    directory: where the token dataset is kept, unless data.directory says otherwise.
    training: check that the batch fits the mesh.
  """
  mesh = meshes.make(cfg.mesh)
  if training:
    meshes.check_batch(mesh, cfg.batch_size, cfg.microbatches)
  return assemble(cfg, distributed.lead(lambda: configs.module(cfg.data).prepare(cfg.data, directory, say)), mesh)


def assemble(cfg: experiment.Config, prepared: Any, mesh: jax.sharding.Mesh) -> Run:
  """What `build` gives, of data that is ready (`prepared` needs a `vocab`) and of a mesh, whose devices need not be there."""
  if cfg.model.dtype == "float64" or cfg.model.param_dtype == "float64":
    jax.config.update("jax_enable_x64", True)
  objective = configs.make(cfg.objective, prepared.vocab, cfg.data.length)
  labels = getattr(prepared, "labels", ())
  if labels and objective.classes not in (None, len(labels)):
    raise UserError(f"objective.classes is {objective.classes}, but the data has {len(labels)} classes ({', '.join(labels[:20])}): set --config.objective.classes={len(labels)}.")
  model = configs.make(cfg.model, prepared.vocab.size, objective.heads, cfg.data.length)
  try:
    boxed = jax.eval_shape(lambda key: transformer.init(model, key), jax.random.key(0))
  except ValueError as error:  # a module's own check of its config
    raise UserError(f"{error}.") from error
  optimizer = configs.make(cfg.optimizer, cfg.steps, nn.unbox(boxed))
  shapes = jax.eval_shape(lambda params: _state(params, optimizer, jax.random.key(0)), nn.unbox(boxed))
  shardings = meshes.state_shardings(boxed, shapes, mesh)
  state = jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, shardings)
  return Run(cfg, prepared, objective, model, transformer.bind(model), optimizer, mesh, state)


def _state(params: PyTree, optimizer, key) -> TrainState:
  return TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params), key)


def fresh(run: Run, key: Array) -> TrainState:
  """A run's state before its first step, whose seed gave `key`."""
  init_key, run_key = jax.random.split(key)
  return _state(nn.unbox(transformer.init(run.model, init_key)), run.optimizer, run_key)


def initializer(run: Run) -> Callable[[Array], TrainState]:
  """A key -> a fresh state, every array made where it lives. Call it under the mesh and RULES."""
  return jax.jit(functools.partial(fresh, run), out_shardings=jax.tree.map(lambda s: s.sharding, run.state))


def initial_state(run: Run, say: Callable[[str], None] = print) -> TrainState:
  """A fresh state; the same values on every mesh."""
  with jax.set_mesh(run.mesh), nn.logical_axis_rules(RULES):
    state = initializer(run)(jax.random.key(run.cfg.seed))
  return started_from(run, state, say)


def started_from(run: Run, state: TrainState, say: Callable[[str], None]) -> TrainState:
  """A fresh state with the parameters of `init_from`, where that is set."""
  if run.cfg.init_from is None:
    return state
  with jax.set_mesh(run.mesh), nn.logical_axis_rules(RULES):
    params = _start_params(run, state.params, say)
    shardings = jax.tree.map(lambda s: s.sharding, run.state.opt_state)
    return state.replace(params=params, opt_state=jax.jit(run.optimizer.init, out_shardings=shardings)(params))  # an average of parameters starts from them too


def _start_params(run: Run, fresh: PyTree, say: Callable[[str], None]) -> PyTree:
  """The parameters of `init_from`, placed like the run's own; a head that it lacks keeps its `fresh` ones, and one that nobody reads is dropped."""
  source, lines = heads_matched(Checkpoints(run.cfg.init_from).restore_params(), run.state.params)
  for line in lines:
    say(f"init_from '{run.cfg.init_from}': {line}")
  check_same(f"init_from '{run.cfg.init_from}'", source, run.state.params)
  own = dict(named_leaves(fresh))

  def start(name, leaf):
    if source[name] is None:
      return own[name]
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda part: source[name][part].astype(leaf.dtype))

  return map_named(start, run.state.params)


def logged_step(run: Run):
  """The step as the loop runs it: (state, batch) -> (state, metrics)."""
  update = make_train_step(run.apply, run.objective, run.optimizer, run.cfg.microbatches)
  rate = optimizers.learning_rate(run.cfg.optimizer, run.cfg.steps)

  def logged(state: TrainState, batch: Batch):
    made = state.step - guard.skipped(state.opt_state)
    after, metrics = update(state, batch)
    return after, {**metrics, "learning_rate": rate(made), "skipped": guard.skipped(after.opt_state)}

  return logged


def jitted_step(run: Run):
  """`logged_step`, jitted, its state donated. Trace it under the mesh and RULES."""
  return jax.jit(logged_step(run), donate_argnums=0, out_shardings=step_shardings(run))


def step_shardings(run: Run) -> PyTree:
  """Of what `logged_step` gives: the state's, and metrics everywhere."""
  return jax.tree.map(lambda s: s.sharding, run.state), jax.sharding.NamedSharding(run.mesh, jax.sharding.PartitionSpec())


def check_resume(config, workdir: str, meta: dict[str, Any], say: Callable[[str], None]) -> None:
  """Refuses to go on with another experiment under the same name, or with what is none; says what changed harmlessly."""
  if "imported" in meta:
    raise UserError(f"'{workdir}' holds imported weights, which no optimizer has worked on yet: train from them in a new workdir, with --config={workdir} "
                    f"--config.init_from={workdir}.")  # fmt: skip
  old = configs.flatten(configs.typed(meta["config"]))
  changes = configs.diff(old, config)
  for line in changes:
    key = line.partition(":")[0]
    if key == "batch_size":
      raise UserError(f"'{workdir}' was trained with {line.replace(':', '')}: another batch size is another stream of batches; "
                      "keep it, or start a new workdir (with init_from to keep the weights).")  # fmt: skip
    if not key.startswith(experiment.RESUMABLE) and not (key == "init_from" and _same_weights(old.init_from, config.init_from)):
      raise UserError(f"'{workdir}' holds a run with another config ({line}): resume it unchanged, or start a new workdir.")
  if changes:
    say("resuming with changes: " + "; ".join(changes))


def _same_weights(old: str | None, new: str | None) -> bool:
  """Whether two paths that a run starts from name one workdir, or the second is what the first has been moved to, or a copy of it."""
  if old is None or new is None:
    return False
  if os.path.realpath(old) == os.path.realpath(new):
    return True
  if os.path.basename(os.path.abspath(old)) != os.path.basename(os.path.abspath(new)):
    return False
  with contextlib.suppress(UserError):  # no checkpoint in either
    return not os.path.exists(old) or Checkpoints(old).meta() == Checkpoints(new).meta()
  return False


def train(config, workdir: str, say: Callable[[str], None] = print, profile: range = range(0), until: int | None = None) -> dict[str, Any]:
  """Trains to `steps`, resuming whatever `workdir` holds, and returns what it writes to `summary.json`.

  Args:
    config: a locked ConfigDict of research.training.experiment.
    workdir: the only folder that is written to (the token dataset goes to data.directory where that is set).
    say: receives lines for a person.
    profile: steps whose profiler trace is kept under workdir/profile.
    until: stop after this step instead, evaluated and saved; a later call goes on as if nothing had happened.

  Raises:
    UserError: a mistake in the config or data, a damaged checkpoint, a full disk.
  """
  os.makedirs(workdir, exist_ok=True)
  leads = distributed.leads()  # the others compute, but say and write nothing besides their parts of checkpoints
  with claimed(workdir) if leads else contextlib.nullcontext():
    return _train(config, workdir, say if leads else lambda line: None, profile, until)


def _train(config, workdir: str, say: Callable[[str], None], profile: range, until: int | None) -> dict[str, Any]:
  started = time.perf_counter()
  cfg: experiment.Config = configs.typed(config)
  leads, last = distributed.leads(), last_step(cfg, until)
  distributed.agree(**{f"--config.{key}": repr(value) for key, value in configs.leaves(config)}, **{"--until": str(until)})
  checkpoints = Checkpoints(workdir, cfg.checkpoint)
  meta = checkpoints.meta() if checkpoints.steps() else None
  distributed.agree(**{"the last checkpoint of the workdir": str(meta and meta["step"])})
  if meta is not None:
    check_resume(config, workdir, meta, say)
  clock = watch.Watch(workdir, cfg.log.hang_seconds, {} if meta is None else meta.get("seconds", {}), jax.process_index())
  run = build(cfg, os.path.join(workdir, "data"), say)
  if meta is not None and meta["data_hash"] != run.prepared.digest:
    raise UserError(f"the data of '{workdir}' has changed since step {meta['step']} (hash {meta['data_hash']}, now {run.prepared.digest}): "
                    "bring the old files back, or start a new workdir.")  # fmt: skip
  distributed.agree(**{"the data's hash": run.prepared.digest})
  if leads:
    books.sign(run, config, workdir)

  state = initial_state(run, say) if meta is None else checkpoints.restore(run.state)
  start = int(state.step)
  say(introduced(run) + (f" · resumed at step {start}" if meta else ""))
  if start >= last and (summary := books.read_summary(workdir)).get("step", 0) >= last:
    say(f"{'finished' if start >= cfg.steps else 'stands'} at step {start} already")
    return summary

  rows = books.rows_of(run)
  if any(rows.cut.values()):
    say("records cut to the row's length: " + " · ".join(f"{split} {count:,}" for split, count in rows.cut.items()))
  own, devices = meshes.own_rows(run.mesh, cfg.batch_size), run.mesh.devices.size
  batch_of = lambda k: meshes.put(stream.batch(rows.train, k, cfg.batch_size, own), run.mesh)
  eval_batch = eval_batch_size(cfg, run.mesh)
  eval_key = jax.random.key(cfg.seed + 1)
  book = books.Book(run, config, workdir, rows, start, meta, started, clock, say, leads)
  first_step, peak = None, 0.0
  traced_soon = start < last  # else it was killed between its last checkpoint and the summary
  flop = 0.0 if traced_soon and _counts(run) else operations(run)[0]

  with jax.set_mesh(run.mesh), nn.logical_axis_rules(RULES), Stop() as stop, clock, stream.prefetch(batch_of, start, last) as batches:
    train_step = jitted_step(run)
    eval_step = jax.jit(loss_eval.make_step(run.apply, run.objective))

    def compile_step(state: TrainState, batch: Batch):  # one trace serves the count of operations and the compilation
      nonlocal flop
      traced = train_step.trace(state, batch)
      flop = flop or operations(run, traced.jaxpr)[0]
      return traced.lower().compile()

    def begun() -> None:
      nonlocal first_step, peak
      first_step = time.perf_counter() - started
      each, source = throughput.peak(jax.local_devices()[0])
      peak = each * devices
      say(f"first step after {first_step:.1f} s · {flop:.3g} FLOPs a step · peak {peak / 1e9:,.0f} GFLOP/s ({source})")

    def evaluate(step: int, state: TrainState) -> float:
      valid = loss_eval.run(eval_step, steps.evaluated_params(state), run.objective, rows.valid, eval_batch, run.mesh, eval_key, state.step)
      book.valid(step, valid)
      return valid["loss"]

    save = lambda step, state, loss: checkpoints.save(state, book.record(step), loss)
    if meta is None and 0 in cfg.checkpoint.steps:
      save(0, state, None)
    work = steps.Work(compile_step, begun, lambda *line: book.train(*line, flop, peak), evaluate, save)
    state, step = steps.drive(cfg, state, start, last, batches, work, clock, stop, profile, workdir)
  clock.enter("save")
  checkpoints.close()
  book.close()
  stopped_by = None if step >= last else signal.Signals(stop.signal).name
  return book.summary(step, flop, first_step, int(guard.skipped(state.opt_state)), stopped_by) if leads else {"step": step, "stopped_by": stopped_by}


def last_step(cfg: experiment.Config, until: int | None) -> int:
  """The step at which a call ends that is to go on `until` there, or to the run's own end."""
  if until is not None and not 1 <= until <= cfg.steps:
    raise UserError(f"until={until}: a run of {cfg.steps} steps can be stopped at one of these; name it.")
  return until or cfg.steps


def introduced(run: Run) -> str:
  """A line on what is about to be trained."""
  where = f"mesh {meshes.describe(meshes.shape(run.mesh))} · {run.mesh.devices.flatten()[0].device_kind}"
  return f"{size(run.state.params):,} parameters · vocabulary {run.prepared.vocab.size} · {where}"


def operations(run: Run, jaxpr: Any = None) -> tuple[float, float]:
  """FLOPs of the model in a step, and with what `jax.checkpoint` computes again; those of the optimizer are left out.

  They are those of one device with plain attention, whatever the run has: a kernel's body does not tell the blocks that it skips, its backward pass computes
  scores twice, and where places are spread over devices causal attention is not cut.

  Call it under no mesh, unless `jaxpr` counts.

  Args:
    jaxpr: what `jitted_step(run).trace(…).jaxpr` gave, where there is one; it counts where it is of that kind.
  """
  if jaxpr is None or not _counts(run):
    own = [device for device in run.mesh.devices.flat if device.process_index == jax.process_index()] or run.mesh.devices.flat
    mesh = meshes.make(meshes.Config(data=1), list(own[:1]))
    run = assemble(with_kernels(run.cfg, dict.fromkeys(("auto", *KERNELS), "xla")), run.prepared, mesh)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
      jaxpr = jitted_step(run).trace(run.state, batch_shapes(run)).jaxpr
  update = update_flops(run)
  return flops.count_jaxpr(jaxpr).total - update, flops.count_jaxpr(jaxpr, credit_recompute=True).total - update


def _counts(run: Run) -> bool:
  """Whether the run's own step is one of a single device with plain attention: on a CPU `auto` is that."""
  plain = with_kernels(run.cfg, {"auto": "xla"}) == with_kernels(run.cfg, dict.fromkeys(("auto", *KERNELS), "xla"))
  return plain and run.mesh.devices.size == 1 and run.mesh.devices.flat[0].platform == "cpu"


def with_kernels(value: Any, other: Mapping[str, str]) -> Any:
  """A config, or a part of one, with other attention kernels: old name -> new."""
  if isinstance(value, Mapping):
    return types.MappingProxyType({key: with_kernels(item, other) for key, item in value.items()})
  if not dataclasses.is_dataclass(value):
    return value
  parts = {field.name: with_kernels(getattr(value, field.name), other) for field in dataclasses.fields(value)}
  return dataclasses.replace(value, **{key: other.get(item, item) if key == "kernel" and isinstance(item, str) else item for key, item in parts.items()})


def batch_shapes(run: Run) -> Batch:
  """A global batch, as shapes with shardings."""
  rows, sharding = run.cfg.batch_size, meshes.batch_sharding(run.mesh)
  array = lambda shape, dtype: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)
  return Batch({name: array(field.shape, field.dtype) for name, field in run.objective.element_spec.items()}, array((2,), np.uint32), array((), bool))


def update_flops(run: Run) -> float:
  """What the optimizer computes (Muon's matmuls): no work of the model, so no part of its MFU."""
  params, loss = run.state.params, jax.ShapeDtypeStruct((), jnp.float32)
  update = lambda grads, state, params, loss: run.optimizer.update(grads, state, params, loss=loss)
  return flops.count(update, params, run.state.opt_state, params, loss).total


def eval_batch_size(cfg: experiment.Config, mesh) -> int:
  """Rows at a time, rounded up to what the mesh can split."""
  parts = meshes.row_parts(mesh)
  return -(-(cfg.evaluate.batch_size or cfg.batch_size) // parts) * parts

