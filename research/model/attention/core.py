"""Scaled dot-product attention behind one function: the plain reference that every fused kernel is held against."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research.core.types import Array
from research.model.inputs import Sight


@jax.custom_vjp
def _scores(q: Array, k: Array) -> Array:
  """q [B, G, R, L, d] · k [B, G, K, d] -> [B, G, R, L, K] in at least float32."""
  return jnp.einsum("BGRLd,BGKd->BGRLK", q, k, preferred_element_type=jnp.promote_types(jnp.float32, q.dtype))


def _scores_forward(q: Array, k: Array):
  return _scores(q, k), (q, k)


def _scores_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
  q, k = saved
  g = g.astype(q.dtype)
  d_q = jnp.einsum("BGRLK,BGKd->BGRLd", g, k)
  # qᵀ·g and not gᵀ·q, which on a CPU would copy all scores into another order.
  d_k_BxGxdxK = jax.lax.dot_general(q, g, (((2, 3), (2, 3)), ((0, 1), (0, 1))))
  return d_q, d_k_BxGxdxK.swapaxes(2, 3)


_scores.defvjp(_scores_forward, _scores_backward)


def attend(q: Array, k: Array, v: Array, sight: Sight, *, scale: float, bias: Array | None = None, window: int | None = None,
           dropout=lambda probabilities: probabilities) -> Array:  # fmt: skip
  """softmax(scale · q kᵀ + bias) v over the keys that each query sees (Vaswani et al. 2017, section 3.2.1).

  Args:
    q: [B, L, H, d].
    k, v: [B, K, G, d] with H a multiple of G: query head h reads key head h // (H/G).
    sight: the visibility rule's vectors.
    scale: factor of the scores, usually 1/√d.
    bias: [B or 1, H, L, K], added to the scaled scores.
    window: a query sees keys less than this many positions away.
    dropout: applied to the probabilities.

  Returns:
    [B, L, H, d]; zero for a query that sees nothing. The softmax is taken in at least float32.
  """
  B, L, H, d = q.shape
  G = k.shape[2]
  wide = jnp.promote_types(jnp.float32, q.dtype)
  q_BxGxRxLxd = (q * scale).reshape(B, L, G, H // G, d).transpose(0, 2, 3, 1, 4)
  k_BxGxKxd, v_BxGxKxd = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
  scores = _scores(q_BxGxRxLxd, k_BxGxKxd)
  if bias is not None:
    scores = scores + bias.reshape(bias.shape[0], G, H // G, *bias.shape[2:]).astype(wide)
  mask = sight.mask(window)
  if mask is not None:
    # Added, not selected: the gradient passes as it is, for an unseen key's weight is zero anyway.
    scores = scores + jnp.where(mask, 0, jnp.finfo(wide).min / 2).astype(wide)[:, None, None]
  # The softmax's denominator divides the output rather than the probabilities: d numbers a query instead of K, forward and backward.
  weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
  norm = jnp.sum(weights, axis=-1, keepdims=True)
  out = jnp.einsum("BGRLK,BGKd->BGRLd", dropout(weights.astype(q.dtype)), v_BxGxKxd, preferred_element_type=wide) / norm
  out_BxLxHxd = out.astype(q.dtype).transpose(0, 3, 1, 2, 4).reshape(B, L, H, d)
  if mask is not None and (sight.blind or window is not None and sight.kind == "ordered"):
    out_BxLxHxd = jnp.where(mask.any(-1)[:, :, None, None], out_BxLxHxd, 0)
  return out_BxLxHxd
