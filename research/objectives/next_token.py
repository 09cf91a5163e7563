"""What the objectives share that predict each token from those before it: the loss with its regularizers, and the log-probability of a text."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from research.core.types import Array, Mean, Metrics
from research.model.inputs import HeadConfig
from research.objectives.base import Example, token_metrics
from research.objectives.cross_entropy import token_loss

TERM = "lm"  # the name of the term, and of its head


@dataclasses.dataclass(frozen=True)
class NextToken:
  """Keys of such an objective."""

  head_bias: bool = False  # a bias for each vocabulary entry
  z_loss: float = 0.0  # factor of log² Z (Chowdhery et al. 2022, PaLM, section 5: 1e-4); in training only
  label_smoothing: float = 0.0  # share of each target that is spread over the vocabulary (Szegedy et al. 2016, section 7); in training only

  def __post_init__(self):
    if self.z_loss < 0:
      raise ValueError(f"z_loss must be at least 0; got {self.z_loss}")
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(f"label_smoothing must lie in [0, 1); got {self.label_smoothing}")

  @property
  def heads(self) -> dict[str, HeadConfig]:
    return {TERM: HeadConfig(bias=self.head_bias)}

  def loss(self, apply, params, example: Example, key, train: bool, byte_length: Array) -> tuple[dict[str, Mean], Metrics]:
    output = apply(params, example.inputs, read={TERM: None}, key=key, train=train)
    targets, weights = example.targets[TERM], example.weights[TERM]
    more = dict(z_loss=self.z_loss, label_smoothing=self.label_smoothing) if train else {}
    total, nll, correct = token_loss(output.heads[TERM], targets, weights, **more)
    metrics = token_metrics(nll, correct, targets, weights, byte_length)
    if any(more.values()):  # the loss is then no likelihood
      metrics["nll"] = Mean.of(nll, weights)
    return {TERM: Mean(total, jnp.sum(weights))}, metrics


def logprob(apply, params, example: Example) -> Array:
  """Of the targets of each row, [B]."""
  output = apply(params, example.inputs, read={TERM: None})
  _, nll, _ = token_loss(output.heads[TERM], example.targets[TERM], example.weights[TERM])
  return -jnp.sum(nll * example.weights[TERM], axis=-1)
