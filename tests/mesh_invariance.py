"""The same losses on every mesh, in full: each objective, fifty steps with dropout, on eight simulated devices.

  python -m tests.mesh_invariance [NAME …]          prints the table, or the rows of the named objectives

The names are those of the contract tests, with their variants; which stacks each trains, ARCHITECTURES tells. The test suite runs a shorter form (tests/contracts/objective_test.py).
"""

import os
import sys
from collections.abc import Mapping
from typing import Any

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
AS_SHIPPED = {  # objective -> the keys that ship, which multiply the rounding of a cosine; a row more for each, in float64
    "contrastive": dict(temperature=0.05),
    "contrastive-causal": dict(temperature=0.05),
    "image_text": dict(scale=None),
    "similarity": dict(high=5.0),
}
DOUBLE = dict(dtype="float64", param_dtype="float64")  # where a choice of experts hangs on the numbers, rounding would make another one


def losses(name: str, axes: dict[str, int], steps: int, changes: Mapping[str, Any] = {}, **model_keys) -> list[float]:  # noqa: B006
  """The loss of each step on a mesh, from the same state and batches, with `changes` of the objective's keys."""
  with jax.enable_x64(model_keys.get("dtype") == "float64"):
    return _losses(*common.parts(name, dropout=0.1, model_keys=model_keys, **changes), axes, steps)


def _losses(objective, model, axes: dict[str, int], steps: int) -> list[float]:
  mesh = meshes.make(meshes.Config(**{"data": 1, **axes}), jax.devices()[: int(np.prod(list(axes.values())))])
  # BERT's epsilon. Adam's first step moves every entry by the rate, however small its gradient: with 1e-8, one whose gradient is rounding
  # noise would move by something else on every mesh.
  cfg = optimizers.Config(schedule=schedule.Config(peak=3e-3, warmup=5), epsilon=1e-6)
  optimizer = configs.make(cfg, steps)

  boxed = drawn.boxed(model)
  shapes = jax.eval_shape(lambda params: common.state(params, optimizer), nn.unbox(boxed))
  shardings = meshes.state_shardings(boxed, shapes, mesh)
  state = jax.device_put(common.state(drawn.parameters(model), optimizer), shardings)
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    step = jax.jit(make_train_step(transformer.bind(model), objective, optimizer, 1), donate_argnums=0, out_shardings=(shardings, None))
    found = []
    for k in range(steps):
      state, metrics = step(state, meshes.put(common.batch(objective, 8, seed=k, start=8 * k), mesh))
      found.append(float(metrics["loss"]))
  return found


def main(names: list[str], steps: int = 50) -> None:
  unknown = set(names) - ARCHITECTURES.keys()
  if unknown:
    raise SystemExit(f"no objective {', '.join(sorted(unknown))}: take of {', '.join(ARCHITECTURES)}.")
  print("| objective | trains | mesh | step 1, relative | largest difference |\n| --- | --- | --- | --- | --- |")
  for name in names or ARCHITECTURES:
    experts = name.endswith("-experts")
    for changes, keys in [({}, DOUBLE if experts else {}), *([(AS_SHIPPED[name], DOUBLE)] if name in AS_SHIPPED else [])]:
      one = losses(name, MESHES["1"], steps, changes, **keys)
      title = " ".join([name, *(f"{key}={value}" for key, value in changes.items()), *(["float64"] if keys else [])])
      for mesh, axes in MESHES.items():
        if mesh != "1" and (experts or "expert" not in axes):
          many = losses(name, axes, steps, changes, **keys)
          print(f"| {title} | {ARCHITECTURES[name]} | {mesh} | {abs(many[0] / one[0] - 1):.1e} | {np.abs(np.array(one) - many).max():.1e} |", flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])
