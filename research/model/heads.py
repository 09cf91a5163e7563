"""Heads: what an objective reads from the last hidden states."""

from __future__ import annotations

import flax.linen as nn

from research.core.types import Array
from research.model.inputs import HeadConfig, Projection
from research.model.layers import ACTIVATIONS, Linear, Norm, Normalize


class TokenHead(nn.Module):
  """Scores over the vocabulary, left as a Projection: the loss computes logits in chunks, and only where somebody reads them."""

  cfg: HeadConfig
  vocab_size: int
  width: int
  tied: bool  # the kernel is the embedding's table
  norm: Norm
  epsilon: float
  deviation: float
  dtype: str
  param_dtype: str

  @nn.compact
  def __call__(self, hidden: Array, embedding: Array) -> Projection:
    """hidden [B, P, D], embedding [V, D] -> the scores of [B, P, V]."""
    if self.cfg.transform:
      dense = Linear((self.width,), (self.width,), ("embed", None), bias=True, deviation=self.deviation, dtype=self.dtype,
                     param_dtype=self.param_dtype, name="transform")  # fmt: skip
      norm = Normalize(self.norm, True, self.epsilon, self.dtype, self.param_dtype, name="transform_norm")
      hidden = norm(ACTIVATIONS["gelu"](dense(hidden)))
    kernel = embedding
    if not self.tied:
      init = nn.with_logical_partitioning(nn.initializers.normal(self.deviation), ("vocab", "embed"))
      kernel = self.param("kernel", init, (self.vocab_size, self.width), self.param_dtype)
    bias = None
    if self.cfg.bias:
      bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",)), (self.vocab_size,), self.param_dtype)
    return Projection(hidden, kernel, bias)


HEADS = {"token": TokenHead}
