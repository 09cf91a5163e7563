"""Skips the update of a bad batch: a loss or gradient that is not finite, or a gradient far larger than usual.

A skipped update leaves parameters and all inner state (moments, the schedule's count, the average of parameters) as they were,
so the run goes on as if the batch had not been in its data, and counts it. Nothing of a bad gradient is averaged in.

The choice is a select on every leaf, not a `lax.cond`: elementwise, so it fuses into the update and works in place where the
state is donated. A conditional is somewhat cheaper on a CPU, but on a GPU the host waits for its predicate before it can launch
what follows, and the collectives of a sharded update would stand inside a branch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research.core.types import Array, PyTree

MEMORY = 0.98  # decay of the average of log-norms: the last 50 updates or so
SETTLED = 20  # norms in that average before one can count as a spike


class GuardState(NamedTuple):
  skipped: Array  # int32 []: updates skipped
  measured: Array  # int32 []: norms in the average, those of the updates that were made
  log_norm: Array  # float32 []: Σ of their logarithms, weighted (1 − MEMORY) · MEMORY^age, without correction of the start
  inner: Any  # state of the guarded transformation


def guard(inner: optax.GradientTransformation, spike: float | None = None) -> optax.GradientTransformationExtraArgs:
  """Wraps a transformation: for a bad batch its updates are zero and its state stays.

  `update(grads, state, params, *, loss)` takes the batch's loss as a keyword.

  Args:
    spike: skip where the global norm of the gradient is more than `spike` times the geometric mean of the recent ones (an
      exponential average of its logarithm, over the updates that were made), once SETTLED of them are known. None: skip only
      what is not finite. A run whose norms have risen for good keeps skipping: who runs the loop should look at `skipped`.
  """
  inner = optax.with_extra_args_support(inner)

  def init(params: PyTree) -> GuardState:
    # A zero each: donated buffers may not be shared.
    return GuardState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), inner.init(params))

  def update(grads: PyTree, state: GuardState, params: PyTree | None = None, *, loss: Array, **extra: Any):
    norm = global_norm(grads)
    good = jnp.isfinite(norm) & jnp.isfinite(loss)
    if spike is not None:
      usual = jnp.exp(state.log_norm / (1 - MEMORY ** jnp.maximum(state.measured, 1)))
      good &= (state.measured < SETTLED) | (norm <= spike * usual)
    updates, after = inner.update(grads, state.inner, params, **extra)
    measured = good & (norm > 0)  # a batch without targets says nothing of the scale
    log_norm = MEMORY * state.log_norm + (1 - MEMORY) * jnp.log(norm).astype(jnp.float32)
    state = GuardState(
        skipped=state.skipped + (~good).astype(jnp.int32),
        measured=state.measured + measured.astype(jnp.int32),
        log_norm=jnp.where(measured, log_norm, state.log_norm),
        inner=jax.tree.map(lambda new, old: jnp.where(good, new, old), after, state.inner),
    )
    return jax.tree.map(lambda update: jnp.where(good, update, jnp.zeros_like(update)), updates), state

  return optax.GradientTransformationExtraArgs(init, update)


def global_norm(grads: PyTree) -> Array:
  """√Σg² over all leaves, summed in at least float32."""
  wide = lambda g: g.astype(jnp.promote_types(jnp.float32, g.dtype))
  return jnp.sqrt(sum(jnp.sum(jnp.square(wide(g))) for g in jax.tree.leaves(grads)))


def skipped(opt_state: GuardState) -> Array:
  """How many updates were skipped so far, int32 []."""
  return opt_state.skipped
