"""Optimizers: optax's algorithms behind one set of keys, with clipping, weight decay by name, a guard, averaged parameters.

In this order: guard (skip a bad batch) → clip (global norm) → algorithm → weight decay → −learning rate → average of the
parameters. Weight decay is decoupled for every algorithm (Loshchilov and Hutter 2019): an update is −rate · (direction +
weight_decay · parameter).

Keys that choose parameters are regular expressions, searched in names such as `stack/block_0/self_attention/query/kernel` (unrolled
layers), `stack/blocks/feed_forward/up/kernel` (scanned layers, stacked along a leading axis) or `embed/embedding`.

The state is arrays only; whatever has a parameter's shape bears its name at the end of its own, and so is sharded like it.
Parameters narrower than float32 have a float32 state. Some numbers may be arrays (numbers.py); of these the range is not checked.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from research.core.config import Component
from research.core.config import make as make_component
from research.core.errors import UserError
from research.core.trees import map_named, match, named_leaves
from research.core.types import Array, PyTree
from research.optim import numbers, schedule
from research.optim.guard import guard

# init(params) -> state; update(grads, state, params, *, loss) -> (updates, state)
Optimizer = optax.GradientTransformationExtraArgs


@dataclasses.dataclass(frozen=True)
class Config:
  algorithm: Literal["adamw", "adam", "sgd", "adafactor", "lion", "muon"] = "adamw"
  schedule: Component = schedule.Config()
  b1: float = 0.9  # decay of the gradient's average (adam, adamw, muon's other parameters); weight of it in the update (lion)
  b2: float = 0.95  # decay of the squared gradient's average (as b1); of the gradient's average (lion, whose paper has 0.99)
  epsilon: float = 1e-8  # added to the square root (adam, adamw, muon's other parameters)
  momentum: float = 0.9  # sgd; 0: none
  nesterov: bool = True  # sgd, muon
  parameter_scale: bool = True  # adafactor: the rate is relative to the root mean square of each parameter
  weight_decay: float = 0.1  # 1/step at a learning rate of 1; adam has none
  decay: str = r"(kernel|embedding)$"  # parameters that decay; by default no biases, no norm scales
  clip: float | None = 1.0  # largest global norm of the gradient; None: not clipped
  spike: float | None = None  # skip a batch whose gradient norm is this many times the usual; None: only what is not finite
  ema: float | None = None  # decay of an average of the parameters, which evaluation then reads; None: no average
  muon: str = r"(^|/)(block_\d+|blocks)/.*kernel$"  # matrices that muon orthogonalises; adamw takes the other parameters
  muon_momentum: float = 0.95
  muon_scale: Literal["rms", "shape"] = "rms"  # 0.2 · √max(in, out): updates as large as Adam's; or √max(1, out/in)
  muon_rate: float = 1.0  # learning rate of the matrices as a multiple of the schedule's


def make(cfg: Config, steps: int, params: PyTree | None = None) -> Optimizer:
  """The optimizer of a run of `steps` updates.

  Its `update` takes the batch's loss as a keyword, and gives updates to add to the parameters (optax.apply_updates).

    adamw, adam   Loshchilov and Hutter 2019, algorithm 2; Kingma and Ba 2015, algorithm 1
    sgd           with (Nesterov) momentum
    adafactor     Shazeer and Stern 2018, algorithm 4, without momentum
    lion          Chen et al. 2023, algorithm 2
    muon          Jordan 2024 on matrices; scale 'rms': Liu et al. 2025, section 2.2

  Args:
    params: arrays or shapes; with them, expressions that choose no parameter are refused at once.

  Raises:
    UserError: a key out of range, an expression that is malformed or chooses nothing, a parameter that muon cannot read as a
      matrix.
  """
  if numbers.concrete(cfg):
    _check(cfg)
  if params is not None:
    _check_names(cfg, params)
  parts = [] if cfg.clip is None else [optax.clip_by_global_norm(cfg.clip)]
  parts.append(_algorithm(cfg))
  if numbers.used("weight_decay", cfg.weight_decay):
    parts.append(optax.add_decayed_weights(cfg.weight_decay, mask=lambda tree: match(cfg.decay, tree)))
  if cfg.algorithm == "muon" and numbers.used("muon_rate", cfg.muon_rate):
    parts.append(optax.masked(optax.scale(cfg.muon_rate), lambda tree: match(cfg.muon, tree)))
  parts.append(optax.scale_by_learning_rate(learning_rate(cfg, steps)))
  whole = _in_float32(optax.chain(*parts))
  return guard(whole if cfg.ema is None else optax.chain(whole, params_ema(cfg.ema)), cfg.spike)


def learning_rate(cfg: Config, steps: int) -> optax.Schedule:
  """The learning rate by the number of updates made before; a skipped update is not one."""
  return make_component(cfg.schedule, steps)


def _algorithm(cfg: Config) -> optax.GradientTransformation:
  """Gradients to the direction of steepest ascent, before weight decay and learning rate."""
  match cfg.algorithm:
    case "adamw" | "adam":
      return optax.scale_by_adam(cfg.b1, cfg.b2, cfg.epsilon)
    case "sgd":
      return optax.trace(cfg.momentum, cfg.nesterov) if numbers.used("momentum", cfg.momentum) else optax.identity()
    case "lion":
      return optax.scale_by_lion(cfg.b1, cfg.b2)
    case "adafactor":
      scale = [optax.scale_by_param_block_rms()] if cfg.parameter_scale else []
      return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), *scale)
    case "muon":
      orthogonalise = optax.contrib.scale_by_muon(
          beta=cfg.muon_momentum, nesterov=cfg.nesterov, weight_dimension_numbers=lambda tree: map_named(_matrix, tree)
      )
      return optax.partition(
          {
              "muon": optax.chain(orthogonalise, optax.stateless(lambda updates, _: map_named(_scaled(cfg), updates))),
              "adamw": optax.scale_by_adam(cfg.b1, cfg.b2, cfg.epsilon),
          },
          lambda tree: jax.tree.map(lambda chosen: "muon" if chosen else "adamw", match(cfg.muon, tree)),
      )


# --- muon --------------------------------------------------------------------------------------------------------------------


def _matrix(name: str, leaf: Array) -> optax.contrib.MuonDimensionNumbers:
  """Which axes of a kernel are the matrix's input and output; an axis of stacked layers or experts is neither, so each is apart.

  All heads of an attention kernel make one matrix: queries, keys, values [D, H, d] map D to H·d, outputs [H, d, D] map H·d to
  D.
  """
  first = len(re.findall(r"(?:^|/)(?:blocks|experts_\w+)(?=/)", name))
  axes = tuple(range(first, leaf.ndim))
  if len(axes) == 2 or len(axes) == 3 and re.search(r"(^|/)(query|key|value)/kernel$", name):
    inputs = 1
  elif len(axes) == 3 and re.search(r"(^|/)out/kernel$", name):
    inputs = 2
  else:
    raise UserError(f"optimizer.muon chooses '{name}' of shape {tuple(leaf.shape)}, which is not known as a matrix; change the "
                    "expression so that adamw takes it.")  # fmt: skip
  return optax.contrib.MuonDimensionNumbers(reduction_axis=axes[:inputs], output_axis=axes[inputs:])


def _scaled(cfg: Config):
  """Scales an orthogonal update by the shape of its matrix."""

  def scaled(name: str, update: Array) -> Array:
    dims = _matrix(name, update)
    fan_in, fan_out = (math.prod(update.shape[axis] for axis in axes) for axes in dims)
    return update * (0.2 * math.sqrt(max(fan_in, fan_out)) if cfg.muon_scale == "rms" else math.sqrt(max(1, fan_out / fan_in)))

  return scaled


# --- precision and averages ----------------------------------------------------------------------------------------------


def _wide(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: x.astype(jnp.promote_types(jnp.float32, x.dtype)), tree)


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Runs a transformation in at least float32: in bfloat16 a moment with a decay near 1 no longer moves."""
  init = lambda params: inner.init(_wide(params))
  return optax.GradientTransformation(init, lambda grads, state, params: inner.update(_wide(grads), state, _wide(params)))


