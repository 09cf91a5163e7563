"""The small layers: linear maps over named axes, norms, activations, dropout. Parameters carry logical axis names."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.types import Array

Activation = Literal["relu", "relu2", "gelu", "gelu_tanh", "gelu_quick", "silu", "tanh"]
Norm = Literal["layer", "rms"]

RUNS = "runs"  # the axis along which `jax.vmap` holds several runs of one program

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # So et al. 2021, Primer
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5))),  # with erf, as published models have it, rather than jax.nn's slower erfc
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_quick": lambda x: x * jax.nn.sigmoid(1.702 * x),  # the other approximation of Hendrycks and Gimpel 2016 (CLIP)
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


def constrain(x: Array, *axes: str | None) -> Array:
  """Names the logical axes of an activation; the mesh's table says where they go. Without a mesh this is the identity.

  An axis that its part of the mesh does not divide is kept whole: XLA would pad the parts to one size, and has given wrong gradients for that.
  """
  whole = lambda name, size: name is not None and size % parts(name) != 0
  return nn.with_logical_constraint(x, tuple(None if whole(name, size) else name for name, size in zip(axes, x.shape)))


def mesh_axes(name: str) -> tuple[str, ...]:
  """The axes of the mesh in force along which a logical axis is split; none where it is whole, or there is no mesh."""
  axes = nn.logical_to_mesh_axes((name,))[0] if nn.get_logical_axis_rules() else None
  sizes = jax.sharding.get_abstract_mesh().shape
  return tuple(axis for axis in ((axes,) if isinstance(axes, str) else axes or ()) if sizes.get(axis, 1) > 1)


def parts(name: str) -> int:
  """Into how many parts the mesh in force cuts a logical axis."""
  return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in mesh_axes(name))


def platform() -> str:
  """cpu, gpu or tpu: of the mesh in force, whose devices need not be at hand; without a mesh, where JAX computes by default."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  found = jax.default_backend() if device is None else device.platform
  return "gpu" if found in ("cuda", "rocm") else found


def side_by_side() -> bool:
  """Whether several runs are traced at once, stacked along a mapped axis named RUNS (research.training.together)."""
  try:
    jax.lax.axis_size(RUNS)
  except NameError:
    return False
  return True


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Array, kernel: Array, n: int) -> Array:
  """x[…, *inputs] · kernel[*inputs, *outputs], the last `n` axes of x being inputs.

  The kernel's gradient is written as xᵀ·g. JAX's own rule writes (gᵀ·x)ᵀ, for which XLA on a CPU makes transposed copies of every
  gradient of the residual stream, each summed up anew from the head's down: a quarter of a step.
  """
  return jax.lax.dot_general(x, kernel, ((tuple(range(x.ndim - n, x.ndim)), tuple(range(n))), ((), ())))


def _product_forward(x: Array, kernel: Array, n: int):
  return _product(x, kernel, n), (x, kernel)


def _product_backward(n: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
  x, kernel = saved
  outputs = kernel.ndim - n
  d_x = jax.lax.dot_general(g, kernel, ((tuple(range(g.ndim - outputs, g.ndim)), tuple(range(n, kernel.ndim))), ((), ())))
  if parts("length") > 1:  # rows and places that are both spread over devices are not made one axis: no sharding of it could keep them where they are
    lead = tuple(range(x.ndim - n))
    return d_x, jax.lax.dot_general(x, g, ((lead, lead), ((), ())))
  rows, columns = math.prod(kernel.shape[:n]), math.prod(kernel.shape[n:])
  d_kernel = jax.lax.dot_general(x.reshape(-1, rows), g.reshape(-1, columns), (((0,), (0,)), ((), ())))
  return d_x, d_kernel.reshape(kernel.shape)


_product.defvjp(_product_forward, _product_backward)


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
    y = _product(x.astype(self.dtype), kernel.astype(self.dtype), n)
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
