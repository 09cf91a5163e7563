"""Grouped-query attention (Ainslie et al. 2023): G key/value heads for H query heads; G = H is multi-head, G = 1 multi-query."""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.config import Component
from research.core.config import make as make_component
from research.core.types import Array
from research.model.attention.core import Kernel, attend
from research.model.attention.kernels.base import Drop
from research.model.cache import LayerCache
from research.model.inputs import Sight
from research.model.layers import Dropout, Linear, Normalize, constrain
from research.model.position.base import Sizes


@dataclasses.dataclass(frozen=True)
class Config:
  heads: int = 6  # query heads
  kv_heads: int | None = None  # key/value heads; None: as many as query heads
  head_dim: int | None = None  # width of a head; None: width / heads
  bias: bool = False  # biases on the four projections
  out_bias: bool | None = None  # on the fourth, which writes to the residual stream, where it differs from the others; None: as `bias`
  qk_norm: bool = False  # root-mean-square norm of queries and keys (Henry et al. 2020; Dehghani et al. 2023)
  window: int | None = None  # a query sees keys less than this many positions away
  scale: float | None = None  # factor of the scores; None: 1/√head_dim
  dropout: float = 0.0  # on the attention probabilities
  kernel: Kernel = "auto"  # what computes it; auto: by platform and call (attention/core.py tells). Binding in training; a trained model is read with auto where it must


class GroupedAttention(nn.Module):
  cfg: Config
  position: Component
  width: int
  length: int
  deviation: float  # of query, key and value kernels
  out_deviation: float  # of the kernel that writes to the residual stream
  epsilon: float
  dtype: str
  param_dtype: str

  @property
  def kv_heads(self) -> int:
    return self.cfg.kv_heads or self.cfg.heads

  @property
  def head_dim(self) -> int:
    return head_dim(self.cfg, self.width)

  def setup(self):
    cfg, d = self.cfg, self.head_dim
    if cfg.head_dim is None and self.width % cfg.heads:
      raise ValueError(f"model.width {self.width} is not a multiple of model.attention.heads {cfg.heads}")
    if cfg.heads % self.kv_heads:
      raise ValueError(f"model.attention.heads {cfg.heads} is not a multiple of model.attention.kv_heads {self.kv_heads}")
    common = dict(bias=cfg.bias, dtype=self.dtype, param_dtype=self.param_dtype)
    self.query = Linear((self.width,), (cfg.heads, d), ("embed", "heads", "head_dim"), deviation=self.deviation, **common)
    self.key = Linear((self.width,), (self.kv_heads, d), ("embed", "kv_heads", "head_dim"), deviation=self.deviation, **common)
    self.value = Linear((self.width,), (self.kv_heads, d), ("embed", "kv_heads", "head_dim"), deviation=self.deviation, **common)
    common["bias"] = cfg.bias if cfg.out_bias is None else cfg.out_bias
    self.out = Linear((cfg.heads, d), (self.width,), ("heads", "head_dim", "embed"), deviation=self.out_deviation, **common)
    if cfg.qk_norm:
      norm = dict(kind="rms", bias=False, epsilon=self.epsilon, dtype=self.dtype, param_dtype=self.param_dtype, axis="head_dim")
      self.query_norm, self.key_norm = Normalize(**norm), Normalize(**norm)
    self.scheme = make_component(self.position, Sizes(self.width, self.length, cfg.heads, d, self.deviation, self.dtype, self.param_dtype))
    self.drop = Dropout(cfg.dropout)

  def __call__(self, x: Array, source: Array | None, sight: Sight, bias: Array | None, cache: LayerCache | None, slot: Array | None,
               past: Array | None, whole: Array | None, train: bool) -> tuple[Array, LayerCache | None]:  # fmt: skip
    """x [B, L, D] attends to itself, to `source` [B, K, D] (cross-attention), or to the cache, in which it is written at `slot`.

    Cross-attention returns the source's keys and values; given them as `cache`, without a slot, it projects no source again.
    Keys and values come from the first of x where the sight has fewer keys than queries (a second stream of queries), after those of
    `past` [B, M, D]. Where x is only some places of a text, that text is `whole`, and gives them. `bias` [B or 1, H, L, K] is added to
    the scores.
    """
    cross = source is not None or (cache is not None and slot is None)
    if not cross and cache is None:
      old = 0 if past is None else past.shape[1]
      source = (x if whole is None else whole)[:, : sight.k_positions.shape[-1] - old]
      source = source if past is None else jnp.concatenate([past.astype(x.dtype), source], axis=1)
    q = self.query(x)
    if self.cfg.qk_norm:
      q = self.query_norm(q)
    q = constrain(q, "batch", "length", "heads", "head_dim")
    if cross and cache is not None:
      k, v = cache.keys, cache.values
    else:
      k, v = self.key(x if source is None else source), self.value(x if source is None else source)
      if self.cfg.qk_norm:
        k = self.key_norm(k)
      k = constrain(k, "batch", "length", "kv_heads", "head_dim")
    straight = q
    if not cross:  # the distance between the positions of two texts means nothing
      new = sight.q_positions if cache is not None else sight.k_positions
      q, k = self.scheme.rotate(q, k, sight.q_positions, new)
    if cross:
      cache = LayerCache(k, v)
    elif cache is not None:
      start = (0, slot, 0, 0)
      cache = cache._replace(
          keys=jax.lax.dynamic_update_slice(cache.keys, k.astype(cache.keys.dtype), start),
          values=jax.lax.dynamic_update_slice(cache.values, v.astype(cache.values.dtype), start),
      )
      k, v = cache.keys, cache.values
    if not cross:
      own = self.scheme.score_bias(straight, k, sight)
      bias = own if bias is None else bias if own is None else bias + own
    scale = 1 / math.sqrt(self.head_dim) if self.cfg.scale is None else self.cfg.scale
    drop = Drop(self.cfg.dropout, lambda p: self.drop(p, train), lambda: self.make_rng("dropout")) if train and self.cfg.dropout else None
    # A cache, or single places of a row, no fused kernel need know: whoever trains with one generates too, and reads few places in the last block.
    y = attend(q, k, v, sight, scale=scale, bias=bias, window=None if cross else self.cfg.window, drop=drop, kernel=self.cfg.kernel,
               binding=train and cache is None and whole is None)  # fmt: skip
    return self.out(y), cache


def head_dim(cfg: Config, width: int) -> int:
  return cfg.head_dim or width // cfg.heads


def cache_shape(cfg: Config, width: int, batch: int, slots: int) -> tuple[int, int, int, int]:
  """Shape of the cached keys (and of the values) of one layer: [B, S, G, d]."""
  return batch, slots, cfg.kv_heads or cfg.heads, head_dim(cfg, width)


def make(cfg: Config, **kwargs) -> GroupedAttention:
  return GroupedAttention(cfg, **kwargs)
