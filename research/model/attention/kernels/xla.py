"""Scaled dot-product attention in plain XLA: the reference that every other kernel is held against."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research.core.types import Array
from research.model.attention.kernels.base import Call, Drop, blocks, heads_first
from research.model.inputs import Sight


def refuses(call: Call) -> str | None:
  """It honours every call."""
  del call
  return None


def attend(q: Array, k: Array, v: Array, sight: Sight, *, scale: float, bias: Array | None, window: int | None, drop: Drop | None, split: bool) -> Array:
  """As `core.attend`. Causal attention is computed in blocks of queries: the scores that nobody sees are never made."""
  q_BxHxLxd, k_BxGxKxd, v_BxGxKxd = heads_first(q * scale, k, v, split)  # once for all blocks
  dropped = (lambda weights: weights) if drop is None else drop.layer
  parts = []
  # Places that are spread over devices are not cut, save where the draws of dropout would then not be those of one device.
  for start, end in blocks(sight.kind, q.shape[1], whole=split and drop is None):
    keys = end if sight.kind == "causal" else k.shape[1]
    parts.append(_attend(
        q_BxHxLxd[:, :, start:end], k_BxGxKxd[:, :, :keys], v_BxGxKxd[:, :, :keys], sight.mask(window, start, end),
        None if bias is None else bias[:, :, start:end, :keys], sight.blind or window is not None and sight.kind == "ordered", dropped,
    ))  # fmt: skip
  out_BxHxLxd = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=2)
  return out_BxHxLxd.transpose(0, 2, 1, 3)


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