class EmaState(NamedTuple):
  params_ema: PyTree  # in at least float32


def params_ema(decay: float) -> optax.GradientTransformation:
  """Keeps average ← decay · average + (1 − decay) · (params + updates), from the initial parameters on; the updates pass
  unchanged.

  It must be the last of a chain, where the updates are final (Polyak and Juditsky 1992, with exponential weights).
  """

  def init(params: PyTree) -> EmaState:
    # A copy: donated buffers may not be shared.
    return EmaState(jax.tree.map(jnp.copy, _wide(params)))

  def update(updates: PyTree, state: EmaState, params: PyTree) -> tuple[PyTree, EmaState]:
    new = _wide(optax.apply_updates(params, updates))
    return updates, EmaState(jax.tree.map(lambda average, x: average + (1 - decay) * (x - average), state.params_ema, new))

  return optax.GradientTransformation(init, update)


def ema_params(opt_state: PyTree) -> PyTree | None:
  """The average of the parameters, in at least float32; None where the optimizer keeps none."""
  nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, EmaState))
  return next((node.params_ema for node in nodes if isinstance(node, EmaState)), None)


def saved_average(opt_state: Any) -> PyTree | None:
  """As `ema_params`, of a state read back from a checkpoint as nested dicts and lists, without knowing its optimizer."""
  if isinstance(opt_state, Mapping) and "params_ema" in opt_state:
    return opt_state["params_ema"]
  children = opt_state.values() if isinstance(opt_state, Mapping) else opt_state if isinstance(opt_state, (list, tuple)) else ()
  return next((found for child in children if (found := saved_average(child)) is not None), None)


