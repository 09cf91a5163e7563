"""What an objective is: a value, made of pure functions. Model, data and loop do not know which one runs.

The host delivers rows (`element_spec`). Inside the jitted step `corrupt` turns ONE row into an Example, keyed by the row's place in the
stream, so that masks are fresh every epoch and the same for any batch size, mesh, accumulation or restart. `weights` tells the
denominator of each loss term before the model has run; `loss` returns each term's sum with that same weight, so sums over
microbatches and devices average rightly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.core.types import Array, Batch, Field, Mean, Metrics
from research.model.inputs import HeadConfig, Inputs
from research.model.layers import constrain, parts

ROW_AXES = ("length",)
SEGMENTS_MEANING = "0 where the row is padded, 1, 2, … for the documents packed into it"


class Example(NamedTuple):
  """One corrupted row; vmapped over the batch every array gains the leading axis B."""

  inputs: Inputs
  targets: Mapping[str, Array]  # term -> what is to be predicted, e.g. int32 [P]
  weights: Mapping[str, Array]  # term -> weight of each target, float32 [P]; 0 where there is none
  positions: Mapping[str, Array]  # term -> places of the targets in the row, int32 [P]; absent: every place
  counts: Mapping[str, Array] = {}  # numbers of this row that metrics alone read


class Objective(NamedTuple):
  element_spec: Mapping[str, Field]  # arrays of one row that the host delivers
  heads: Mapping[str, HeadConfig]  # the heads that it reads; the model is built with exactly these
  corrupt: Callable[[Array, Mapping[str, Array], Array], Example]  # (key, row, step) -> Example, for one row
  loss: Callable[..., tuple[dict[str, Mean], Metrics]]  # (apply, params, Example, key, train) -> terms, metrics
  factors: Mapping[str, float]  # term -> its factor in the sum that is differentiated
  weights: Callable[[Example], dict[str, Array]] = lambda example: total_weights(example)  # (Example) -> denominator of each term
  predict: Callable[..., dict[str, Array]] | None = None  # (apply, params, Example) -> answers, for tasks
  logprob: Callable[..., Array] | None = None  # (apply, params, rows, key) -> log-probability of each row's text
  scored: Callable[..., tuple[Array, Array]] | None = None  # (rows) -> tokens that logprob counts and their weights, [B, P]; None: the targets of corrupt
  pseudo: bool = False  # logprob is a pseudo-log-likelihood: each token given tokens after it too, so it is no code length
  causal: bool = False  # it trains left-to-right prediction, so its model can generate
  prefix: bool = False  # what it goes on from is read in both directions (prefix LM)
  whole_batch: bool = False  # a row's loss depends on the other rows (in-batch negatives)
  classes: int | None = None  # classes of its labels or tags, which the data must have; None: it has none
  partners: bool = False  # predict gives two vectors of each row, which belong together
  start: int | None = None  # the token that the decoder of an encoder–decoder reads first


def join(first: Objective, *others: Objective, factors: Mapping[str, float]) -> Objective:
  """Objectives of the same rows in one forward pass: one value, whose terms keep their own denominators and are weighed by `factors`.

  `first` corrupts the row and tells a text's log-probability. What its inputs leave out (token types) is taken from the others, whose targets
  and heads come along; their places must be those of the uncorrupted row. Each part calls `apply` once, with its Example's inputs, and reads
  every head at the `positions` of the head's own name, or nowhere in particular where there are none.
  """
  parts = (first, *others)
  heads = {name: head for part in parts for name, head in part.heads.items()}

  def corrupt(key, row, step) -> Example:
    found = [part.corrupt(key if i == 0 else jax.random.fold_in(key, i), row, step) for i, part in enumerate(parts)]
    inputs = found[0].inputs
    for other in found[1:]:
      left_out = {name: value for name, value in vars(other.inputs).items() if value is not None and getattr(inputs, name) is None}
      inputs = inputs.replace(**left_out)
    merged = lambda of: {term: value for example in found for term, value in getattr(example, of).items()}
    return found[0]._replace(inputs=inputs, targets=merged("targets"), weights=merged("weights"), positions=merged("positions"))

  def loss(apply, params, example, key, train):
    read = {name: example.positions.get(name) for name in heads}
    output = apply(params, example.inputs, read=read, key=key, train=train)
    terms, metrics = {}, {}
    for part in parts:
      its_terms, its_metrics = part.loss(lambda *args, **kwargs: output, params, example, key, train)
      terms, metrics = {**terms, **its_terms}, {**metrics, **its_metrics}
    return terms, metrics

  return first._replace(
      element_spec={name: field for part in parts for name, field in part.element_spec.items()},
      heads=heads,
      corrupt=corrupt,
      loss=loss,
      factors={term: factors[term] for part in parts for term in part.factors},
  )


def total_weights(example: Example) -> dict[str, Array]:
  """The sum of the weights of each term: the denominator of a mean over targets."""
  return {term: jnp.sum(weights) for term, weights in example.weights.items()}


def token_metrics(nll: Array, correct: Array, targets: Array, weights: Array, byte_length: Array) -> dict[str, Mean]:
  """Accuracy, and bits per UTF-8 byte of the targets' text, for arrays [B, P]."""
  bits = nll / jnp.log(2.0)
  size = jnp.take(byte_length, targets).astype(jnp.float32) * (weights > 0)
  return {
      "accuracy": Mean.of(correct, weights),
      "bits_per_byte": Mean(jnp.sum(bits * weights), jnp.sum(size)),
  }


