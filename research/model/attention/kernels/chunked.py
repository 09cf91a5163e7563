"""Attention over the keys chunk by chunk with an online softmax, in plain JAX: memory O(L · chunk), forward and backward.

The forward pass keeps the output and the logarithm of each query's denominator; the backward pass makes the probabilities anew, chunk by chunk
(Rabe and Staats 2021, "Self-attention does not need O(n²) memory"; Dao et al. 2022, FlashAttention, algorithms 1 and 4). A bias is an array of L · K
numbers already, so with one the memory is not saved.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.core.types import Array
from research.model.attention.kernels.base import Call, Drop, blocks, heads_first
from research.model.inputs import Sight

CHUNK = 512  # keys at a time


class Form(NamedTuple):
  """What is static of a block of queries."""

  keys: int  # those after them, up to a whole number of chunks, are padding
  chunk: int
  window: int | None
  rate: float  # of dropout


def refuses(call: Call) -> str | None:
  """It honours every call."""
  del call
  return None


def attend(q: Array, k: Array, v: Array, sight: Sight, *, scale: float, bias: Array | None, window: int | None, drop: Drop | None, split: bool) -> Array:
  """As `core.attend`; its draws of dropout are its own."""
  causal, out = sight.kind == "causal", []
  if causal:  # chunks no longer stand at their places, so orders tell what is seen
    order = lambda positions: jnp.arange(positions.shape[-1], dtype=jnp.int32)[None]
    sight = sight.replace(q_order=order(sight.q_positions), k_order=order(sight.k_positions), kind="ordered")
  q, k, v = heads_first(q * scale, k, v, split)
  key = None if drop is None else drop.key()
  B, H, L, d = q.shape
  G, K = k.shape[1:3]
  for start, end in blocks("causal" if causal else "full", L, whole=split):
    keys = end if causal else K
    chunk = min(CHUNK, keys)
    form = Form(keys, chunk, window, 0.0 if drop is None else drop.rate)
    # Zeros after the last key, up to a whole number of chunks.
    padded = lambda x, axis: None if x is None else _padded(jax.lax.slice_in_dim(x, 0, keys, axis=axis), axis, chunk)  # noqa: B023
    rows = lambda x: None if x is None else x[:, start:end]  # noqa: B023
    here = sight.replace(q_positions=rows(sight.q_positions), q_segments=rows(sight.q_segments), q_order=rows(sight.q_order), k_positions=padded(sight.k_positions, 1),
                         k_segments=padded(sight.k_segments, 1), k_order=padded(sight.k_order, 1), q_types=None, k_types=None)  # fmt: skip
    own = None if key is None else jax.random.fold_in(key, start)
    flat = q[:, :, start:end].reshape(B, G, -1, d)
    done = _online(flat, padded(k, 2), padded(v, 2), None if bias is None else padded(bias[:, :, start:end], 3), here, own, form)
    out.append(done.reshape(B, H, end - start, d))
  return jnp.concatenate(out, axis=2).transpose(0, 2, 1, 3)


def _padded(x: Array, axis: int, chunk: int) -> Array:
  return jnp.pad(x, [(0, -x.shape[i] % chunk if i == axis else 0) for i in range(x.ndim)])


def _scan(body, carry, form: Form):
  """`body(carry, i)` over the chunks; without a loop where there is one."""
  count = -(-form.keys // form.chunk)
  if count == 1:
    carry, y = body(carry, 0)
    return carry, jax.tree.map(lambda x: x[None], y)
  return jax.lax.scan(body, carry, jnp.arange(count))


def _joined(x: Array | None, axis: int) -> Array | None:
  """[chunks, …, chunk, …] -> [chunks · chunk] along `axis`."""
  if x is None:
    return None
  x = jnp.moveaxis(x, 0, axis)
  return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _chunk(x: Array | None, axis: int, i, form: Form) -> Array | None:
  return None if x is None else jax.lax.dynamic_slice_in_dim(x, i * form.chunk, form.chunk, axis)


def _scores(q: Array, k: Array, bias: Array | None, sight: Sight, form: Form, i) -> tuple[Array, Array]:
  """Scores [B, G, N, chunk] of chunk i, those of unseen keys lowered beyond all others, and its keys. N = R · L: query heads of one key head are rows."""
  B, G, N, _ = q.shape
  wide = jnp.promote_types(jnp.float32, q.dtype)
  k = _chunk(k, 2, i, form)
  scores = jnp.einsum("BGNd,BGKd->BGNK", q, k, preferred_element_type=wide)
  if bias is not None:
    bias = _chunk(bias, 3, i, form)
    scores = scores + bias.reshape(len(bias), G, N, -1).astype(wide)
  vectors = {name: _chunk(getattr(sight, name), 1, i, form) for name in ("k_positions", "k_segments", "k_order")}
  mask = sight.replace(**vectors).mask(form.window)
  if form.keys % form.chunk:
    real = (i * form.chunk + jnp.arange(form.chunk) < form.keys)[None, None]
    mask = real if mask is None else mask & real
  if mask is not None:
    unseen = jnp.where(mask, 0, jnp.finfo(wide).min / 2).astype(wide)
    scores = scores + (jnp.tile(unseen, (1, N // mask.shape[1], 1)) if mask.shape[1] > 1 else unseen)[:, None]
  return scores, k


def _kept(key: Array | None, shape: tuple[int, ...], form: Form, i) -> Array | float:
  """Factors of the probabilities of chunk i: 0 or 1/(1 − rate)."""
  if key is None:
    return 1.0
  return jax.random.bernoulli(jax.random.fold_in(key, i), 1 - form.rate, shape) / (1 - form.rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _online(q: Array, k: Array, v: Array, bias: Array | None, sight: Sight, key: Array | None, form: Form) -> Array:
  """Scaled q [B, G, N, d], k and v [B, G, K, d] with K whole chunks, bias [B or 1, H, L, K] -> [B, G, N, d]; 0 where nothing is seen."""
  return _forward(q, k, v, bias, sight, key, form)[0]


def _forward(q, k, v, bias, sight, key, form):
  wide = jnp.promote_types(jnp.float32, q.dtype)

  def body(carry, i):
    peak, norm, out = carry
    scores, _ = _scores(q, k, bias, sight, form, i)
    top = jnp.maximum(peak, jnp.max(scores, axis=-1, keepdims=True))
    weights, shrink = jnp.exp(scores - top), jnp.exp(peak - top)
    norm = norm * shrink + jnp.sum(weights, axis=-1, keepdims=True)
    weights = (weights * _kept(key, weights.shape, form, i)).astype(q.dtype)
    out = out * shrink + jnp.einsum("BGNK,BGKd->BGNd", weights, _chunk(v, 2, i, form), preferred_element_type=wide)
    return (top, norm, out), None

  column = jnp.zeros((*q.shape[:3], 1), wide)
  (peak, norm, out), _ = _scan(body, (column + jnp.finfo(wide).min, column, jnp.zeros(q.shape, wide)), form)
  log_norm = peak + jnp.log(norm)
  out = jnp.where(_blind(log_norm), 0, out / norm).astype(q.dtype)
  return out, (q, k, v, bias, sight, key, out, log_norm)


def _blind(log_norm: Array) -> Array:
  """Whether the query saw nothing: the lowered scores are all that it has. NaN is no blindness."""
  return log_norm < jnp.finfo(log_norm.dtype).min / 4


def _backward(form, saved, g):
  q, k, v, bias, sight, key, out, log_norm = saved
  wide = log_norm.dtype
  g = jnp.where(_blind(log_norm), 0, g).astype(q.dtype)
  inner = jnp.sum(g.astype(wide) * out.astype(wide), axis=-1, keepdims=True)

  def body(d_q, i):
    scores, k_i = _scores(q, k, bias, sight, form, i)
    p = jnp.exp(scores - log_norm)
    kept = _kept(key, p.shape, form, i)
    d_v = jnp.einsum("BGNK,BGNd->BGKd", (p * kept).astype(q.dtype), g, preferred_element_type=wide)
    d_p = jnp.einsum("BGNd,BGKd->BGNK", g, _chunk(v, 2, i, form), preferred_element_type=wide) * kept
    d_scores = p * (d_p - inner)
    d_bias = None
    if bias is not None:
      d_bias = d_scores.reshape(len(p), *bias.shape[1:3], -1).astype(bias.dtype)
      d_bias = d_bias if len(bias) == len(p) else jnp.sum(d_bias, axis=0, keepdims=True)
    d_scores = d_scores.astype(q.dtype)
    d_q = d_q + jnp.einsum("BGNK,BGKd->BGNd", d_scores, k_i, preferred_element_type=wide)
    d_k = jnp.einsum("BGNK,BGNd->BGKd", d_scores, q, preferred_element_type=wide)
    return d_q, (d_k.astype(k.dtype), d_v.astype(v.dtype), d_bias)

  d_q, (d_k, d_v, d_bias) = _scan(body, jnp.zeros(q.shape, wide), form)
  return d_q.astype(q.dtype), _joined(d_k, 2), _joined(d_v, 2), _joined(d_bias, 3), None, None


_online.defvjp(_forward, _backward)