# --- checks ------------------------------------------------------------------------------------------------------------------


def _check(cfg: Config) -> None:
  for key in ("b1", "b2", "momentum", "muon_momentum"):
    if not 0 <= getattr(cfg, key) < 1:
      raise UserError(f"optimizer.{key} is {getattr(cfg, key)}; it must be at least 0 and less than 1.")
  if cfg.weight_decay < 0:
    raise UserError(f"optimizer.weight_decay is {cfg.weight_decay}; it must not be negative.")
  if cfg.algorithm == "adam" and cfg.weight_decay:
    raise UserError(f"optimizer.algorithm 'adam' has no weight decay, but optimizer.weight_decay is {cfg.weight_decay}; "
                    "set it to 0 or choose 'adamw'.")  # fmt: skip
  if cfg.clip is not None and cfg.clip <= 0:
    raise UserError(f"optimizer.clip is {cfg.clip}; it must be positive, or none for no clipping.")
  if cfg.spike is not None and cfg.spike <= 1:
    raise UserError(f"optimizer.spike is {cfg.spike}; it must be more than 1, or none.")
  if cfg.ema is not None and not 0 < cfg.ema < 1:
    raise UserError(f"optimizer.ema is {cfg.ema}; it must be between 0 and 1, or none for no average.")
  for key in ("decay", "muon"):
    try:
      re.compile(getattr(cfg, key))
    except re.error as error:
      raise UserError(f"optimizer.{key} '{getattr(cfg, key)}' is not a regular expression: {error}.") from error


def _check_names(cfg: Config, params: PyTree) -> None:
  for key, used in (("decay", numbers.used("weight_decay", cfg.weight_decay)), ("muon", cfg.algorithm == "muon")):
    chosen = [(name, leaf) for name, leaf in named_leaves(params) if re.search(getattr(cfg, key), name)]
    if used and not chosen:
      example = next((name for name, _ in named_leaves(params)), "")
      mend = ", or set optimizer.weight_decay to 0" if key == "decay" else ""
      raise UserError(f"optimizer.{key} '{getattr(cfg, key)}' chooses no parameter; mend the expression (a name is '{example}')"
                      f"{mend}.")  # fmt: skip
    for name, leaf in chosen if used and key == "muon" else ():
      _matrix(name, leaf)
