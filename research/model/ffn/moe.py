"""A mixture of experts in place of the feed-forward network: a router sends each token to a few of many (Shazeer et al. 2017).

A token's output is Σ weight_e · expert_e(x) over its `active` experts, those of largest probability under softmax(x W_router). Tokens are
sorted by expert and multiplied in one ragged product, so none is dropped unless `capacity` says so. Routing is computed in at least float32.

Losses of its own (`Output.aux`), each a mean over the tokens of a row, then over layers and rows; padding counts in none:

  balance    E · Σ_e f_e · P_e, with f_e the share of a row's choices that fell on expert e and P_e its mean probability: 1 where all are used
             alike (Fedus et al. 2021, section 2.2). There the mean is over a device's part of the batch; here a row is the group, so the loss
             does not depend on microbatches or the mesh.
  router_z   (log Σ_e exp logit_e)² (Zoph et al. 2022, section 3.2)

On a mesh whose axis for `experts` is split, each device holds some experts. The devices along that axis gather their tokens, each computes what
its own experts give for all of them, and the sums are scattered back. A ragged all-to-all would move less, but XLA has none for CPUs.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.core import flops
from research.core.types import Array
from research.model.inputs import Aux
from research.model.layers import ACTIVATIONS, Activation, Linear, mesh_axes, parts


@dataclasses.dataclass(frozen=True)
class Config:
  experts: int = 8  # feed-forward networks, E
  active: int = 2  # of them that each token uses, k
  hidden: int | None = None  # inner width F of an expert; None: 4 · width, or 8/3 · width rounded up to a multiple of 8 where gated
  activation: Activation = "gelu_tanh"
  gated: bool = False  # activation(x W_gate) · (x W_up): with silu this is SwiGLU, with gelu GEGLU
  normalize: bool = True  # a token's weights sum to 1 (Mixtral, Jiang et al. 2024, section 2.1); false: they are the probabilities (Switch)
  capacity: float | None = None  # an expert takes this many times its even share of a row's tokens, the first that come; None: all (dropless)
  balance: float = 0.01  # factor of the balance loss
  router_z: float = 0.001  # factor of the router's z-loss

  def __post_init__(self):
    if not 1 <= self.active <= self.experts:
      raise ValueError(f"active must be from 1 to experts; got {self.active} of {self.experts}")
    if self.normalize and self.active == 1 < self.experts:
      raise ValueError("normalize makes the weight of one active expert always 1, so that the router learns nothing: set normalize to false, or active to 2")
    if self.capacity is not None and self.capacity <= 0:
      raise ValueError(f"capacity must be positive, or none for experts that take all; got {self.capacity}")


class Mixture(nn.Module):
  cfg: Config
  width: int
  deviation: float
  out_deviation: float  # of the kernels that write to the residual stream
  dtype: str
  param_dtype: str

  @nn.compact
  def __call__(self, x: Array, counts: Array | None) -> tuple[Array, dict[str, Aux]]:
    """[B, L, D] -> [B, L, D], and the losses of its own.

    `counts` [B or 1, L] is what each place counts in them; where it is 0 the place is padding, uses no expert and gets zero.
    """
    cfg, E, k = self.cfg, self.cfg.experts, self.cfg.active
    hidden = cfg.hidden or (-(-self.width * 8 // 24) * 8 if cfg.gated else 4 * self.width)
    wide = jnp.promote_types(jnp.float32, self.dtype).name
    router = Linear((self.width,), (E,), ("embed", None), bias=False, deviation=self.deviation, dtype=wide, param_dtype=self.param_dtype, name="router")
    logits_BxLxE = router(x)
    p_BxLxE = jax.nn.softmax(logits_BxLxE)
    weights_BxLxk, chosen_BxLxk = jax.lax.top_k(p_BxLxE, k)
    if cfg.normalize:
      weights_BxLxk = weights_BxLxk / jnp.sum(weights_BxLxk, axis=-1, keepdims=True)
    fell_BxLxkxE = chosen_BxLxk[..., None] == jnp.arange(E)
    counts_BxL = jnp.broadcast_to(jnp.ones((), wide) if counts is None else counts.astype(wide), x.shape[:2])

    kept, slots = None if counts is None else counts_BxL[..., None] > 0, None
    if cfg.capacity is not None:
      slots = math.ceil(cfg.capacity * k * x.shape[1] / E)
      kept = _first(fell_BxLxkxE & (counts_BxL > 0)[..., None, None], slots)
    if kept is not None:
      chosen_BxLxk = jnp.where(kept, chosen_BxLxk, E)  # nobody's

    kernels = lambda name, shape, axes, deviation: Kernels((E, *shape), ("experts", *axes), deviation, self.param_dtype, name=f"experts_{name}")()
    into = [kernels(name, (self.width, hidden), ("embed", "mlp"), self.deviation) for name in (("gate", "up") if cfg.gated else ("up",))]
    out = kernels("down", (hidden, self.width), ("mlp", "embed"), self.out_deviation)
    x = x.astype(self.dtype)
    y = _spread(cfg, slots, x, weights_BxLxk, chosen_BxLxk, [kernel.astype(self.dtype) for kernel in into], out.astype(self.dtype))

    share_BxL = counts_BxL / jnp.maximum(jnp.sum(counts_BxL, axis=1, keepdims=True), 1e-9)
    mean = lambda values: jnp.sum(values * share_BxL.reshape(*share_BxL.shape, *[1] * (values.ndim - 2)), axis=1)
    f_BxE = mean(jnp.mean(fell_BxLxkxE, axis=2, dtype=wide))
    aux = {
        "balance": Aux(E * jnp.sum(f_BxE * mean(p_BxLxE), axis=-1), cfg.balance),
        "router_z": Aux(mean(jnp.square(jax.nn.logsumexp(logits_BxLxE, axis=-1))), cfg.router_z),
        "busiest_expert": Aux(E * jnp.max(f_BxE, axis=-1), 0.0),  # its tokens as a multiple of the even share
    }
    if cfg.capacity is not None:
      aux["dropped"] = Aux(mean(jnp.mean(~kept, axis=-1, dtype=wide)), 0.0)  # share of the choices that found their expert full
    return y, aux


class Kernels(nn.Module):
  """One kernel of each expert, drawn from a normal."""

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  deviation: float
  param_dtype: str

  @nn.compact
  def __call__(self) -> Array:
    return self.param("kernel", nn.with_logical_partitioning(nn.initializers.normal(self.deviation), self.axes), self.shape, self.param_dtype)


def make(cfg: Config, **kwargs) -> Mixture:
  return Mixture(cfg, **kwargs)


def _first(fell: Array, slots: int) -> Array:
  """Of the choices that fell on an expert, bool [B, L, k, E], which are among the first `slots` of their row: bool [B, L, k].

  In the order of the tokens, so that no token loses its place to a later one and a causal model stays causal.
  """
  B, L, k, E = fell.shape
  count = jnp.cumsum(fell.reshape(B, L * k, E), axis=1, dtype=jnp.int32).reshape(fell.shape)
  return jnp.any(fell & (count <= slots), axis=-1)


def _spread(cfg: Config, slots: int | None, x: Array, weights: Array, chosen: Array, into: list[Array], out: Array) -> Array:
  """`_experts` on the mesh: x [B, L, D], weights and chosen [B, L, k], kernels [E, D, F] and [E, F, D] -> [B, L, D]."""
  tokens, kernels = _axes(x.shape[:2], "batch", "length"), _axes(into[0].shape, "experts", None, "mlp")
  compute = functools.partial(_experts, cfg, slots)
  if not any(axes for axes in (*tokens, *kernels)):
    return compute(x, weights, chosen, into, out, first=0)
  (rows, _), (over, _, inner) = tokens, kernels
  gathered = [axis for axis in over if axis in rows]
  same = tuple(axis for axis in (*over, *inner) if axis not in gathered)  # devices along these hold the same tokens

  def part(x: Array, weights: Array, chosen: Array, into: list[Array], out: Array) -> Array:
    # Said outright: where nothing but the indices of a gather varies, JAX leaves out the sum of its gradient over these devices.
    x = jax.lax.pcast(x, same, to="varying")
    for axis in gathered:
      x, weights, chosen = (jax.lax.all_gather(of, axis, tiled=True) for of in (x, weights, chosen))
    first = jax.lax.axis_index(over) * out.shape[0] if over else 0
    y = jax.lax.psum(compute(x, weights, chosen, into, out, first=first), same)
    for axis in reversed(gathered):
      y = jax.lax.psum_scatter(y, axis, tiled=True)
    return y

  token, kernel, back = PartitionSpec(*tokens, None), PartitionSpec(*kernels), PartitionSpec(over, inner, None)
  return jax.shard_map(part, in_specs=(token, token, token, [kernel] * len(into), back), out_specs=token)(x, weights, chosen, into, out)


def _axes(dims: tuple[int, ...], *names: str | None) -> list[tuple[str, ...]]:
  """The axes of the mesh that split each dimension; none for one that they do not divide, which is whole on every device."""
  return [mesh_axes(name) if name and dim % parts(name) == 0 else () for dim, name in zip(dims, names)]


def _experts(cfg: Config, slots: int | None, x: Array, weights: Array, chosen: Array, into: list[Array], out: Array, first: Array | int) -> Array:
  """What the experts first, first + 1, … give for tokens of which each has chosen some, theirs or others.

  Args:
    slots: most tokens of a row that an expert takes; None: all.
    x: [B, L, D].
    weights, chosen: [B, L, k]; a choice that is no expert's index counts for nothing.
    into, out: [e, D, F] and [e, F, D].

  Returns:
    [B, L, D], the weighted sum over those of a token's experts that are here.
  """
  B, L, D = x.shape
  e, k, n = out.shape[0], cfg.active, chosen.size
  here = chosen.reshape(n) - first
  here = jnp.where((here >= 0) & (here < e), here, e)
  most = n if slots is None else min(n, B * e * slots)
  order = jnp.argsort(here)[:most]  # by expert; what is not for here comes last
  sizes = jnp.sum(here[:, None] == jnp.arange(e), axis=0, dtype=jnp.int32)
  # Kernels of accelerators leave what is in no group undefined, in both passes.
  inside = (jnp.arange(most) < jnp.sum(sizes))[:, None]
  unique = dict(unique_indices=True, mode="promise_in_bounds")
  rows = jnp.where(inside, jnp.repeat(x.reshape(B * L, D), k, axis=0).at[order].get(**unique), 0)
  with flops.filled(min(1.0, n * e / cfg.experts / most)):
    h = [jax.lax.ragged_dot(rows, kernel, sizes) for kernel in into]
    act = ACTIVATIONS[cfg.activation]
    h = act(h[0]) * h[1] if cfg.gated else act(h[0])
    y = jnp.where(inside, jax.lax.ragged_dot(h, out, sizes), 0)
  each = jnp.zeros((n, D), y.dtype).at[order].set(y, **unique).reshape(B, L, k, D)
  return jnp.einsum("BLkD,BLk->BLD", each, weights).astype(x.dtype)
