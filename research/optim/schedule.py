"""Learning-rate schedules: a linear warm-up, then one of a few shapes.

A schedule maps the number of updates made before, 0 at the first update and steps − 1 at the last one, to a learning rate. The
warm-up rises as peak · (step + 1)/(warmup + 1): the first update is not lost, and `peak` is reached at step `warmup`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
import optax

from research.core.errors import UserError
from research.core.types import Array
from research.optim import numbers


@dataclasses.dataclass(frozen=True)
class Config:
  peak: float = 1e-3  # the largest learning rate
  warmup: int = 100  # updates before the peak
  shape: Literal["constant", "cosine", "linear", "inverse_sqrt", "constant_decay"] = "cosine"  # after the warm-up; see `make`
  end: float = 0.1  # rate of the last update as a fraction of the peak (cosine, linear, constant_decay)
  decay_fraction: float = 0.2  # share of all updates that decays at the end (constant_decay)


def make(cfg: Config, steps: int) -> optax.Schedule:
  """The learning rate at `step`, for a run of `steps` updates.

  With t from 0 at step `warmup` to 1 at the last update:

    constant         peak
    cosine           peak · (end + (1 − end)(1 + cos πt)/2)      (Loshchilov and Hutter 2017, SGDR, section 3; one cycle)
    linear           peak · (1 − (1 − end) t)
    inverse_sqrt     peak · √((warmup + 1)/(step + 1))           (Vaswani et al. 2017, section 5.3)
    constant_decay   peak, then linear to peak · end over the last decay_fraction of the updates
                     (warmup-stable-decay: Hu et al. 2024, MiniCPM, section 4.2; linear as in Hägele et al. 2024)

  Past the last update the rate stays at its last value (constant, inverse_sqrt: goes on).

  Returns:
    A function of an integer or an integer array; float32; can be jitted.

  Raises:
    UserError: keys that do not fit each other or the number of steps.
  """
  decays = max(1, round(cfg.decay_fraction * steps)) if cfg.shape == "constant_decay" else 0
  if numbers.concrete(cfg):
    _check(cfg, steps, decays)
  span = max(1, steps - 1 - cfg.warmup)  # from the peak to the last update

  def schedule(step: int | Array) -> Array:
    step = jnp.asarray(step, jnp.float32)
    t = jnp.clip((step - cfg.warmup) / span, 0.0, 1.0)
    match cfg.shape:
      case "constant":
        factor = 1.0
      case "cosine":
        factor = cfg.end + (1 - cfg.end) * (1 + jnp.cos(jnp.pi * t)) / 2
      case "linear":
        factor = 1 - (1 - cfg.end) * t
      case "inverse_sqrt":
        factor = jnp.sqrt((cfg.warmup + 1) / (step + 1))
      case "constant_decay":
        factor = 1 - (1 - cfg.end) * jnp.clip((step + 1 - (steps - decays)) / decays, 0.0, 1.0)
    return cfg.peak * jnp.where(step < cfg.warmup, (step + 1) / (cfg.warmup + 1), factor)

  return schedule


def _check(cfg: Config, steps: int, decays: int) -> None:
  where = "optimizer.schedule"
  if cfg.peak < 0 or cfg.warmup < 0:
    key = "peak" if cfg.peak < 0 else "warmup"
    raise UserError(f"{where}.{key} is {getattr(cfg, key)}; it must not be negative.")
  for key in ("end", "decay_fraction"):
    if not 0 <= getattr(cfg, key) <= 1:
      raise UserError(f"{where}.{key} is {getattr(cfg, key)}; it is a fraction, from 0 to 1.")
  if cfg.warmup > steps:
    raise UserError(f"{where}.warmup {cfg.warmup} is more than steps {steps}; lower {where}.warmup or raise steps.")
  if cfg.warmup + decays > steps:
    raise UserError(f"{where}.warmup {cfg.warmup} and the {decays} updates of {where}.decay_fraction {cfg.decay_fraction} "
                    f"do not fit into steps {steps}; lower one of them or raise steps.")  # fmt: skip
