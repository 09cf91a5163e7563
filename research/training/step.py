"""The training step: corrupt, differentiate, update; a pure function that the loop compiles once.

The global batch is corrupted once. Each loss term is divided by its weight over the whole batch, so the gradient of a batch does not
depend on how it is cut into microbatches or spread over devices.

Where a row's loss depends on the other rows (`whole_batch`), the loss is not cut: it sees the whole batch, and the forward pass below it
runs over microbatches, each computed again in the backward pass. That is GradCache (Gao et al. 2021, "Scaling deep contrastive learning
batch size under memory limited setup"): the memory is that of a microbatch, the gradient that of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from research.core.trees import named_leaves
from research.core.types import Array, Batch, Mean, PyTree, TrainState
from research.model.inputs import Aux, Output
from research.objectives.base import Example, Objective, batch_metrics, corrupted

Metrics = dict[str, Any]


def make_train_step(apply: Callable, objective: Objective, optimizer: optax.GradientTransformationExtraArgs, microbatches: int):
  """(state, batch) -> (state, metrics): one update.

  Metrics are device arrays: Means of the loss terms, of the objective's own metrics and of the model's own losses, `loss` (Σ factor · mean, the
  model's among them), `targets` and `padding` of the batch, `gradient_norm` in all and by top-level group of parameters.
  """

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    corrupt_key, dropout_key = jax.random.split(state.key)
    example = corrupted(objective, corrupt_key, batch, state.step)
    denominators = objective.weights(example)
    dropout_key = jax.random.fold_in(dropout_key, state.step)

    cached = objective.whole_batch and microbatches > 1
    forward, parts = (in_microbatches(apply, microbatches), 1) if cached else (apply, microbatches)

    def loss(params: PyTree, example: Example, key: Array) -> tuple[Array, dict[str, Mean]]:
      read = []  # what the model's calls give of its own; an objective makes them in its own trace, not inside a loop of JAX

      def noted(*args: Any, **kwargs: Any) -> Output:
        output = forward(*args, **kwargs)
        read.append(output.aux)
        return output

      terms, metrics = objective.loss(noted, params, example, key, True)
      scale = {term: objective.factors[term] / jnp.maximum(denominators[term], 1e-9) for term in terms}
      own, own_means = own_losses(read, parts)
      if len(terms) > 1 or own_means:
        metrics = {**{f"loss_{term}": mean for term, mean in terms.items()}, **metrics, **own_means}
      return sum((terms[term].total * scale[term] for term in terms), own), metrics

    gradient = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
      (value, metrics), grads = gradient(state.params, example, dropout_key)
    else:
      cut = _cut(example, parts)
      keys = jax.random.split(dropout_key, parts)
      shapes = jax.eval_shape(gradient, state.params, jax.tree.map(lambda x: x[0], cut), keys[0])
      zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
      add = lambda total, part: (jax.tree.map(jnp.add, total, gradient(state.params, *part)), None)
      ((value, metrics), grads), _ = jax.lax.scan(add, zeros, (cut, keys))

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, loss=value)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": value, **metrics, **batch_metrics(example, denominators), **gradient_norms(grads)}
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  return train_step


def own_losses(read: Sequence[Mapping[str, Aux]], parts: int) -> tuple[Array | float, dict[str, Mean]]:
  """The model's own losses in all its calls on one of `parts` equal parts of a batch: what they add to the loss, and each as a Mean over rows."""
  loss, means = 0.0, {}
  for name in {name: None for aux in read for name in aux}:
    found = [aux[name] for aux in read if name in aux]
    rows = sum(len(each.values) for each in found)
    total = sum(jnp.sum(each.values) for each in found)
    loss += found[0].factor * total / (rows * parts)
    means[name] = Mean(total, jnp.asarray(rows, total.dtype))
  return loss, means


def _cut(rows: PyTree, microbatches: int) -> PyTree:
  """[B, …] -> [microbatches, B / microbatches, …]; microbatch m takes rows m, m + n, m + 2n, …: each device keeps the rows that it has."""
  return jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), rows)


def in_microbatches(apply: Callable, microbatches: int) -> Callable:
  """`apply` for a whole batch that holds the activations of one microbatch at a time; the backward pass computes them again.

  What the model gives for each row comes back for the whole batch, in the order of its rows; what is the same for all rows (a scale, a
  kernel) comes back once. Every microbatch draws a dropout of its own, the same in both passes.
  """

  def whole(params: PyTree, inputs: Any, *, read: Any, key: Array | None = None, **rest: Any) -> Any:
    if inputs is None:  # heads that read nothing
      return apply(params, inputs, read=read, key=key, **rest)

    def one(params: PyTree, part: tuple[Any, Any], key: Array | None) -> Any:
      return apply(params, part[0], read=part[1], key=key, **rest)

    parts = _cut((inputs, read), microbatches)
    keys = None if key is None else jax.random.split(key, microbatches)
    first = jax.tree.map(lambda x: x[0], parts)
    rowwise = jax.tree.map(lambda a, b: a.shape != b.shape, jax.eval_shape(one, params, (inputs, read), key), jax.eval_shape(one, params, first, key))
    again = jax.checkpoint(one, prevent_cse=False)  # inside a loop nothing can be merged
    outputs = jax.lax.map(lambda part: again(params, *part), (parts, keys))
    gathered = lambda x, rows: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]) if rows else x[0]
    return jax.tree.map(gathered, outputs, rowwise)

  return whole


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
