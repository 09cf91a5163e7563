"""The same losses on every mesh, in full: each objective, fifty steps with dropout, on eight simulated devices.

  python -m tests.mesh_invariance [NAME …] [--rows=32]      prints the table, or the rows of the named objectives

The names are those of the contract tests, with their variants; which stacks each trains, ARCHITECTURES tells. The test suite runs a shorter form
(tests/contracts/objective_test.py).

Batches have eight rows. Where a loss is a cosine times a number, the keys of the contracts make that number small. It is compared at the keys that ship too, in
float32 and in float64, with batches of `rows`, for no recipe of such an objective has as few as eight.

A verdict tells of each title whether its bars are kept; if one is not, the status is 1.
"""

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

if __name__ == "__main__":
  if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.execv(sys.executable, sys.orig_argv)

from research.core import config as configs
from research.model import transformer
from research.optim import optimizer as optimizers
from research.optim import schedule
from research.parallel import mesh as meshes
from research.parallel.rules import RULES
from research.training.step import make_train_step
from tests import drawn
from tests.contracts import common

MESHES = {
    "1": dict(data=1),
    "data 8": dict(data=8),
    "fsdp 8": dict(fsdp=8),
    "tensor 4 × data 2": dict(tensor=4, data=2),
    "fsdp 2 × tensor 2 × data 2": dict(fsdp=2, tensor=2, data=2),
    "fsdp 4 × data 2": dict(fsdp=4, data=2),
    "tensor 4 × fsdp 2": dict(tensor=4, fsdp=2),
    "tensor 2 × data 4": dict(tensor=2, data=4),
    "expert 2 × data 4": dict(expert=2, data=4),
    "expert 4 × tensor 2": dict(expert=4, tensor=2),
    "expert 2 × fsdp 2 × tensor 2": dict(expert=2, fsdp=2, tensor=2),
    "sequence 2 × data 4": dict(sequence=2, data=4),
    "sequence 4 × tensor 2": dict(sequence=4, tensor=2),
    "fsdp 2 × sequence 2 × tensor 2": dict(fsdp=2, sequence=2, tensor=2),
}
ARCHITECTURES = {  # objective, or a variant of it -> what it trains
    "causal_lm": "decoder",
    "causal_lm-prefix": "decoder",
    "causal_lm-experts": "decoder, experts",
    "masked_lm": "encoder",
    "next_sentence": "encoder",
    "permutation_lm": "encoder, two streams",
    "contrastive": "encoder",
    "contrastive-causal": "decoder",
    "image_text": "decoder and encoder",
    "image_classification": "encoder",
    "classification": "encoder",
    "tagging": "encoder",
    "similarity": "encoder",
    "seq2seq": "encoder–decoder",
}
AS_SHIPPED = {  # objective -> the keys that ship, which multiply the rounding of a cosine
    "contrastive": dict(temperature=0.05),
    "contrastive-causal": dict(temperature=0.05),
    "image_text": dict(scale=None),
    "similarity": dict(high=5.0),
}
ROWS = 8  # of a batch
SHIPPED_ROWS = 32  # of a batch at the keys that ship: STS-B's recipe; others have more
DOUBLE = dict(dtype="float64", param_dtype="float64")  # where a choice of experts hangs on the numbers, rounding would make another one
BARS = {"float32": (1e-6, 1e-5), "float64": (1e-9, 1e-9)}  # of step 1, relative; of the largest difference


class Row(NamedTuple):
  """How far the losses of a mesh are from those of one device."""

  first: float  # of step 1, relative
  largest: float  # difference of any step
  relative: float  # difference of any step, relative

  @classmethod
  def of(cls, one: Sequence[float], many: Sequence[float]) -> "Row":
    one, apart = np.array(one), np.abs(np.array(one) - many)
    return cls(float(apart[0] / abs(one[0])), float(apart.max()), float((apart / np.abs(one)).max()))


class Setting(NamedTuple):
  """What some rows of the table are made with."""

  changes: Mapping[str, Any]  # of the keys that the objective has in the contracts
  dtype: str
  rows: int = ROWS  # of a batch

  def title(self, name: str) -> str:
    shipped = [f"(ships, {self.rows} rows)"] if self.changes else []
    return " ".join([name, *(f"{key}={value}" for key, value in self.changes.items()), *shipped, self.dtype])

  def model_keys(self) -> dict[str, str]:
    return DOUBLE if self.dtype == "float64" else {}


