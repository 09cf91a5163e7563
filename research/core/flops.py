"""Counts the floating-point operations of a function from its jaxpr: nothing is compiled or run.

Matrix multiplications and convolutions only, the convention of model FLOPs utilisation (Chowdhery et al. 2022, PaLM, appendix
B): a multiplication and an addition are two operations, elementwise work is none. Loop bodies count as often as they run (XLA's
own cost analysis counts a scan's body once), and over all devices: a sharded program costs what the same program costs on one
device.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

# The name that JAX gives to what jax.checkpoint computes a second time, in the backward pass.
RECOMPUTED = "rematted_computation"
FILLED = "filled_"  # a scope's name; the share follows


def filled(share: float) -> contextlib.AbstractContextManager:
  """Scope of ragged products whose groups fill this share of the rows: a device that holds some of the groups has room for the rows of all."""
  return jax.named_scope(f"{FILLED}{share:.9f}")


class Flops(NamedTuple):
  total: float  # operations of one call, on all devices together
  by_primitive: dict[str, float]  # 'dot_general', 'conv_general_dilated', 'ragged_dot_general' -> operations
  unknown_loops: int  # `while` loops with matrix products: the jaxpr does not tell their trip count, so their bodies count once


def count(function: Callable[..., Any], *args: Any, credit_recompute: bool = False) -> Flops:
  """The operations of `function(*args)`.

  A `cond` counts as its dearest branch, a Pallas kernel as its body at every point of its grid, a ragged product as if its
  groups filled all rows (or the share that `filled` says), and a convolution as if none of what it reads were padding.

  Args:
    args: pytrees of arrays or of jax.ShapeDtypeStruct.
    credit_recompute: count also what `jax.checkpoint` recomputes in the backward pass. By default it does not count, so that a
      step with and without it has the same number of model FLOPs.

  Example:
    >>> x = jax.ShapeDtypeStruct((8, 16), "float32")
    >>> count(lambda a, b: a @ b.T, x, x).total
    2048.0
  """
  return count_jaxpr(jax.make_jaxpr(function)(*args), credit_recompute)


def count_jaxpr(jaxpr: Any, credit_recompute: bool = False) -> Flops:
  """As `count`, of what `jax.make_jaxpr(function)(*args)` or `jax.jit(function).trace(*args).jaxpr` gave."""
  totals, unknown_loops = _of_jaxpr(jaxpr, credit_recompute)
  return Flops(float(sum(totals.values())), {name: float(value) for name, value in totals.items()}, unknown_loops)


def _of_jaxpr(jaxpr: Any, credit_recompute: bool) -> tuple[Counter, int]:
  """Operations by primitive, and the number of loops with an unknown trip count, of a Jaxpr or ClosedJaxpr."""
  totals, unknown_loops = Counter(), 0
  for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
    if not credit_recompute and RECOMPUTED in str(eqn.source_info.name_stack):
      continue
    name = eqn.primitive.name
    if name in _MATMULS:
      share = re.search(FILLED + r"([\d.]+)", str(eqn.source_info.name_stack)) if name == "ragged_dot_general" else None
      totals[name] += _MATMULS[name](eqn) * (float(share[1]) if share else 1)
      continue
    parts = [_of_jaxpr(inner, credit_recompute) for inner in _inner(eqn.params)]
    if name == "cond" and parts:
      parts = [max(parts, key=lambda part: sum(part[0].values()))]
    times = _times(eqn)
    for inner, unknown in parts:
      totals.update({key: times * value for key, value in inner.items()})
      unknown_loops += unknown
      if name == "while" and inner:
        unknown_loops += 1
  return totals, unknown_loops


def _inner(params: dict[str, Any]) -> list[Any]:
  """The jaxprs among the parameters of an equation: bodies of loops, branches, calls."""
  values = [item for value in params.values() for item in (value if isinstance(value, (tuple, list)) else (value,))]
  return [value for value in values if hasattr(getattr(value, "jaxpr", value), "eqns")]


def _times(eqn: Any) -> int:
  """How often the inner jaxprs of an equation run, over all devices."""
  name, params = eqn.primitive.name, eqn.params
  if name == "scan":
    return params["length"]
  if name == "shard_map":  # shapes inside are those of one shard along the manual axes; the key's name depends on JAX's version
    manual = next(value for key, value in params.items() if key.endswith("manual_axes"))
    return math.prod(params["mesh"].shape[axis] for axis in manual)
  if name == "pallas_call":
    return math.prod(params["grid_mapping"].grid)
  return 1


def _contracted(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
  return math.prod(shape[axis] for axis in axes)


def _dot_general(eqn: Any) -> int:
  """2 · output size · contracted size: 2·M·N·K for each element of the batch."""
  (lhs_axes, _), _ = eqn.params["dimension_numbers"]
  return 2 * math.prod(eqn.outvars[0].aval.shape) * _contracted(eqn.invars[0].aval.shape, lhs_axes)


def _ragged_dot_general(eqn: Any) -> int:
  """As a dense product of the rows with one group's matrix; where the ragged axis is contracted, each group has its share."""
  numbers = eqn.params["ragged_dot_dimension_numbers"]
  (lhs_axes, _), _ = numbers.dot_dimension_numbers
  flops = 2 * math.prod(eqn.outvars[0].aval.shape) * _contracted(eqn.invars[0].aval.shape, lhs_axes)
  groups = eqn.invars[2].aval.shape[-1]
  return flops // groups if set(numbers.lhs_ragged_dimensions) <= set(lhs_axes) else flops


def _conv_general_dilated(eqn: Any) -> int:
  """2 · output size · kernel size for one output channel."""
  kernel = eqn.invars[1].aval.shape
  out_channels = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
  return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // out_channels


_MATMULS = {
    "dot_general": _dot_general,
    "ragged_dot_general": _ragged_dot_general,
    "conv_general_dilated": _conv_general_dilated,
}
