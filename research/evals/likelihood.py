"""Likelihood of held-out text: loss, perplexity and bits per byte, each token of the text predicted once.

Where an objective scores each token given later ones too, it is a pseudo-likelihood (Salazar et al. 2020), which no likelihood compares
with: the scores are then called `pseudo_loss` and `pseudo_perplexity`, and there are no bits per byte. The interval is a bootstrap over rows.
"""

from __future__ import annotations

import functools
import math

import jax
import numpy as np

from research.core.errors import UserError
from research.core.types import Array, PyTree, Vocab
from research.data import stream
from research.evals import bootstrap
from research.objectives.base import Objective


class Config(bootstrap.Settings):
  """As there."""


def make(cfg: Config, objective: Objective, vocab: Vocab):
  """(apply, params, rows) -> {name: {'value', 'low', 'high'}}.

  Raises:
    UserError: the objective defines no likelihood.
  """
  if objective.logprob is None:
    raise UserError("this objective defines no likelihood of a text: score it with --evals=loss.")

  def evaluate(apply, params: PyTree, rows: stream.Rows) -> dict[str, dict[str, float]]:
    score = jax.jit(functools.partial(_score, apply, objective, jax.numpy.asarray(vocab.byte_length)))
    parts = []
    for k in range(-(-len(rows) // cfg.batch_size)):
      batch = stream.batch(rows, k, cfg.batch_size)
      parts.append(np.stack(jax.device_get(score(params, batch.rows)))[:, batch.valid])
    nll, tokens, size = np.concatenate(parts, axis=1).astype(np.float64)
    scores = summarize(nll, tokens, size, cfg.resamples)
    return {f"pseudo_{name}": scores[name] for name in ("loss", "perplexity")} if objective.pseudo else scores

  return evaluate


def _score(apply, objective: Objective, byte_length: Array, params: PyTree, rows) -> tuple[Array, Array, Array]:
  """Nats, predicted tokens and their bytes of each row, [B] each."""
  if objective.scored is not None:
    targets, weights = objective.scored(rows)
  else:
    example = jax.vmap(lambda row: objective.corrupt(jax.random.key(0), row, 0))(rows)
    (weights,), (targets,) = example.weights.values(), example.targets.values()
  size = jax.numpy.sum(jax.numpy.take(byte_length, targets) * weights, axis=-1)
  return -objective.logprob(apply, params, rows, jax.random.key(0)), jax.numpy.sum(weights, axis=-1), size


def summarize(nll: np.ndarray, tokens: np.ndarray, size: np.ndarray, resamples: int) -> dict[str, dict[str, float]]:
  """Per-row nats, tokens and bytes [rows] -> the three scores with their intervals."""
  draws = bootstrap.draws(len(nll), resamples)
  ratio = lambda below: (nll.sum() / below.sum(), nll[draws].sum(1) / below[draws].sum(1))
  loss, losses = ratio(tokens)
  scores = {"loss": (loss, losses), "perplexity": (math.exp(min(loss, 700)), np.exp(np.minimum(losses, 700)))}
  if size.sum() > 0:
    bits, many = ratio(size * math.log(2))
    scores["bits_per_byte"] = (bits, many)
  return {name: bootstrap.entry(value, many) for name, (value, many) in scores.items()}
