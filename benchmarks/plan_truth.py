"""How well predicted step times rank meshes: predicted for and measured on eight simulated CPU devices.

  python -m benchmarks.plan_truth [--steps=5]

Simulated devices share the cores and the memory of one machine, so this is a test of the ranking (Spearman), not of seconds.
"""

from __future__ import annotations

import os

from research.core import startup

if __name__ == "__main__":
  os.environ.update(JAX_PLATFORMS="cpu", XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip())
  startup.prepare()

import statistics

from absl import flags

from research.core.errors import command
from research.core.flags import parse
from research.core.overrides import load

FLAGS = flags.FlagValues()
flags.DEFINE_integer("steps", 5, "timed steps of each mesh; their median counts", flag_values=FLAGS)
MESHES = ({"data": 8}, {"fsdp": 8}, {"tensor": 8}, {"data": 4, "tensor": 2}, {"data": 2, "tensor": 4}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 4},
          {"fsdp": 2, "tensor": 4})  # fmt: skip
MODEL = ("model.layers=2", "model.width=256", "model.attention.heads=8", "data.tokenizer.vocab_size=4096", "data.length=128", "batch_size=16")


def main(arguments: list[str]) -> int:
  parse(arguments, FLAGS, __doc__)
  import scipy.stats

  from benchmarks import real_step
  from research.core import config as configs
  from research.parallel import mesh as meshes
  from research.parallel import topology
  from research.training import planning

  target, predicted, measured = topology.make("cpu:8"), [], []
  print(f"{'predicted':>10}{'measured':>10}  mesh")
  for sizes in MESHES:
    changes = [f"--config.mesh.{axis}={sizes.get(axis, 1)}" for axis in meshes.AXES]
    cfg = configs.typed(load("configs/base.py", [*(f"--config.{key}" for key in MODEL), *changes]))
    plan = planning.make(cfg, target)
    predicted.append(plan.step_seconds)
    measured.append(statistics.median(real_step.start(cfg, target.devices).seconds(FLAGS.steps)))
    print(f"{predicted[-1]:>8.2f} s{measured[-1]:>8.2f} s  {meshes.describe(plan.mesh)}", flush=True)
  print(f"Spearman's rank correlation of {len(MESHES)} meshes: {scipy.stats.spearmanr(predicted, measured).statistic:.2f}")
  return 0


if __name__ == "__main__":
  command(main)
