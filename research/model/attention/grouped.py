"""Grouped-query attention (Ainslie et al. 2023): G key/value heads for H query heads; G = H is multi-head, G = 1 multi-query."""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax

from research.core.config import Component
from research.core.config import make as make_component
from research.core.types import Array
from research.model.attention.core import attend
from research.model.cache import LayerCache
from research.model.inputs import Sight
from research.model.layers import Dropout, Linear, Normalize, constrain


@dataclasses.dataclass(frozen=True)
class Config:
  heads: int = 6  # query heads
  kv_heads: int | None = None  # key/value heads; None: as many as query heads
  head_dim: int | None = None  # width of a head; None: width / heads
  bias: bool = False  # biases on the four projections
  qk_norm: bool = False  # root-mean-square norm of queries and keys (Henry et al. 2020; Dehghani et al. 2023)
  window: int | None = None  # a query sees keys less than this many positions away
  dropout: float = 0.0  # on the attention probabilities


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
    return self.cfg.head_dim or self.width // self.cfg.heads

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
    self.out = Linear((cfg.heads, d), (self.width,), ("heads", "head_dim", "embed"), deviation=self.out_deviation, **common)
    if cfg.qk_norm:
      norm = dict(kind="rms", bias=False, epsilon=self.epsilon, dtype=self.dtype, param_dtype=self.param_dtype, axis="head_dim")
      self.query_norm, self.key_norm = Normalize(**norm), Normalize(**norm)
    self.scheme = make_component(self.position, width=self.width, length=self.length, deviation=self.deviation, dtype=self.dtype,
                                 param_dtype=self.param_dtype)  # fmt: skip
    self.drop = Dropout(cfg.dropout)

  def __call__(self, x: Array, source: Array | None, sight: Sight, cache: LayerCache | None, slot: Array | None,
               train: bool) -> tuple[Array, LayerCache | None]:  # fmt: skip
    """x [B, L, D] attends to itself, to `source` [B, K, D] (cross-attention), or to the cache, in which it is written at `slot`."""
    cross = source is not None
    source = x if source is None else source
    q, k, v = self.query(x), self.key(source), self.value(source)
    if self.cfg.qk_norm:
      q, k = self.query_norm(q), self.key_norm(k)
    q = constrain(q, "batch", "length", "heads", "head_dim")
    k = constrain(k, "batch", "length", "kv_heads", "head_dim")
    bias = None
    if not cross:  # the distance between the positions of two texts means nothing
      new = sight.q_positions if cache is not None else sight.k_positions
      q, k = self.scheme.rotate(q, k, sight.q_positions, new)
    if cache is not None:
      start = (0, slot, 0, 0)
      cache = LayerCache(
          jax.lax.dynamic_update_slice(cache.keys, k.astype(cache.keys.dtype), start),
          jax.lax.dynamic_update_slice(cache.values, v.astype(cache.values.dtype), start),
      )
      k, v = cache.keys, cache.values
    if not cross:
      bias = self.scheme.score_bias(q, k, sight.q_positions, sight.k_positions)
    y = attend(q, k, v, sight, scale=1 / math.sqrt(self.head_dim), bias=bias, window=self.cfg.window,
               dropout=lambda p: self.drop(p, train))  # fmt: skip
    return self.out(y), cache


def cache_shape(cfg: Config, width: int, batch: int, slots: int) -> tuple[int, int, int, int]:
  """Shape of the cached keys (and of the values) of one layer: [B, S, G, d]."""
  return batch, slots, cfg.kv_heads or cfg.heads, cfg.head_dim or width // cfg.heads


def make(cfg: Config, **kwargs) -> GroupedAttention:
  return GroupedAttention(cfg, **kwargs)
