"""This package's side: the model, objective, optimizer and step that its own training loop runs.

  python -m benchmarks.workers.ours train SHAPE
  python -m benchmarks.workers.ours decode SHAPE
"""

from __future__ import annotations

from benchmarks.workers import channel

if __name__ == "__main__":
  channel.own_stdout()

import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shapes import SHAPES, Shape
from research.core import trees
from research.core.types import Batch, TrainState, Vocab
from research.decode import sample
from research.model import transformer
from research.model.attention import grouped
from research.model.ffn import dense
from research.model.position import learned
from research.objectives import causal_lm, masked_lm
from research.objectives.base import Objective
from research.optim import optimizer
from research.training.step import make_train_step


def objective_of(shape: Shape) -> Objective:
  special = {"pad": 0, "mask": 1}
  vocab = Vocab(shape.vocab, special, np.zeros(shape.vocab, bool), np.ones(shape.vocab, np.int32))
  if shape.kind == "decoder":
    return causal_lm.make(causal_lm.Config(), vocab, shape.length)
  return masked_lm.make(masked_lm.Config(mask_rate=shape.mask_rate), vocab, shape.length)


def model_of(shape: Shape, objective: Objective) -> transformer.Transformer:
  bert = shape.kind == "masked_lm"
  cfg = transformer.Config(
      layers=shape.layers, width=shape.width, attention=grouped.Config(heads=shape.heads, bias=True),
      ffn=dense.Config(activation="gelu" if bert else "gelu_tanh", bias=True), position=learned.Config(),
      norm="layer", norm_place="post" if bert else "pre", norm_bias=True, embed_norm=bert, token_types=2 if bert else 0,
  )  # fmt: skip
  return transformer.make(cfg, shape.vocab, objective.heads, shape.length)


def train(shape: Shape) -> None:
  objective = objective_of(shape)
  model = model_of(shape, objective)
  updates = optimizer.make(optimizer.Config(clip=None, weight_decay=0.1), steps=10_000)

  @jax.jit
  def initial(key):
    params = nn.unbox(transformer.init(model, key))
    return TrainState(jnp.zeros((), jnp.int32), params, {}, updates.init(params), key)

  state = initial(jax.random.key(0))
  step = jax.jit(make_train_step(transformer.bind(model), objective, updates, 1), donate_argnums=0)
  rng = np.random.default_rng(0)

  def run(count: int) -> list[float]:
    """Seconds of each of `count` steps, from a batch on the host to its loss on the host."""
    nonlocal state
    times = []
    for _ in range(count):
      rows = {name: np.ones((shape.batch, *field.shape), field.dtype) for name, field in objective.element_spec.items()}
      rows["tokens"] = rng.integers(2, shape.vocab, rows["tokens"].shape, np.int32)
      index = np.stack([np.zeros(shape.batch), rng.integers(0, 1 << 31, shape.batch)], 1).astype(np.uint32)
      batch = Batch(rows, index, np.ones(shape.batch, bool))
      start = time.perf_counter()
      state, metrics = step(state, batch)
      if not np.isfinite(float(metrics["loss"])):
        raise FloatingPointError("the loss is not finite")
      times.append(time.perf_counter() - start)
    return times

  started = {"parameters": trees.size(state.params), "first_step": run(1)[0]}
  channel.serve(started, lambda steps: {"seconds": run(1 + steps)[1:]})  # the first after the sleep is slower


def decode(shape: Shape) -> None:
  model = model_of(shape, objective_of(shape))
  params = jax.jit(lambda key: nn.unbox(transformer.init(model, key)))(jax.random.key(0))
  generator = sample.Generator(model, params)
  rng = np.random.default_rng(0)

  def turn(calls: int, batch: int, prompt: int, limit: int):
    times = []
    for _ in range(calls):
      prompts = list(rng.integers(2, shape.vocab, (batch, prompt), np.int32))
      start = time.perf_counter()
      tokens = generator(prompts, sample.Config(temperature=0.0), limit, jax.random.key(0))
      times.append(time.perf_counter() - start)
    return {"seconds": times, "tokens": list(tokens.shape)}

  channel.serve({"parameters": trees.size(params)}, turn)


if __name__ == "__main__":
  {"train": train, "decode": decode}[sys.argv[1]](SHAPES[sys.argv[2]])
