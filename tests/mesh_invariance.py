"""The same losses on every mesh, in full: each objective, fifty steps with dropout, on eight simulated devices.

  python -m tests.mesh_invariance [NAME …]          prints the table, or the rows of the named objectives

The names are those of the contract tests, with their variants; which stacks each trains, ARCHITECTURES tells. The test suite runs a shorter form
(tests/contracts/objective_test.py).

Where a loss is a cosine times a number, the keys of the contracts make that number small. Rows at the keys that ship follow, in float32 and in float64, and a
second table, of step 1 in float32 at these keys: how far apart the losses are, and how far they would be if everything after the model's vectors were computed
in float64. What is left then is in the vectors.

A verdict tells of each title whether its bars are kept. Rows in float32 at the keys that ship are not promised to keep them; any other row that does not makes
the status 1.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

if __name__ == "__main__":
  if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.execv(sys.executable, sys.orig_argv)

from research.core import config as configs
from research.core.types import TrainState
from research.model import transformer
from research.model.inputs import Output
from research.objectives.base import Objective, corrupted
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
  promised: bool = True  # to keep the bars

  def title(self, name: str) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in self.changes.items()), *(["(ships)"] if self.changes else []), self.dtype])

  def model_keys(self) -> dict[str, str]:
    return DOUBLE if self.dtype == "float64" else {}


def settings(name: str) -> list[Setting]:
  """Which rows an objective has."""
  shipped = [Setting(AS_SHIPPED[name], "float32", promised=False), Setting(AS_SHIPPED[name], "float64")] if name in AS_SHIPPED else []
  return [Setting({}, "float64" if name.endswith("-experts") else "float32"), *shipped]


def losses(name: str, axes: dict[str, int], steps: int, changes: Mapping[str, Any] = {}, **model_keys) -> list[float]:  # noqa: B006
  """The loss of each step on a mesh, from the same state and batches, with `changes` of the objective's keys."""
  with jax.enable_x64(model_keys.get("dtype") == "float64"):
    objective, model = common.parts(name, dropout=0.1, model_keys=model_keys, **changes)
    # BERT's epsilon. Adam's first step moves every entry by the rate, however small its gradient: with 1e-8, one whose gradient is rounding
    # noise would move by something else on every mesh.
    cfg = optimizers.Config(schedule=schedule.Config(peak=3e-3, warmup=5), epsilon=1e-6)
    optimizer = configs.make(cfg, steps)
    with placed(model, optimizer, axes) as (mesh, state, shardings):
      step = jax.jit(make_train_step(transformer.bind(model), objective, optimizer, 1), donate_argnums=0, out_shardings=(shardings, None))
      found = []
      for k in range(steps):
        state, metrics = step(state, batch_of(objective, k, mesh))
        found.append(float(metrics["loss"]))
    return found


@contextlib.contextmanager
def placed(model: nn.Module, optimizer, axes: dict[str, int]) -> Iterator[tuple[jax.sharding.Mesh, TrainState, Any]]:
  """Enters a mesh; gives it, the state that training begins with there, and the state's shardings."""
  mesh = meshes.make(meshes.Config(**{"data": 1, **axes}), jax.devices()[: int(np.prod(list(axes.values())))])
  boxed = drawn.boxed(model)
  shapes = jax.eval_shape(lambda params: common.state(params, optimizer), nn.unbox(boxed))
  shardings = meshes.state_shardings(boxed, shapes, mesh)
  state = jax.device_put(common.state(drawn.parameters(model), optimizer), shardings)
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    yield mesh, state, shardings


def batch_of(objective: Objective, k: int, mesh: jax.sharding.Mesh):
  """Batch k of eight rows, on the mesh."""
  return meshes.put(common.batch(objective, 8, seed=k, start=8 * k), mesh)


