"""What a training step of each objective costs, relative to causal language modelling with the same model and rows.

  python -m benchmarks.objectives [--rounds=8 --steps=3]

CPU, float32, AdamW. One process; the objectives take turns, so that slow drifts of the machine meet all alike. Beside the time stands the ratio
of the matrix products by hand, from the sizes alone (`expected`), and that of the operations counted in the compiled step's jaxpr.
"""

from __future__ import annotations

from research.core import startup

if __name__ == "__main__":
  startup.prepare()

import statistics
import time

from absl import flags

from benchmarks import compare
from research.core.errors import command
from research.core.flags import parse

FLAGS = flags.FlagValues()
flags.DEFINE_integer("rounds", 8, "turns of each objective", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("steps", 3, "steps of a turn", lower_bound=1, flag_values=FLAGS)

LAYERS, WIDTH, HEADS, VOCAB, LENGTH, BATCH = 4, 256, 4, 8192, 128, 32
OBJECTIVES = {  # name -> component, its keys
    "causal LM": ("causal_lm", {}),
    "prefix LM": ("causal_lm", {"prefix": True}),
    "masked LM": ("masked_lm", {}),
    "masked LM + next sentence": ("next_sentence", {}),
    "permutation LM, K = 6": ("permutation_lm", {}),
    "permutation LM, all": ("permutation_lm", {"predict": 1}),
    "contrastive, two views": ("contrastive", {}),
}
BAR = 0.15  # how far the time's ratio may lie from the expected one


def products(queries: int, keys: int) -> int:
  """Multiplications of a block: `queries` places that are computed, of `keys` that are seen."""
  attention = 2 * (queries + keys) * WIDTH**2 + 2 * queries * keys * WIDTH
  return attention + 8 * queries * WIDTH**2


def expected(name: str) -> float:
  """Multiplications of a row's forward pass: blocks and heads; the last block computes only what is read."""
  scored = {"masked_lm": round(0.15 * LENGTH), "next_sentence": round(0.15 * LENGTH), "permutation_lm": max(1, round(LENGTH / 6))}
  component, keys = OBJECTIVES[name]
  P, L = scored.get(component, LENGTH), LENGTH
  if keys.get("predict") == 1:
    P = L
  token_head = lambda places, transform: places * (VOCAB * WIDTH + transform * WIDTH**2)
  if component == "causal_lm":
    return LAYERS * products(L, L) + token_head(L, False)
  if component == "masked_lm":
    return (LAYERS - 1) * products(L, L) + products(P, L) + token_head(P, True)
  if component == "next_sentence":
    return (LAYERS - 1) * products(L, L) + products(P + 1, L) + token_head(P, True) + WIDTH**2
  if component == "permutation_lm":
    return (LAYERS - 1) * products(L + P, L) + products(P, L) + token_head(P, False)
  return 2 * LAYERS * products(L, L)


def contestants():
  """Name -> (a function that makes a step, operations of one)."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  import numpy as np

  from research.core import config as configs
  from research.core import flops
  from research.core.types import Batch, TrainState, Vocab
  from research.model import transformer
  from research.model.attention import grouped
  from research.optim import optimizer
  from research.training.step import make_train_step

  special = {"pad": 0, "cls": 1, "sep": 2, "mask": 3}
  vocab = Vocab(VOCAB, special, np.arange(VOCAB) % 3 == 0, (np.arange(VOCAB) > 3).astype(np.int32))
  updates = optimizer.make(optimizer.Config(clip=None), steps=10_000)

  def one(component, keys):
    objective = configs.make(configs.typed(configs.use(f"objectives.{component}", **keys)), vocab, LENGTH)
    types = 2 * ("types" in objective.element_spec)
    cfg = transformer.Config(layers=LAYERS, width=WIDTH, attention=grouped.Config(heads=HEADS), queries=component == "permutation_lm", token_types=types)
    model = transformer.make(cfg, VOCAB, objective.heads, LENGTH)

    @jax.jit
    def initial(key):
      params = nn.unbox(transformer.init(model, key))
      return TrainState(jnp.zeros((), jnp.int32), params, {}, updates.init(params), key)

    state, rng = initial(jax.random.key(0)), np.random.default_rng(0)

    def batch():
      rows = {name: np.ones((BATCH, *field.shape), field.dtype) for name, field in objective.element_spec.items()}
      rows["tokens"] = rng.integers(len(special), VOCAB, rows["tokens"].shape, np.int32)
      index = np.stack([np.zeros(BATCH), rng.integers(0, 1 << 31, BATCH)], 1).astype(np.uint32)
      return Batch(rows, index, np.ones(BATCH, bool))

    step = jax.jit(make_train_step(transformer.bind(model), objective, updates, 1), donate_argnums=0)
    counted = flops.count_jaxpr(step.trace(state, batch()).jaxpr).total

    def run() -> float:
      nonlocal state
      rows, start = batch(), time.perf_counter()
      state, metrics = step(state, rows)
      if not np.isfinite(float(metrics["loss"])):
        raise FloatingPointError("the loss is not finite")
      return time.perf_counter() - start

    run()
    return run, counted

  return {name: one(*described) for name, described in OBJECTIVES.items()}


def main(arguments: list[str]) -> None:
  parse(arguments, FLAGS, __doc__)
  print(compare.machine(), flush=True)
  runs = contestants()
  seconds = {name: [] for name in runs}
  for _ in range(FLAGS.rounds):
    for name, (run, _) in runs.items():
      run()  # the first after another's turn finds cold caches
      seconds[name] += [run() for _ in range(FLAGS.steps)]
  base = "causal LM"
  median = {name: statistics.median(times) for name, times in seconds.items()}
  rows = []
  for name, (_, counted) in runs.items():
    wanted, ratio = expected(name) / expected(base), median[name] / median[base]
    least = min(seconds[name]) / min(seconds[base])
    rows.append((name, f"{1e3 * median[name]:.0f}", f"{ratio:.2f}", f"{least:.2f}", f"{counted / runs[base][1]:.2f}", f"{wanted:.2f}",
                 f"{ratio / wanted - 1:+.0%}"))  # fmt: skip
  print(f"{LAYERS} layers, width {WIDTH}, {HEADS} heads, vocabulary {VOCAB:,}, {BATCH} rows of {LENGTH} tokens; {FLAGS.rounds * FLAGS.steps} steps each")
  print(compare.table(("objective", "median ms", "time", "time, minima", "operations", "expected", f"time against expected (bar ±{BAR:.0%})"), rows))


if __name__ == "__main__":
  command(main)
