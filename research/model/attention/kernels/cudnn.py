"""cuDNN's flash attention on NVIDIA GPUs, through jax.nn.dot_product_attention.

Segments, orders and windows enter as a mask [B, L, K] that all heads share, in the type of the activations; a causal row of one document needs none.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research.core.types import Array
from research.model.attention.kernels.base import Call, Drop
from research.model.inputs import Sight


def refuses(call: Call) -> str | None:
  """What it cannot honour of the call."""
  if call.platform != "gpu":
    return f"needs an NVIDIA GPU, and this is a {call.platform}"
  if call.dtype not in ("bfloat16", "float16"):
    return f"computes no {call.dtype} (model.dtype bfloat16 it does)"
  if call.head_dim > 128 or call.head_dim % 8:
    return f"takes heads of at most 128 numbers, a multiple of 8, not of {call.head_dim}"
  if call.bias:
    return "knows no bias of the scores (model.position bias and relative have one)"
  if call.dropout:
    return "knows no dropout of the probabilities (model.attention.dropout)"
  if call.split:
    return "knows no places spread over devices (mesh.sequence)"
  masked = call.segments or call.window or call.kind == "ordered"
  if masked and call.stacked:  # JAX's rule for vmap wants a mask of each run and each head
    return "masks no rows of runs that are side by side in one program"
  if masked and (call.queries % 2 or call.keys % 2):
    return f"masks rows of even lengths only, not {call.queries} queries and {call.keys} keys"
  return None


def attend(q: Array, k: Array, v: Array, sight: Sight, *, scale: float, bias: Array | None, window: int | None, drop: Drop | None, split: bool) -> Array:
  """As `core.attend`, for what `refuses` lets through."""
  del bias, drop, split
  causal = sight.kind == "causal"
  mask = None if causal and sight.q_segments is None and window is None else sight.mask(window)
  out = jax.nn.dot_product_attention(
      q, k, v, mask=None if mask is None else jnp.broadcast_to(mask, (len(q), *mask.shape[1:]))[:, None], scale=scale, is_causal=causal, implementation="cudnn"
  )
  if mask is not None and (sight.blind or window is not None and sight.kind == "ordered"):
    out = jnp.where(mask.any(-1)[:, :, None, None], out, 0)
  return out
