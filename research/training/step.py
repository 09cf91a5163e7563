"""The training step: corrupt, differentiate, update; a pure function that the loop compiles once.

The global batch is corrupted once. Each loss term is divided by its weight over the whole batch, so the gradient of a batch does not
depend on how it is cut into microbatches or spread over devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from research.core.trees import named_leaves
from research.core.types import Array, Batch, Mean, PyTree, TrainState
from research.objectives.base import Example, Objective, corrupted

Metrics = dict[str, Any]


def make_train_step(apply: Callable, objective: Objective, optimizer: optax.GradientTransformationExtraArgs, microbatches: int):
  """(state, batch) -> (state, metrics): one update.

  Metrics are device arrays: Means of the loss terms and of the objective's own metrics, `loss` (Σ factor · mean), `gradient_norm` in all
  and by top-level group of parameters.
  """

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    corrupt_key, dropout_key = jax.random.split(state.key)
    example = corrupted(objective, corrupt_key, batch, state.step)
    denominators = objective.weights(example)
    dropout_key = jax.random.fold_in(dropout_key, state.step)

    def loss(params: PyTree, example: Example, key: Array) -> tuple[Array, tuple[dict[str, Mean], dict[str, Mean]]]:
      terms, metrics = objective.loss(apply, params, example, key, True)
      scale = {term: objective.factors[term] / jnp.maximum(denominators[term], 1e-9) for term in terms}
      return sum(terms[term].total * scale[term] for term in terms), (terms, metrics)

    gradient = jax.value_and_grad(loss, has_aux=True)
    if microbatches == 1:
      (value, sums), grads = gradient(state.params, example, dropout_key)
    else:
      # Microbatch m takes rows m, m + n, m + 2n, …: each device keeps the rows that it has.
      parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), example)
      keys = jax.random.split(dropout_key, microbatches)
      shapes = jax.eval_shape(gradient, state.params, jax.tree.map(lambda x: x[0], parts), keys[0])
      zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
      add = lambda total, part: (jax.tree.map(jnp.add, total, gradient(state.params, *part)), None)
      ((value, sums), grads), _ = jax.lax.scan(add, zeros, (parts, keys))

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, loss=value)
    params = optax.apply_updates(state.params, updates)
    terms, metrics = sums
    metrics = {"loss": value, **{f"loss_{term}": mean for term, mean in terms.items() if len(terms) > 1}, **metrics}
    metrics |= gradient_norms(grads)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  return train_step


def gradient_norms(grads: PyTree) -> dict[str, Array]:
  """`gradient_norm`, and `gradient_norm/<group>` for each top-level group (each block apart)."""
  squares: dict[str, Array] = {}
  for name, leaf in named_leaves(grads):
    parts = name.split("/")
    group = parts[1] if parts[0] in ("stack", "encoder") else parts[0]
    group = f"encoder_{group}" if parts[0] == "encoder" else group
    squares[group] = squares.get(group, 0.0) + jnp.sum(jnp.square(leaf.astype(jnp.promote_types(jnp.float32, leaf.dtype))))
  norms = {f"gradient_norm/{group}": jnp.sqrt(square) for group, square in squares.items()}
  return {"gradient_norm": jnp.sqrt(sum(squares.values())), **norms}
