"""Checkpoints: a thin file over orbax's CheckpointManager.

A checkpoint holds the train state's arrays and a record (`meta`): the config, its hash, the data's hash and the batch size. Saving runs in
the background; a checkpoint exists once its folder has its final name, so a run killed in mid-save loses that save only.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import jax

from research.core.errors import UserError
from research.core.trees import named_leaves
from research.core.types import PyTree, TrainState
from research.optim import optimizer

FOLDER = "checkpoints"
CHUNK = 16_000_000  # bytes of an array that are compressed at a time, where memory counts


@dataclasses.dataclass(frozen=True)
class Config:
  every: int = 500  # steps from one save to the next; the last step is always saved
  steps: tuple[int, ...] = ()  # more steps that are saved, and stay for good; 0: before the first update
  keep: int = 2  # how many of the latest stay
  keep_every: int | None = None  # steps whose multiples stay for good
  keep_best: int = 1  # how many with the lowest validation loss stay

  def __post_init__(self):
    if any(step < 0 for step in self.steps):
      raise ValueError(f"steps must not be negative; got {self.steps}")


def _arrays(state: TrainState) -> TrainState:
  return state.replace(key=jax.random.key_data(state.key))


def _loss(metrics: dict[str, float]) -> float:
  return metrics["loss"]


class Checkpoints:
  """The checkpoints of one workdir."""

  def __init__(self, workdir: str, cfg: Config | None = None, in_flight: int | None = None):
    """
    Args:
      cfg: what is kept; None: nothing will be saved.
      in_flight: bytes that saving may copy at a time, more than the largest array; None: all, which frees the arrays soonest.
    """
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    self._ocp = ocp
    self.folder = os.path.join(os.path.abspath(workdir), FOLDER)
    options = ocp.CheckpointManagerOptions(read_only=True)
    if cfg is not None:
      keep = [policies.LatestN(cfg.keep)]
      if cfg.keep_best:
        lowest_last = dict(get_metric_fn=_loss, reverse=True, keep_checkpoints_without_metrics=False)
        keep.append(policies.BestN(n=cfg.keep_best, **lowest_last))
      if cfg.steps:
        keep.append(policies.CustomSteps(cfg.steps))
      if cfg.keep_every:
        keep.append(policies.EveryNSteps(cfg.keep_every))
      options = ocp.CheckpointManagerOptions(
          preservation_policy=policies.AnyPreservationPolicy(keep), cleanup_tmp_directories=True, enable_async_checkpointing=True,
          best_fn=_loss, best_mode="min",  # without it the losses are not saved, and a resumed run forgets which was best
      )  # fmt: skip
    elif not os.path.isdir(self.folder):
      raise UserError(f"no checkpoints in '{workdir}': name the workdir of a run that has saved one.")
    if cfg is not None:
      self._check_losses()
    handlers, self._chunk = None, None
    if in_flight is not None:
      # A file for each piece: the format that gathers them into few files gathers them in memory first.
      state = ocp.StandardCheckpointHandler(save_concurrent_gb=in_flight / 1e9, use_ocdbt=False)
      handlers = {"state": state, "meta": ocp.JsonCheckpointHandler()}
      self._chunk = CHUNK
    self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def save(self, state: TrainState, meta: dict[str, Any], loss: float | None) -> None:
    """Starts saving; `loss` is the validation loss at this step, where it was evaluated.

    Raises:
      UserError: this save or the one before could not be written (a full disk). What was saved before is whole.
    """
    args = self._ocp.args
    step, arrays, pieces = int(state.step), _arrays(state), None
    if self._chunk is not None:
      pieces = jax.tree.map(lambda _: self._ocp.SaveArgs(chunk_byte_size=self._chunk), arrays)
    try:
      self._manager.save(
          step, args=args.Composite(state=args.StandardSave(arrays, save_args=pieces), meta=args.JsonSave(meta)),
          metrics=None if loss is None else {"loss": loss},
      )  # fmt: skip
    except Exception as error:  # orbax wraps what the file system says in many types
      raise self._unwritten(error) from error

  def wait(self) -> None:
    """Until the last save is on disk. Raises as `save` does."""
    try:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    except Exception as error:
      raise self._unwritten(error) from error

  def close(self) -> None:
    self.wait()
    self._manager.close()

  def _unwritten(self, error: Exception) -> Exception:
    text = str(error)
    for sign in ("No space left", "ENOSPC", "RESOURCE_EXHAUSTED", "Disk quota", "File too large", "Permission denied", "Read-only file system"):
      if sign in text:
        done = self.steps()
        kept = f"the checkpoint of step {done[-1]} is whole" if done else "nothing was saved before"
        return UserError(f"checkpoint could not be written to '{self.folder}' ({sign}): free some space and run the same command again; {kept}.")
    return error

  def meta(self, step: int | None = None) -> dict[str, Any]:
    """The record of a checkpoint (default: the latest)."""
    step = self._step(step)
    path = os.path.join(self.folder, str(step), "meta", "metadata")
    try:
      with open(path, encoding="utf-8") as file:
        return json.load(file)
    except (OSError, ValueError) as error:
      raise self._damaged(step, error) from error

  def restore(self, like: TrainState, step: int | None = None) -> TrainState:
    """The state of a checkpoint (default: the latest), placed as `like`, a state of jax.ShapeDtypeStruct with shardings, says.

    Raises:
      UserError: there is none, it is damaged, or it holds another model's parameters (the first one that differs is named).
    """
    step = self._step(step)
    target = like.replace(key=jax.eval_shape(jax.random.key_data, like.key))
    if (sharding := getattr(like.key, "sharding", None)) is not None:
      target = target.replace(key=jax.ShapeDtypeStruct(target.key.shape, target.key.dtype, sharding=sharding))
    try:
      self._compare(step, target)
      state = self._manager.restore(step, args=self._ocp.args.Composite(state=self._ocp.args.StandardRestore(target))).state
    except UserError:
      raise
    except Exception as error:
      raise self._damaged(step, error) from error
    return state.replace(key=jax.random.wrap_key_data(state.key))

  def restore_params(self, step: int | None = None) -> PyTree:
    """The parameters of a checkpoint (their average, where the run kept one) as nested dicts of numpy arrays, whatever the model."""
    step = self._step(step)
    try:
      import numpy as np

      saved = self._saved(step)
      target = jax.tree.map(lambda leaf: self._ocp.RestoreArgs(restore_type=np.ndarray), saved)
      with self._ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore(os.path.join(self.folder, str(step), "state"), args=self._ocp.args.PyTreeRestore(restore_args=target))
    except Exception as error:
      raise self._damaged(step, error) from error
    average = optimizer.saved_average(tree["opt_state"])
    return tree["params"] if average is None else average

  def _saved(self, step: int) -> PyTree:
    """Shapes and types of the arrays in a checkpoint."""
    with self._ocp.StandardCheckpointer() as reader:
      found = reader.metadata(os.path.join(self.folder, str(step), "state")).item_metadata
    if found is None:
      raise ValueError("the list of its arrays cannot be read")
    return found.tree

  def _compare(self, step: int, target: TrainState) -> None:
    is_leaf = lambda node: hasattr(node, "shape")
    saved = {name: tuple(leaf.shape) for name, leaf in _flat(self._saved(step), is_leaf)}
    wanted = {name: tuple(leaf.shape) for name, leaf in named_leaves(target)}
    for name in sorted(wanted.keys() | saved.keys()):
      if wanted.get(name) != saved.get(name):
        raise UserError(f"checkpoint of step {step} in '{self.folder}' is of another model or optimizer: '{name}' is {saved.get(name, 'absent')} there and "
                        f"{wanted.get(name, 'absent')} here.")  # fmt: skip

  def _step(self, step: int | None) -> int:
    steps = self.steps()
    if not steps:
      raise UserError(f"no finished checkpoint in '{self.folder}'.")
    if step is not None and step not in steps:
      raise UserError(f"no checkpoint of step {step} in '{self.folder}'; there are {', '.join(map(str, steps))}.")
    return steps[-1] if step is None else step

  def _folders(self) -> list[int]:
    """Steps whose folder has its final name."""
    return sorted(int(name) for name in os.listdir(self.folder) if name.isdigit()) if os.path.isdir(self.folder) else []

  def _check_losses(self) -> None:
    """Reads the losses that the manager will read when it opens, so that a damaged one is told as such."""
    for step in self._folders():
      path = os.path.join(self.folder, str(step), "metrics", "metrics")
      if os.path.isfile(path):
        try:
          with open(path, encoding="utf-8") as file:
            _loss(json.load(file))
        except (OSError, ValueError, KeyError, TypeError) as error:
          raise self._damaged(step, error) from error

  def _damaged(self, step: int, error: Exception) -> UserError:
    others = [s for s in self._folders() if s != step]
    mend = f"move the folder away to go on from step {others[-1]}" if others else "there is no other; start a new workdir"
    reason = " ".join(str(error).split())[:160]
    return UserError(f"checkpoint '{os.path.join(self.folder, str(step))}' is damaged ({type(error).__name__}: {reason}): {mend}.")


def _flat(tree: PyTree, is_leaf) -> list[tuple[str, Any]]:
  from research.core.trees import leaf_name

  return [(leaf_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)]
