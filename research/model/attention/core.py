"""Scaled dot-product attention behind one function: the plain reference that every fused kernel is held against."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research.core.types import Array
from research.model.inputs import Sight

BLOCK = 128  # least number of queries of a block of causal attention
BLOCKS = 8  # most blocks: with 8, 9/16 of the scores are made


def attend(q: Array, k: Array, v: Array, sight: Sight, *, scale: float, bias: Array | None = None, window: int | None = None,
           dropout=lambda probabilities: probabilities) -> Array:  # fmt: skip
  """softmax(scale · q kᵀ + bias) v over the keys that each query sees (Vaswani et al. 2017, section 3.2.1).

  Causal attention is computed in blocks of queries, each with the keys up to its own end: the scores that nobody sees are never made.

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
  # Heads first, once for all blocks.
  q_BxHxLxd, k_BxGxKxd, v_BxGxKxd = (q * scale).transpose(0, 2, 1, 3), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
  parts = []
  for start, end in _blocks(sight, q.shape[1]):
    keys = end if sight.kind == "causal" else k.shape[1]
    parts.append(_attend(
        q_BxHxLxd[:, :, start:end], k_BxGxKxd[:, :, :keys], v_BxGxKxd[:, :, :keys], sight.mask(window, start, end),
        None if bias is None else bias[:, :, start:end, :keys], sight.blind or window is not None and sight.kind == "ordered", dropout,
    ))  # fmt: skip
  out_BxHxLxd = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=2)
  return out_BxHxLxd.transpose(0, 2, 1, 3)


def _blocks(sight: Sight, length: int) -> list[tuple[int, int]]:
  """Bounds of the blocks of queries."""
  count = max(1, min(BLOCKS, length // BLOCK)) if sight.kind == "causal" else 1
  bounds = [length * i // count for i in range(count + 1)]
  return list(zip(bounds, bounds[1:]))


def _attend(q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None, blind: bool, dropout) -> Array:
  """Scaled q [B, H, L, d], k and v [B, G, K, d], mask [B or 1, L, K], bias [B or 1, H, L, K] -> [B, H, L, d]."""
  B, H, L, d = q.shape
  G, K = k.shape[1:3]
  R = H // G
  wide = jnp.promote_types(jnp.float32, q.dtype)
  # The R query heads that share a key head are rows of one product, [B, G, R·L, ·]. Every array has four axes: with more, be they of
  # length 1, XLA on a CPU copies scores and heads into other orders.
  scores = jnp.einsum("BGQd,BGKd->BGQK", q.reshape(B, G, R * L, d), k, preferred_element_type=wide)
  if bias is not None:
    scores = scores + bias.reshape(-1, G, R * L, K).astype(wide)
  if mask is not None:
    # Added, not selected: the gradient passes as it is, for an unseen key's weight is zero anyway.
    unseen = jnp.where(mask, 0, jnp.finfo(wide).min / 2).astype(wide)
    scores = scores + jnp.tile(unseen, (1, R, 1))[:, None]
  # The softmax's denominator divides the output rather than the probabilities: d numbers a query instead of K, forward and backward.
  weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
  norm = jnp.sum(weights, axis=-1, keepdims=True)
  out = jnp.einsum("BGQK,BGKd->BGQd", dropout(weights.astype(q.dtype)), v, preferred_element_type=wide) / norm
  out = out.astype(q.dtype).reshape(B, H, L, d)
  if mask is not None and blind:
    out = jnp.where(mask.any(-1)[:, None, :, None], out, 0)
  return out