def settings(name: str, shipped_rows: int) -> list[Setting]:
  """What an objective is compared with."""
  shipped = [Setting(AS_SHIPPED[name], dtype, shipped_rows) for dtype in BARS] if name in AS_SHIPPED else []
  return [Setting({}, "float64" if name.endswith("-experts") else "float32"), *shipped]


def losses(name: str, axes: dict[str, int], steps: int, changes: Mapping[str, Any] = {}, rows: int = ROWS, **model_keys) -> list[float]:  # noqa: B006
  """The loss of each step on a mesh, from the same state and batches of `rows`, with `changes` of the objective's keys."""
  with jax.enable_x64(model_keys.get("dtype") == "float64"):
    objective, model = common.parts(name, dropout=0.1, model_keys=model_keys, **changes)
    # BERT's epsilon. Adam's first step moves every entry by the rate, however small its gradient: with 1e-8, one whose gradient is rounding
    # noise would move by something else on every mesh.
    cfg = optimizers.Config(schedule=schedule.Config(peak=3e-3, warmup=5), epsilon=1e-6)
    optimizer = configs.make(cfg, steps)
    mesh = meshes.make(meshes.Config(**{"data": 1, **axes}), jax.devices()[: int(np.prod(list(axes.values())))])
    boxed = drawn.boxed(model)
    shapes = jax.eval_shape(lambda params: common.state(params, optimizer), nn.unbox(boxed))
    shardings = meshes.state_shardings(boxed, shapes, mesh)
    state = jax.device_put(common.state(drawn.parameters(model), optimizer), shardings)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
      step = jax.jit(make_train_step(transformer.bind(model), objective, optimizer, 1), donate_argnums=0, out_shardings=(shardings, None))
      found = []
      for k in range(steps):
        state, metrics = step(state, meshes.put(common.batch(objective, rows, seed=k, start=rows * k), mesh))
        found.append(float(metrics["loss"]))
    return found


def verdict(setting: Setting, title: str, rows: Sequence[Row]) -> tuple[str, bool]:
  """A sentence on the rows of a title, and whether they keep their bars."""
  bars, missed = BARS[setting.dtype], []
  for what, bar, values in zip(("step 1 is above", "the largest difference above"), bars, ([row.first for row in rows], [row.largest for row in rows])):
    over = [value for value in values if not value <= bar]
    if over:
      missed.append(f"{what} {bar:.0e} on {len(over)} of {len(rows)} meshes, at most {max(over):.1e}")
  if not missed:
    return f"{title} keeps its bars of {bars[0]:.0e} and {bars[1]:.0e} on {len(rows)} meshes.", True
  return f"{title} misses its bars: {'; '.join(missed)}.", False


def short(value: float) -> str:
  return f"{value:.1e}" if value else "0"


def main(arguments: list[str], steps: int = 50) -> int:
  names = [argument for argument in arguments if not argument.startswith("--rows=")]
  rows = next((int(argument.removeprefix("--rows=")) for argument in arguments if argument not in names), SHIPPED_ROWS)
  unknown = set(names) - ARCHITECTURES.keys()
  if unknown:
    raise SystemExit(f"no objective {', '.join(sorted(unknown))}: take of {', '.join(ARCHITECTURES)}.")
  said, kept = [], True
  print("| objective | trains | mesh | step 1, relative | largest difference | largest, relative |\n| --- | --- | --- | --- | --- | --- |")
  for name in names or ARCHITECTURES:
    for setting in settings(name, rows):
      title, found = setting.title(name), []
      losses_on = functools.partial(losses, name, steps=steps, changes=setting.changes, rows=setting.rows, **setting.model_keys())
      one = losses_on(MESHES["1"])
      for mesh, axes in MESHES.items():
        if mesh != "1" and (name.endswith("-experts") or "expert" not in axes):
          found.append(Row.of(one, losses_on(axes)))
          print(f"| {title} | {ARCHITECTURES[name]} | {mesh} | {' | '.join(map(short, found[-1]))} |", flush=True)
      sentence, keeps = verdict(setting, title, found)
      said, kept = [*said, sentence], kept and keeps
  print("\n" + "\n".join(f"- {sentence}" for sentence in said))
  return int(not kept)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
