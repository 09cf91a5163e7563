"""What recomputation and precision cost and save: temporary memory and time of a training step for each `model.remat` and `model.dtype`.

  python -m benchmarks.remat [--rounds=3 --steps=3 --scan]

The decoder of benchmarks/shapes.py with a vocabulary of 96, rows of 256 tokens, AdamW. Memory is what the compiled step needs beside its arguments
(compiled.memory_analysis().temp_size_in_bytes). One process; the contestants take turns. Both are of the device at hand.
"""

from __future__ import annotations

from research.core import startup

if __name__ == "__main__":
  startup.prepare()

import dataclasses
import itertools
import statistics
import time
import typing

from absl import flags

from benchmarks import compare
from benchmarks.shapes import SHAPES
from research.core.errors import command
from research.core.flags import parse

FLAGS = flags.FlagValues()
flags.DEFINE_integer("rounds", 3, "turns of each contestant", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("steps", 3, "steps of a turn", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_boolean("scan", False, "one compiled block, run over stacked parameters", flag_values=FLAGS)

SHAPE = dataclasses.replace(SHAPES["decoder_96"], batch=4)
DTYPES = ("float32", "bfloat16")


def contestant(remat: str, dtype: str):
  """(a function that makes a step and returns its seconds, bytes of temporary memory)."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  import numpy as np

  from research.core import config as configs
  from research.core.types import Batch, TrainState, Vocab
  from research.model import transformer
  from research.model.attention import grouped
  from research.objectives import causal_lm
  from research.optim import optimizer
  from research.training.step import make_train_step

  vocab = Vocab(SHAPE.vocab, {"pad": 0}, np.zeros(SHAPE.vocab, bool), np.ones(SHAPE.vocab, np.int32))
  objective = configs.make(causal_lm.Config(), vocab, SHAPE.length)
  cfg = transformer.Config(layers=SHAPE.layers, width=SHAPE.width, attention=grouped.Config(heads=SHAPE.heads), remat=remat, dtype=dtype, scan=FLAGS.scan)
  model = transformer.make(cfg, SHAPE.vocab, objective.heads, SHAPE.length)
  updates = optimizer.make(optimizer.Config(clip=None), steps=10_000)

  @jax.jit
  def initial(key):
    params = nn.unbox(transformer.init(model, key))
    return TrainState(jnp.zeros((), jnp.int32), params, {}, updates.init(params), key)

  state, rng = initial(jax.random.key(0)), np.random.default_rng(0)
  tokens = rng.integers(1, SHAPE.vocab, (SHAPE.batch, SHAPE.length + 1), np.int32)
  rows = {"tokens": tokens, "segments": np.ones_like(tokens)}
  batch = Batch(rows, np.zeros((SHAPE.batch, 2), np.uint32), np.ones(SHAPE.batch, bool))
  step = jax.jit(make_train_step(transformer.bind(model), objective, updates, 1), donate_argnums=0).lower(state, batch).compile()

  def run() -> float:
    nonlocal state
    start = time.perf_counter()
    state, metrics = step(state, batch)
    if not np.isfinite(float(metrics["loss"])):
      raise FloatingPointError("the loss is not finite")
    return time.perf_counter() - start

  return run, step.memory_analysis().temp_size_in_bytes


def main(arguments: list[str]) -> None:
  parse(arguments, FLAGS, __doc__)
  from research.model import transformer

  policies = typing.get_args(typing.get_type_hints(transformer.Config)["remat"])
  print(compare.machine(), flush=True)
  runs = {(remat, dtype): contestant(remat, dtype) for dtype, remat in itertools.product(DTYPES, policies)}
  seconds = {name: [] for name in runs}
  for _ in range(FLAGS.rounds):
    for name, (run, _) in runs.items():
      run()  # the first after another's turn finds cold caches
      seconds[name] += [run() for _ in range(FLAGS.steps)]
  base = policies[0], DTYPES[0]
  rows = []
  for name, (_, temporary) in runs.items():
    median = statistics.median(seconds[name])
    rows.append((*name, f"{temporary / 1e6:.0f}", f"{temporary / runs[base][1]:.2f}", f"{1e3 * median:.0f}", f"{median / statistics.median(seconds[base]):.2f}"))
  print(f"{SHAPE.layers} layers, width {SHAPE.width}, {SHAPE.heads} heads, vocabulary {SHAPE.vocab}, {SHAPE.batch} rows of {SHAPE.length} tokens, layers {'scanned' if FLAGS.scan else 'unrolled'}; "
        f"{FLAGS.rounds * FLAGS.steps} steps each")  # fmt: skip
  print(compare.table(("remat", "dtype", "temporary MB", "ratio", "median ms", "ratio"), rows))


if __name__ == "__main__":
  command(main)
