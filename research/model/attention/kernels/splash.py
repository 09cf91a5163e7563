"""Pallas splash attention on TPUs (jax.experimental.pallas.ops.tpu.splash_attention).

Under a mesh each device runs the kernel on its rows, heads and queries. Blocks of keys that a causal query cannot see are skipped. Rows are padded
to whole blocks; padding is a segment of its own.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research.core.types import Array
from research.model.attention.kernels.base import Call, Drop
from research.model.inputs import Sight
from research.model.layers import mesh_axes, parts

LANES = 128  # lengths are whole numbers of these
BLOCK = 512  # most queries, and keys, of a block
INTERPRET = False  # runs the kernel's body as plain JAX, for tests without a TPU


def refuses(call: Call) -> str | None:
  """What it cannot honour of the call."""
  if call.platform != "tpu" and not INTERPRET:
    return f"needs a TPU, and this is a {call.platform}"
  if call.kind == "ordered":
    return "knows no orders of the places (prefix and permutation language models, caches, single places of a causal row)"
  if call.window:
    return "knows no window of positions (model.attention.window)"
  if call.bias:
    return "knows no bias of the scores (model.position bias and relative have one)"
  if call.dropout:
    return "knows no dropout of the probabilities (model.attention.dropout)"
  if call.dtype == "float64":
    return "computes no float64"
  return None


def attend(q: Array, k: Array, v: Array, sight: Sight, *, scale: float, bias: Array | None, window: int | None, drop: Drop | None, split: bool) -> Array:
  """As `core.attend`, for what `refuses` lets through."""
  del bias, window, drop
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  (B, L, H, _), K = q.shape, k.shape[1]
  sequence = parts("length") if split else 1
  whole_L, whole_K = (-(-n // (LANES * cut)) * LANES * cut for n, cut in ((L, sequence), (K, 1)))
  segments = sight.q_segments is not None
  q_segments, k_segments = sight.q_segments, sight.k_segments
  if not segments and (whole_L > L or whole_K > K):
    q_segments, k_segments = jnp.zeros((B, L), jnp.int32), jnp.zeros((B, K), jnp.int32)
  padded = lambda x, length, value=0: jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2), constant_values=value)
  first = lambda x, length: padded(x, length).transpose(0, 2, 1, 3)
  arrays = [first(q * scale, whole_L), first(k, whole_K), first(v, whole_K)]
  if q_segments is not None:
    # Padding is -1 on both sides: no real place sees it, and padded queries see padding, if any.
    every = lambda x, length: jnp.broadcast_to(padded(x, length, -1), (B, length))
    arrays.append(splash.SegmentIds(every(q_segments, whole_L), every(k_segments, whole_K)))
  one = (masks.CausalMask if sight.kind == "causal" else masks.FullMask)((whole_L, whole_K))
  block = lambda n: math.gcd(n, BLOCK)
  bq, bk = block(whole_L // sequence), block(whole_K)
  kernel = splash.make_splash_mha(
      masks.MultiHeadMask([one] * H), head_shards=parts("heads"), q_seq_shards=sequence, interpret=INTERPRET,
      block_sizes=splash.BlockSizes(bq, bk, bk, bq, bk, bk, bq, bk),
  )  # fmt: skip
  run = lambda kernel, *arrays: jax.vmap(kernel)(*arrays)
  if (mesh := jax.sharding.get_abstract_mesh()).size > 1:
    rows, heads, kv_heads = map(mesh_axes, ("batch", "heads", "kv_heads"))
    length = mesh_axes("length") if split else None
    rows = rows if B % parts("batch") == 0 else None  # the single row that makes the parameters is on every device
    specs = [P(rows, heads, length), P(rows, kv_heads), P(rows, kv_heads), splash.SegmentIds(P(rows, length), P(rows))]
    spec = kernel.manual_sharding_spec(NamedSharding(mesh, P(heads, length)))
    run = jax.shard_map(run, in_specs=(spec, *specs[: len(arrays)]), out_specs=P(rows, heads, length), check_vma=False)
  out = run(kernel, *arrays).transpose(0, 2, 1, 3)[:, :L]
  if sight.blind:
    seen = (sight.q_segments[:, :, None] == sight.k_segments[:, None, :]).any(-1)
    out = jnp.where(seen[:, :, None, None], out, 0)
  return out.astype(q.dtype)
