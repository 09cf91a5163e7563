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
import numpy as np

from research.core.types import Array
from research.model.inputs import Projection
from research.model.layers import constrain, parts, platform

CHUNK = 1 << 22  # logits of one row that are alive at a time (16 MiB a row in float32); fewer chunks add to the gradient of the kernel less often
PIECE = 1 << 15  # entries of the vocabulary that a CPU multiplies at a time: narrower products run faster there
ALIGN = 128  # a GPU's matrix units take whole tiles of rows: a vocabulary of another size is filled up with entries that cannot be


class TokenLoss(NamedTuple):
  total: Array  # [] Σ weights · nll; the only output with a gradient
  nll: Array  # [B, P] −log p(target), nats
  correct: Array  # bool [B, P]: none scores higher than the target


class Form(NamedTuple):
  """What is static of a loss."""

  chunks: int  # of the places
  pieces: int  # of the vocabulary
  parts: int  # that the mesh cuts the places into: a chunk takes some of each, so that no device waits for another's
  vocab: int  # entries that can be; what the kernel has beyond them is filling
  z_loss: float
  label_smoothing: float


def token_loss(scores: Projection, targets: Array, weights: Array, z_loss: float = 0.0, label_smoothing: float = 0.0) -> TokenLoss:
  """Σ weights · (−Σᵥ q(v) log p(v) + z_loss · log² Z) with p = exp(logits) / Z; q is 1 at the target and 0 elsewhere.

  Args:
    scores: hidden [B, P, D], kernel [V, D], bias [V] or None.
    targets: int32 [B, P].
    weights: float [B, P].
    z_loss: keeps log Z near 0 (Chowdhery et al. 2022, PaLM, section 5, with 1e-4).
    label_smoothing: share ε of q that is spread evenly over the V entries, the target's own among them (Szegedy et al. 2016, section 7).

  Returns:
    The total in at least float32, and the parts that metrics need, without gradient: `nll` knows neither z-loss nor smoothing.
  """
  B, P, D = scores.hidden.shape
  V = scores.kernel.shape[0]
  pieces = _pieces(V)
  spread = parts("length") if P % parts("length") == 0 else 1
  chunks = _chunks(P // spread, V, CHUNK if pieces == 1 else 2 * CHUNK)  # in pieces, fewer and larger chunks are faster
  wide = jnp.promote_types(jnp.float32, scores.hidden.dtype)
  # The kernel is gathered along its sharded width once, not once a chunk.
  kernel = constrain(scores.kernel.astype(scores.hidden.dtype), "vocab", None)
  bias = None if scores.bias is None else scores.bias.astype(wide)
  filling = _filling(V)
  if filling:
    kernel, bias = jnp.pad(kernel, ((0, filling), (0, 0))), None if bias is None else jnp.pad(bias, (0, filling))
  form = Form(chunks, pieces, spread, V, z_loss, label_smoothing)
  total, nll, correct = _fused(scores.hidden, kernel, bias, targets, weights.astype(wide), form)
  return TokenLoss(total, nll, correct)


def _chunks(places: int, vocab: int, limit: int) -> int:
  """The smallest number of equal chunks of `places` whose logits stay within `limit` a row."""
  least = max(1, -(-places * vocab // limit))
  return next((n for n in range(least, places) if places % n == 0), places)


def _pieces(vocab: int) -> int:
  """Into how many parts the vocabulary is cut: one but on a single CPU, for a device's share of a kernel must not be cut across."""
  if jax.default_backend() != "cpu" or jax.sharding.get_abstract_mesh().size > 1:
    return 1
  return -(-vocab // PIECE)


def _filling(vocab: int) -> int:
  """Entries that a kernel of `vocab` rows lacks for whole tiles of a GPU; none where the mesh cuts it."""
  return -vocab % ALIGN if platform() == "gpu" and parts("vocab") == 1 else 0


def _cut(x: Array | None, pieces: int) -> list[Array | None]:
  """[V, …] -> parts of nearly equal size."""
  return [None] * pieces if x is None else jnp.array_split(x, pieces)


def _split(x: Array, form: Form) -> Array:
  """[B, P, …] -> [chunks, B, P/chunks, …]."""
  if form.parts > 1:
    x = jnp.moveaxis(x.reshape(x.shape[0], form.parts, form.chunks, -1, *x.shape[2:]), 2, 0)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])
  return jnp.moveaxis(x.reshape(x.shape[0], form.chunks, -1, *x.shape[2:]), 1, 0)


def _join(x: Array, form: Form) -> Array:
  """[chunks, B, c, …] -> [B, chunks·c, …]."""
  if form.parts > 1:
    x = x.reshape(*x.shape[:2], form.parts, -1, *x.shape[3:])
    return jnp.moveaxis(x, 0, 2).reshape(x.shape[1], -1, *x.shape[4:])
  x = jnp.moveaxis(x, 0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def _scan(body, init, xs: tuple[Array, ...], form: Form):
  """`body` over the chunks; without a loop where there is one."""
  if form.chunks == 1:
    carry, ys = body(init, xs)
    return carry, ys
  carry, ys = jax.lax.scan(body, init, tuple(_split(x, form) for x in xs))
  return carry, tuple(_join(y, form) for y in ys)


class Scores(NamedTuple):
  """Of the n = B · c places of a chunk, or of B and c apart."""

  likelihoods: list[Array]  # exp(logits − peak) [n, V], in pieces
  norm: Array  # their sums [n]
  log_z: Array  # [n]
  loss: Array  # [n]: of each place, not weighed
  nll: Array  # −log p(target) [n]
  correct: Array  # bool [n]: none scores higher than the target; that none equals it would cost another pass over the scores


def _scores(hidden: Array, kernels: list[Array], biases: list[Array | None], targets: Array, weights: Array, form: Form) -> Scores:
  across = (((hidden.ndim - 1,), (1,)), ((), ()))
  logits = [jax.lax.dot_general(hidden, kernel, across, preferred_element_type=weights.dtype) for kernel in kernels]
  logits = [piece if bias is None else piece + bias for piece, bias in zip(logits, biases)]
  filled = sum(map(len, kernels)) > form.vocab  # in one piece
  possible = jnp.arange(len(kernels[0])) < form.vocab if filled else None
  if filled:
    logits = [jnp.where(possible, piece, jnp.finfo(piece.dtype).min) for piece in logits]
  peak = functools.reduce(jnp.maximum, [jnp.max(piece, axis=-1) for piece in logits])
  # Fused into the sum, exp takes a CPU several times as long as both apart, and is made anew afterwards.
  likelihoods = [_made(jnp.exp(piece - peak[..., None]), "cpu") for piece in logits]
  norm = sum(jnp.sum(piece, axis=-1) for piece in likelihoods)
  log_z = jnp.log(norm) + peak
  target = sum(_at(piece, targets - start, len(logits)) for piece, start in zip(logits, _starts(kernels)))
  loss = nll = log_z - target
  if form.label_smoothing:
    mean = sum(jnp.sum(piece, axis=-1, where=possible) for piece in logits) / form.vocab
    loss = (1 - form.label_smoothing) * nll + form.label_smoothing * (log_z - mean)
  if form.z_loss:
    loss = loss + form.z_loss * jnp.square(log_z)
  return Scores(likelihoods, norm, log_z, loss, nll, target >= peak)


def _starts(kernels: list[Array]) -> list[int]:
  """The first entry of each piece."""
  return np.cumsum([0, *map(len, kernels[:-1])]).tolist()


def _at(piece: Array, places: Array, pieces: int) -> Array:
  """piece [n, v] at `places` int [n]; 0 where the place lies in another piece."""
  if pieces == 1:
    return jnp.take_along_axis(piece, places[..., None], axis=-1)[..., 0]
  here = (places >= 0) & (places < piece.shape[1])
  return jnp.where(here, jnp.take_along_axis(piece, jnp.where(here, places, 0)[:, None], axis=-1)[:, 0], 0)


def _made(x: Array, on: str) -> Array:
  """x, on one platform as an array that XLA makes once and fuses into nothing."""
  return jax.lax.platform_dependent(x, default=lambda x: x, **{on: jax.lax.optimization_barrier})


def _rows(chunk: tuple[Array, ...], form: Form) -> tuple[Array, ...]:
  """[B, c, …] -> [B · c, …]: with two axes of rows XLA on a CPU copies the gradient of the logits into another order.

  Two axes that are both spread over devices stay two: no sharding of their product could keep them where they are.
  """
  return chunk if form.parts > 1 else tuple(x.reshape(-1, *x.shape[2:]) for x in chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _fused(hidden, kernel, bias, targets, weights, form):
  kernels, biases = _cut(kernel, form.pieces), _cut(bias, form.pieces)

  def body(total, chunk):
    shape = chunk[1].shape
    hidden, targets, weights = _rows(chunk, form)
    found = _scores(hidden, kernels, biases, targets, weights, form)
    return total + jnp.sum(found.loss * weights), (found.nll.reshape(shape), found.correct.reshape(shape))

  total, (nll, correct) = _scan(body, jnp.zeros((), weights.dtype), (hidden, targets, weights), form)
  return total, nll, correct


def _forward(hidden, kernel, bias, targets, weights, form):
  wide = weights.dtype
  kernels, biases = _cut(kernel, form.pieces), _cut(bias, form.pieces)
  rows = tuple(range(1 if form.parts == 1 else 2))
  down, along = ((rows, rows), ((), ())), (((len(rows),), (0,)), ((), ()))

  def body(carry, chunk):
    total, d_kernels, d_biases = carry
    shape = chunk[0].shape
    hidden, targets, weights = _rows(chunk, form)
    found = _scores(hidden, kernels, biases, targets, weights, form)
    of_p = weights / found.norm
    if form.z_loss:
      of_p = of_p * (1 + 2 * form.z_loss * found.log_z)
    d_hidden, d_kernels, d_biases = 0, list(d_kernels), list(d_biases)
    for i, (piece, start) in enumerate(zip(found.likelihoods, _starts(kernels))):
      hit = targets[..., None] == start + jnp.arange(piece.shape[-1], dtype=targets.dtype)
      d_logits = piece * of_p[..., None] - hit * ((1 - form.label_smoothing) * weights)[..., None]
      if form.label_smoothing:
        d_logits = d_logits - (form.label_smoothing / form.vocab * weights)[..., None]
      # Fused into the two products, it would be made once for each tile of them, and a GPU's own matrix library could not compute them.
      d_logits = _made(d_logits.astype(hidden.dtype), "cuda")
      d_hidden = d_hidden + jax.lax.dot_general(d_logits, kernels[i], along, preferred_element_type=wide)
      d_kernels[i] = d_kernels[i] + jax.lax.dot_general(d_logits, hidden, down, preferred_element_type=wide)
      if bias is not None:  # a product, which is faster than a sum down the columns
        ones = jnp.ones((*d_logits.shape[:-1], 1), d_logits.dtype)
        d_biases[i] = d_biases[i] + jax.lax.dot_general(d_logits, ones, down, preferred_element_type=wide)[:, 0]
    parts = found.nll.reshape(shape[:2]), found.correct.reshape(shape[:2]), d_hidden.astype(hidden.dtype).reshape(shape)
    return (total + jnp.sum(found.loss * weights), d_kernels, d_biases), parts

  zeros = [jnp.zeros(part.shape, wide) for part in kernels], [None if part is None else jnp.zeros_like(part) for part in biases]
  (total, d_kernels, d_biases), (nll, correct, d_hidden) = _scan(body, (jnp.zeros((), wide), *zeros), (hidden, targets, weights), form)
  joined = lambda parts: parts[0] if len(parts) == 1 else jnp.concatenate(parts)
  return (total, nll, correct), (d_hidden, joined(d_kernels).astype(kernel.dtype), None if bias is None else joined(d_biases))


def _backward(form, residuals, cotangents):
  del form
  d_hidden, d_kernel, d_bias = residuals
  g = cotangents[0]
  return (d_hidden * g.astype(d_hidden.dtype), d_kernel * g.astype(d_kernel.dtype), None if d_bias is None else d_bias * g, None, None)


_fused.defvjp(_forward, _backward)
