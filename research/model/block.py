"""One block: attention, cross-attention where there is an encoder, feed-forward; each with its norm, dropout and residual."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn

from research.core.config import Component, make
from research.core.types import Array
from research.model.cache import LayerCache
from research.model.inputs import Sight
from research.model.layers import Dropout, Norm, Normalize, constrain

NormPlace = Literal["pre", "post"]


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

  def __call__(self, x: Array, cache: LayerCache | None, sight: Sight, memory: Array | None, memory_sight: Sight | None,
               slot: Array | None, train: bool) -> tuple[Array, LayerCache | None]:  # fmt: skip
    """x [B, L, D] -> the next x, and the layer's cache with the new keys."""

    def residual(x: Array, norm: Normalize, f) -> Array:
      y = f(norm(x)) if self.norm_place == "pre" else f(x)
      y = x + self.drop(y, train)
      return constrain(y if self.norm_place == "pre" else norm(y), "batch", "length", "embed")

    def attend_self(x: Array) -> Array:
      nonlocal cache
      y, cache = self.self_attention(x, None, sight, cache, slot, train)
      return y

    x = residual(x, self.attention_norm, attend_self)
    if self.cross:
      x = residual(x, self.cross_norm, lambda x: self.cross_attention(x, memory, memory_sight, None, None, train)[0])
    x = residual(x, self.ffn_norm, self.feed_forward)
    return x, cache
