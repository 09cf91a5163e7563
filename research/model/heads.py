"""Heads: what an objective reads from the last hidden states. `HeadConfig` in model/inputs says what there is."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.types import Array
from research.model.inputs import HeadConfig, Projection
from research.model.layers import ACTIVATIONS, Linear, Norm, Normalize


class Head(nn.Module):
  cfg: HeadConfig
  vocab_size: int
  width: int  # of the hidden states
  embed_width: int  # of the embedding's table
  tied: bool  # a token head's kernel is the embedding's table
  norm: Norm
  epsilon: float
  deviation: float
  dtype: str
  param_dtype: str

  def linear(self, outputs: int, name: str, bias: bool = True) -> Linear:
    return Linear((self.width,), (outputs,), ("embed", None), bias=bias, deviation=self.deviation, dtype=self.dtype,
                  param_dtype=self.param_dtype, name=name)  # fmt: skip


class TokenHead(Head):
  """Scores over the vocabulary, left as a Projection: the loss computes logits in chunks, and only where somebody reads them."""

  @nn.compact
  def __call__(self, hidden: Array, embedding: Array) -> Projection:
    """hidden [B, P, D], embedding [V, E] -> the scores of [B, P, V]."""
    width = self.embed_width if self.tied else self.width
    if self.cfg.transform:
      norm = Normalize(self.norm, True, self.epsilon, self.dtype, self.param_dtype, name="transform_norm")
      hidden = norm(ACTIVATIONS[self.cfg.activation](self.linear(width, "transform")(hidden)))
    elif width != self.width:
      raise ValueError("a tied head over model.embed_width needs the head's transform, which brings the hidden states to that width")
    kernel = embedding
    if not self.tied:
      init = nn.with_logical_partitioning(nn.initializers.normal(self.deviation), ("vocab", "embed"))
      kernel = self.param("kernel", init, (self.vocab_size, self.width), self.param_dtype)
    bias = None
    if self.cfg.bias:
      bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",)), (self.vocab_size,), self.param_dtype)
    return Projection(hidden, kernel, bias)


class VectorHead(Head):
  """A vector of each place that it reads: BERT's pooler and its classes, a score of each token, a sentence's embedding."""

  @nn.compact
  def __call__(self, hidden: Array, embedding: Array | None) -> Array:
    """hidden [B, P, D], pooled already -> [B, P, outputs], in at least float32."""
    del embedding
    if self.cfg.transform:
      hidden = ACTIVATIONS[self.cfg.activation](self.linear(self.width, "transform")(hidden))
    if self.cfg.outputs:
      hidden = self.linear(self.cfg.outputs, "outputs", self.cfg.bias)(hidden)
    hidden = hidden.astype(jnp.promote_types(jnp.float32, hidden.dtype))
    if self.cfg.normalize:
      hidden = hidden * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(hidden), axis=-1, keepdims=True), 1e-24))
    return hidden


class ScaleHead(Head):
  """e^p of one parameter p, which so stays positive (CLIP's temperature, Radford et al. 2021, section 2.3, without its limit of 100)."""

  @nn.compact
  def __call__(self, hidden: Array, embedding: Array | None) -> Array:
    del hidden, embedding
    start = nn.initializers.constant(math.log(self.cfg.initial))
    return jnp.exp(self.param("log_scale", nn.with_logical_partitioning(start, ()), (), "float32"))


HEADS = {"token": TokenHead, "vector": VectorHead, "scale": ScaleHead}
