"""The small layers: linear maps over named axes, norms, activations, dropout. Parameters carry logical axis names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.types import Array

Activation = Literal["relu", "relu2", "gelu", "gelu_tanh", "silu"]
Norm = Literal["layer", "rms"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # So et al. 2021, Primer
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}


def constrain(x: Array, *axes: str | None) -> Array:
  """Names the logical axes of an activation; the mesh's table says where they go. Without a mesh this is the identity."""
  return nn.with_logical_constraint(x, axes)


class Linear(nn.Module):
  """x[…, *inputs] · kernel[*inputs, *outputs] + bias[*outputs].

  Kernels are drawn from a normal of deviation `deviation`, or 1/√(fan in) where it is None.
  """

  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  axes: tuple[str | None, ...]  # logical names of inputs + outputs
  bias: bool
  deviation: float | None
  dtype: str
  param_dtype: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    deviation = 1 / math.sqrt(math.prod(self.inputs)) if self.deviation is None else self.deviation
    init = nn.with_logical_partitioning(nn.initializers.normal(deviation), self.axes)
    kernel = self.param("kernel", init, (*self.inputs, *self.outputs), self.param_dtype)
    n = len(self.inputs)
    contract = (tuple(range(x.ndim - n, x.ndim)), tuple(range(n)))
    y = jax.lax.dot_general(x.astype(self.dtype), kernel.astype(self.dtype), (contract, ((), ())))
    if self.bias:
      init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[n:])
      y = y + self.param("bias", init, self.outputs, self.param_dtype).astype(self.dtype)
    return y


class Normalize(nn.Module):
  """Layer norm (Ba et al. 2016) or root-mean-square norm (Zhang and Sennrich 2019) over the last axis, computed in float32."""

  kind: Norm
  bias: bool
  epsilon: float
  dtype: str
  param_dtype: str
  axis: str | None = "embed"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    if self.kind == "layer":
      wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    y = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
    names = (self.axis,)
    scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, names), (x.shape[-1],), self.param_dtype)
    y = y * scale
    if self.kind == "layer" and self.bias:
      y = y + self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, names), (x.shape[-1],), self.param_dtype)
    return y.astype(self.dtype)


class Dropout(nn.Module):
  """Zeroes a share `rate` of the entries in training and scales the others by 1/(1 − rate) (Srivastava et al. 2014)."""

  rate: float

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    if not train or self.rate == 0.0:
      return x
    keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, x.shape)
    return jnp.where(keep, x / (1.0 - self.rate), 0).astype(x.dtype)