def first_loss(name: str, axes: dict[str, int], changes: Mapping[str, Any]) -> tuple[float, float]:
  """The loss of step 1 in float32, and the one that float64 makes of the same vectors of the model."""
  objective, model = common.parts(name, dropout=0.1, **changes)
  apply = transformer.bind(model)

  def forward(state: TrainState, batch):
    """As training/step does it."""
    corrupt_key, dropout_key = jax.random.split(state.key)
    example, read = corrupted(objective, corrupt_key, batch, state.step), []

    def noted(*args: Any, **kwargs: Any) -> Output:
      output = apply(*args, **kwargs)
      read.append(output.heads)
      return output

    return value(objective, noted, state.params, example, jax.random.fold_in(dropout_key, state.step)), read, example

  with placed(model, optax.identity(), axes) as (mesh, state, _):
    loss, read, example = jax.device_get(jax.jit(forward)(state, batch_of(objective, 0, mesh)))
  with jax.enable_x64(True):
    again = iter([jax.tree.map(lambda x: jax.numpy.asarray(x, "float64"), heads) for heads in read])  # its calls come in the same order
    wide = value(objective, lambda *args, **kwargs: Output(next(again), None, None, None, {}, {}), None, example, None)
    return float(loss), float(wide)


def value(objective: Objective, apply, params, example, key):
  """The loss that is differentiated in training."""
  terms, _ = objective.loss(apply, params, example, key, True)
  return sum(objective.factors[term] * mean.value() for term, mean in terms.items())


def verdict(setting: Setting, title: str, rows: Sequence[Row]) -> tuple[str, bool]:
  """A sentence on the rows of a title, and whether they break a promise."""
  bars, missed = BARS[setting.dtype], []
  for what, bar, values in zip(("step 1 is above", "the largest difference above"), bars, ([row.first for row in rows], [row.largest for row in rows])):
    over = [value for value in values if not value <= bar]
    if over:
      missed.append(f"{what} {bar:.0e} on {len(over)} of {len(rows)} meshes, at most {max(over):.1e}")
  if not missed:
    return f"{title} keeps its bars of {bars[0]:.0e} and {bars[1]:.0e} on {len(rows)} meshes.", False
  missed.append(f"as a share of its loss no step differs by more than {max(row.relative for row in rows):.1e}")
  return f"{title} misses its bars{'' if setting.promised else ', which is not promised'}: {'; '.join(missed)}.", setting.promised


def short(value: float) -> str:
  return f"{value:.1e}" if value else "0"


def main(names: list[str], steps: int = 50) -> int:
  unknown = set(names) - ARCHITECTURES.keys()
  if unknown:
    raise SystemExit(f"no objective {', '.join(sorted(unknown))}: take of {', '.join(ARCHITECTURES)}.")
  names, said, broken = names or list(ARCHITECTURES), [], False
  several = lambda name: {mesh: axes for mesh, axes in MESHES.items() if mesh != "1" and (name.endswith("-experts") or "expert" not in axes)}
  print("| objective | trains | mesh | step 1, relative | largest difference | largest, relative |\n| --- | --- | --- | --- | --- | --- |")
  for name in names:
    for setting in settings(name):
      title, rows, keys = setting.title(name), [], setting.model_keys()
      one = losses(name, MESHES["1"], steps, setting.changes, **keys)
      for mesh, axes in several(name).items():
        rows.append(Row.of(one, losses(name, axes, steps, setting.changes, **keys)))
        print(f"| {title} | {ARCHITECTURES[name]} | {mesh} | {' | '.join(map(short, rows[-1]))} |", flush=True)
      sentence, breaks = verdict(setting, title, rows)
      said, broken = [*said, sentence], broken or breaks
  shipped = {name: Setting(AS_SHIPPED[name], "float32") for name in names if name in AS_SHIPPED}
  if shipped:
    print("\n| step 1 of | mesh | computed in float32 | of the same vectors in float64 |\n| --- | --- | --- | --- |")
  for name, setting in shipped.items():
    one = first_loss(name, MESHES["1"], setting.changes)
    for mesh, axes in several(name).items():
      apart = [abs(a / b - 1) for a, b in zip(first_loss(name, axes, setting.changes), one)]
      print(f"| {setting.title(name)} | {mesh} | {' | '.join(map(short, apart))} |", flush=True)
  print("\n" + "\n".join(f"- {sentence}" for sentence in said))
  return int(broken)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
