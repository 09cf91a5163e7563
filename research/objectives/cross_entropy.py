"""Cross-entropy over a vocabulary without all logits at once, with gradients taken in the forward pass.

The rows' places are cut into chunks; for each chunk the logits are made, reduced to the loss and, when a gradient will be wanted, turned
at once into the gradients of hidden states and kernel. Logits are thus computed once, neither stored nor recomputed; a third less memory
than the plain form, in the same time. The cut is along the places of a row, so a batch sharded over devices stays where it is.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.core.types import Array
from research.model.inputs import Projection
from research.model.layers import constrain

CHUNK = 1 << 22  # logits of one row that are alive at a time (16 MiB a row in float32); fewer chunks add to the gradient of the kernel less often


class TokenLoss(NamedTuple):
  total: Array  # [] Σ weights · nll; the only output with a gradient
  nll: Array  # [B, P] −log p(target), nats
  correct: Array  # bool [B, P]: the target has the largest score


def token_loss(scores: Projection, targets: Array, weights: Array) -> TokenLoss:
  """Σ weights · (logsumexp(logits) − logits[target]).

  Args:
    scores: hidden [B, P, D], kernel [V, D], bias [V] or None.
    targets: int32 [B, P].
    weights: float [B, P].

  Returns:
    The total in at least float32, and the parts that metrics need, without gradient.
  """
  B, P, D = scores.hidden.shape
  V = scores.kernel.shape[0]
  chunks = _chunks(P, V)
  wide = jnp.promote_types(jnp.float32, scores.hidden.dtype)
  # The kernel is gathered along its sharded width once, not once a chunk.
  kernel = constrain(scores.kernel.astype(scores.hidden.dtype), "vocab", None)
  bias = None if scores.bias is None else scores.bias.astype(wide)
  total, nll, correct = _fused(scores.hidden, kernel, bias, targets, weights.astype(wide), chunks)
  return TokenLoss(total, nll, correct)


def _chunks(places: int, vocab: int) -> int:
  """The smallest number of equal chunks of `places` whose logits stay within CHUNK a row."""
  least = max(1, -(-places * vocab // CHUNK))
  return next((n for n in range(least, places) if places % n == 0), places)


def _split(x: Array, chunks: int) -> Array:
  """[B, P, …] -> [chunks, B, P/chunks, …]."""
  return jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)


def _join(x: Array) -> Array:
  """[chunks, B, c, …] -> [B, chunks·c, …]."""
  x = jnp.moveaxis(x, 0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def _scan(body, init, xs: tuple[Array, ...], chunks: int):
  """`body` over the chunks; without a loop where there is one."""
  if chunks == 1:
    carry, ys = body(init, xs)
    return carry, ys
  carry, ys = jax.lax.scan(body, init, tuple(_split(x, chunks) for x in xs))
  return carry, tuple(map(_join, ys))


def _scores(hidden: Array, kernel: Array, bias: Array | None, targets: Array, weights: Array):
  """Of the n = B · c places of a chunk: exp(logits − peak) [n, V] and its sums [n], −log p(target), and whether the target scores highest."""
  logits = jax.lax.dot_general(hidden, kernel, (((1,), (1,)), ((), ())), preferred_element_type=weights.dtype)
  logits = logits if bias is None else logits + bias
  peak = jnp.max(logits, axis=-1)
  likelihoods = _made(jnp.exp(logits - peak[:, None]))
  norm = jnp.sum(likelihoods, axis=-1)
  target = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
  return likelihoods, norm, jnp.log(norm) + peak - target, target >= peak


def _made(x: Array) -> Array:
  """x, on a CPU as an array: XLA there fuses exp into a sum that takes several times as long as both apart, and makes exp anew afterwards."""
  return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


def _rows(chunk: tuple[Array, ...]) -> tuple[Array, ...]:
  """[B, c, …] -> [B · c, …]: with two axes of rows XLA on a CPU copies the gradient of the logits into another order."""
  return tuple(x.reshape(-1, *x.shape[2:]) for x in chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _fused(hidden, kernel, bias, targets, weights, chunks):
  def body(total, chunk):
    shape = chunk[1].shape
    hidden, targets, weights = _rows(chunk)
    _, _, nll, correct = _scores(hidden, kernel, bias, targets, weights)
    return total + jnp.sum(nll * weights), (nll.reshape(shape), correct.reshape(shape))

  total, (nll, correct) = _scan(body, jnp.zeros((), weights.dtype), (hidden, targets, weights), chunks)
  return total, nll, correct


def _forward(hidden, kernel, bias, targets, weights, chunks):
  wide = weights.dtype

  def body(carry, chunk):
    total, d_kernel, d_bias = carry
    shape = chunk[0].shape
    hidden, targets, weights = _rows(chunk)
    likelihoods, norm, nll, correct = _scores(hidden, kernel, bias, targets, weights)
    hit = targets[:, None] == jnp.arange(likelihoods.shape[-1], dtype=targets.dtype)
    d_logits = (likelihoods * (weights / norm)[:, None] - hit * weights[:, None]).astype(hidden.dtype)
    d_hidden = jax.lax.dot_general(d_logits, kernel, (((1,), (0,)), ((), ())))
    down = (((0,), (0,)), ((), ()))
    d_kernel = d_kernel + jax.lax.dot_general(d_logits, hidden, down, preferred_element_type=wide)
    if bias is not None:  # a product, which is faster than a sum down the columns
      d_bias = d_bias + jax.lax.dot_general(d_logits, jnp.ones((len(d_logits), 1), d_logits.dtype), down, preferred_element_type=wide)[:, 0]
    return (total + jnp.sum(nll * weights), d_kernel, d_bias), (nll.reshape(shape[:2]), correct.reshape(shape[:2]), d_hidden.reshape(shape))

  zero = (jnp.zeros((), wide), jnp.zeros(kernel.shape, wide), None if bias is None else jnp.zeros_like(bias))
  (total, d_kernel, d_bias), (nll, correct, d_hidden) = _scan(body, zero, (hidden, targets, weights), chunks)
  return (total, nll, correct), (d_hidden, d_kernel.astype(kernel.dtype), d_bias)


def _backward(chunks, residuals, cotangents):
  del chunks
  d_hidden, d_kernel, d_bias = residuals
  g = cotangents[0]
  return (d_hidden * g.astype(d_hidden.dtype), d_kernel * g.astype(d_kernel.dtype), None if d_bias is None else d_bias * g, None, None)


_fused.defvjp(_forward, _backward)
