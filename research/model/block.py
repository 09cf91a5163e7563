"""One block: attention, cross-attention where there is an encoder, feed-forward; each with its norm, dropout and residual."""

from __future__ import annotations

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.config import Component, make
from research.core.types import Array
from research.model.cache import LayerCache
from research.model.inputs import Aux, Sight
from research.model.layers import Dropout, Norm, Normalize, constrain

NormPlace = Literal["pre", "post"]


class Layer(NamedTuple):
  """What a layer keeps between calls."""

  cache: LayerCache | None
  past: Array | None  # [B, M, D]: what entered the layer for the rows before


class Block(nn.Module):
  """Pre-norm: x + f(norm(x)) (Xiong et al. 2020). Post-norm: norm(x + f(x)) (Vaswani et al. 2017)."""

  attention: Component
  ffn: Component
  position: Component
  width: int
  length: int
  cross: bool  # attends to an encoder's output too
  norm: Norm
  norm_place: NormPlace
  norm_bias: bool
  epsilon: float
  dropout: float
  deviation: float
  out_deviation: float
  dtype: str
  param_dtype: str

  def setup(self):
    kernels = dict(width=self.width, deviation=self.deviation, out_deviation=self.out_deviation, dtype=self.dtype,
                   param_dtype=self.param_dtype)  # fmt: skip
    norm = dict(kind=self.norm, bias=self.norm_bias, epsilon=self.epsilon, dtype=self.dtype, param_dtype=self.param_dtype)
    attention = dict(position=self.position, length=self.length, epsilon=self.epsilon, **kernels)
    self.self_attention, self.attention_norm = make(self.attention, **attention), Normalize(**norm)
    if self.cross:
      self.cross_attention, self.cross_norm = make(self.attention, **attention), Normalize(**norm)
    self.feed_forward, self.ffn_norm = make(self.ffn, **kernels), Normalize(**norm)
    self.drop = Dropout(self.dropout)

  def __call__(self, x: Array, layer: Layer, sight: Sight, memory: Array | None, memory_sight: Sight | None, slot: Array | None,
               bias: Array | None, train: bool, places: Array | None = None) -> tuple[Array, tuple[Layer, dict[str, Aux]]]:  # fmt: skip
    """x [B, L, D] -> the next x; the layer's cache with the new keys and, where it has a past, what is to be its next one; losses of its own.

    With `places` int [B, P] the next x is [B, P, D], at these alone; they see the keys of all. Not with a cache.
    """
    pre = self.norm_place == "pre"

    def residual(x: Array, norm: Normalize, f) -> Array:
      y = f(norm(x)) if pre else f(x)
      y = x + self.drop(y, train)
      return constrain(y if pre else norm(y), "batch", "length", "embed")

    cache, past = layer
    after = None if past is None else x[:, : sight.k_positions.shape[-1] - past.shape[1]]
    if past is not None:
      past = jax.lax.stop_gradient(past)
      past = self.attention_norm(past) if pre else past
    whole, times = None, 1
    if places is not None:
      whole = self.attention_norm(x) if pre else x
      x = jnp.take_along_axis(x, places[:, :, None], axis=1)
      sight, memory_sight = sight.at(places), None if memory_sight is None else memory_sight.at(places)
      bias = None if bias is None else jnp.take_along_axis(bias, places[:, None, :, None], axis=2)
      times = jnp.sum(places[:, :, None] == places[:, None, :], axis=-1)  # a place that is asked twice is one token
    counts = None if sight.q_segments is None and places is None else (1 if sight.q_segments is None else sight.q_segments > 0) / times

    def attend_self(x: Array) -> Array:
      nonlocal cache
      y, cache = self.self_attention(x, None, sight, bias, cache, slot, past, whole, train)
      return y

    def attend_source(x: Array) -> Array:
      nonlocal cache
      y, source = self.cross_attention(x, memory, memory_sight, None, None if cache is None else cache.source, None, None, None, train)
      cache = None if cache is None else cache._replace(source=source)
      return y

    x = residual(x, self.attention_norm, attend_self)
    if self.cross:
      x = residual(x, self.cross_norm, attend_source)
    aux = {}

    def feed_forward(x: Array) -> Array:
      nonlocal aux
      y, aux = self.feed_forward(x, counts)
      return y

    x = residual(x, self.ffn_norm, feed_forward)
    return x, (Layer(cache, after), aux)