def batch_metrics(example: Example, denominators: Mapping[str, Array]) -> dict[str, Array]:
  """What a person should know of a batch: its targets, in all, and the share of the places of text that is padding."""
  metrics = {"targets": sum(denominators.values())}
  if example.inputs.segments is not None:
    metrics["padding"] = jnp.mean(example.inputs.segments == 0, dtype=jnp.float32)
  return metrics


def class_loss(scores: Array, targets: Array, weights: Array) -> tuple[Array, Array, Array]:
  """Cross-entropy over a few classes, whose scores are all there: scores [B, P, C], targets int32 [B, P] in [0, C), weights float32 [B, P].

  Returns:
    Σ weights · −log p(target) in nats [], −log p(target) [B, P], and whether the target has the largest score, bool [B, P].
  """
  nll = -jnp.take_along_axis(jax.nn.log_softmax(scores), targets[..., None], axis=-1)[..., 0]
  return jnp.sum(nll * weights), nll, jnp.argmax(scores, axis=-1) == targets


def squared_error(found: Array, targets: Array, weights: Array) -> tuple[Mean, Metrics]:
  """Regression: the squared error as a loss term, the absolute one as a metric; float32 [B, P] each."""
  error = found - targets
  return Mean.of(jnp.square(error), weights), {"absolute_error": Mean.of(jnp.abs(error), weights)}


def choose(key: Array, candidates: Array, count: Array, slots: int) -> tuple[Array, Array]:
  """Draws `count` of the places where `candidates` is True, uniformly and without replacement.

  Args:
    candidates: bool [L].
    count: int [], at most `slots`.
    slots: static number of places returned, P.

  Returns:
    places int32 [P], ascending where they are chosen, and chosen bool [P], True for the first min(count, Σ candidates).
  """
  scores = jnp.where(candidates, jax.random.uniform(key, candidates.shape), -1.0)
  values, places = jax.lax.top_k(scores, slots)
  chosen = (jnp.arange(slots) < count) & (values >= 0)
  places = jnp.sort(jnp.where(chosen, places, candidates.shape[0]))
  chosen = places < candidates.shape[0]
  return jnp.where(chosen, places, 0).astype(jnp.int32), chosen


def row_keys(key: Array, index: Array) -> Array:
  """One key for each row: key [], uint32 [B, 2] high and low words of the row's index -> keys [B]."""
  return jax.vmap(lambda words: jax.random.fold_in(jax.random.fold_in(key, words[0]), words[1]))(index)


def corrupted(objective: Objective, key: Array, batch: Batch, step: Array) -> Example:
  """The batch's rows as the objective trains on them; rows that only pad a batch weigh nothing."""
  example = jax.vmap(objective.corrupt, in_axes=(0, 0, None))(row_keys(key, batch.index), batch.rows, step)
  weigh = lambda weights: weights * batch.valid.reshape(-1, *[1] * (weights.ndim - 1))
  example = example._replace(weights={term: weigh(weights) for term, weights in example.weights.items()})
  if parts("length") == 1:
    return example
  # Corruption works on whole rows, of places that a mesh need not divide; the model spreads them.
  return jax.tree.map(lambda x: constrain(x, "batch", *[None] * (x.ndim - 1)), example)


def tokens_of_row(objective: Objective, length: int) -> int:
  """Tokens of text that the host delivers with a row of `length`, padding included; 0 where it is an image alone."""
  spec = objective.element_spec
  texts = math.prod(spec["tokens"].shape[:-1]) * length if "tokens" in spec else 0
  return texts + (spec["source"].shape[-1] if "source" in spec else 0)


def finish(objective: Objective, sums: Mapping[str, Mean]) -> dict[str, float]:
  """Sums over a split as numbers: every Mean divided, and `loss` = Σ factor · mean over the terms `loss_<term>`."""
  values = {name: float(mean.value()) for name, mean in sums.items()}
  loss = sum(factor * values[f"loss_{term}"] for term, factor in objective.factors.items())
  if len(objective.factors) == 1:
    values.pop(f"loss_{next(iter(objective.factors))}")
  return {"loss": loss, **values}
