"""A bad batch leaves no trace but a count."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.optim import guard as guards
from research.optim import optimizer
from research.optim.schedule import Config as Schedule

KERNEL, BIAS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), np.ones(4, np.float32)
PARAMS = {"block_0": {"ffn": {"up": {"kernel": KERNEL, "bias": BIAS}}}}


def batches(n, seed=0):
  """Gradients of about the same norm, with their losses."""
  rng = np.random.default_rng(seed)
  return [(jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), PARAMS), np.float32(1.0)) for _ in range(n)]


@functools.cache
def step_of(opt):
  @jax.jit
  def step(params, state, grads, loss):
    updates, state = opt.update(grads, state, params, loss=loss)
    return optax.apply_updates(params, updates), state

  return step


def run(opt, items):
  params = jax.tree.map(jnp.asarray, PARAMS)
  state = opt.init(params)
  for grads, loss in items:
    params, state = step_of(opt)(params, state, grads, loss)
  return params, state


def one_value(grads, value):
  """The gradients with a single entry replaced."""
  grads = jax.tree.map(np.copy, grads)
  grads["block_0"]["ffn"]["up"]["kernel"][1, 2] = value
  return grads


BAD = {
    "NaN gradient": lambda grads, loss: (one_value(grads, np.nan), loss),
    "infinite gradient": lambda grads, loss: (one_value(grads, np.inf), loss),
    "NaN loss": lambda grads, loss: (grads, np.float32(np.nan)),
    "infinite loss": lambda grads, loss: (grads, np.float32(np.inf)),
}


def equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    np.testing.assert_array_equal(x, y)


@functools.cache
def make(algorithm="adamw", **changes):
  cfg = optimizer.Config(algorithm=algorithm, schedule=Schedule(warmup=3), ema=0.9, **changes)
  return optimizer.make(cfg, 40)


@pytest.mark.parametrize("bad", BAD)
def test_as_if_the_batch_had_not_been(bad):
  items = batches(5)
  params, state = run(make(), items[:2] + [BAD[bad](*items[4])] + items[2:4])
  wanted, wanted_state = run(make(), items[:4])
  equal(params, wanted)
  equal(state._replace(skipped=0), wanted_state._replace(skipped=0))
  assert int(guards.skipped(state)) == 1 and int(guards.skipped(wanted_state)) == 0


@pytest.mark.parametrize("algorithm", ["sgd", "lion", "adafactor", "muon"])
def test_every_algorithm_is_guarded(algorithm):
  items = batches(3)
  params, state = run(make(algorithm), [items[0], BAD["NaN gradient"](*items[1]), items[2]])
  wanted, wanted_state = run(make(algorithm), [items[0], items[2]])
  equal(params, wanted)
  equal(state.inner, wanted_state.inner)


def test_first_batch_may_be_bad():
  items = batches(1)
  params, state = run(make(), [BAD["infinite gradient"](*items[0])] * 3)
  equal(params, jax.tree.map(jnp.asarray, PARAMS))
  assert int(guards.skipped(state)) == 3


def scaled(item, factor):
  return jax.tree.map(lambda g: g * np.float32(factor), item[0]), item[1]


def test_spike_is_skipped_once_the_scale_is_known():
  items = batches(guards.SETTLED + 4)
  spike = scaled(items[-1], 100.0)
  opt = make(spike=10.0, clip=None)
  calm, after = items[: guards.SETTLED], items[guards.SETTLED : -1]
  params, state = run(opt, calm + [spike] + after)
  wanted, wanted_state = run(opt, calm + after)
  assert int(state.skipped) == 1 and int(wanted_state.skipped) == 0
  equal(params, wanted)
  assert int(run(opt, [*calm[:3], spike, *calm[3:]])[1].skipped) == 0  # too early to know
  assert int(run(make(clip=None), calm + [spike])[1].skipped) == 0  # not asked for
  assert int(run(opt, calm + [scaled(items[-1], 5.0)])[1].skipped) == 0  # below the bound


def test_usual_norm_is_the_geometric_mean():
  opt = guards.guard(optax.identity(), spike=1.01)
  state = opt.init({"w": jnp.zeros(1)})
  update = jax.jit(lambda norm, state: opt.update({"w": jnp.full(1, norm)}, state, loss=jnp.float32(0))[1])
  norms = [1.0, 4.0] * (guards.SETTLED // 2)
  for norm in norms:
    state = update(norm, state)
  weights = (1 - guards.MEMORY) * guards.MEMORY ** np.arange(len(norms))[::-1]
  np.testing.assert_allclose(state.log_norm, np.sum(weights * np.log(norms)), rtol=1e-4)
  usual = np.exp(np.sum(weights * np.log(norms)) / np.sum(weights))
  for factor, skipped in ((1.0, 0), (1.02, 1)):
    assert int(update(np.float32(usual * factor), state).skipped) == skipped


def test_zero_gradient_is_made_but_not_measured():
  opt = guards.guard(optax.identity(), spike=3.0)
  state = opt.init({"w": jnp.ones(1)})
  _, state = opt.update({"w": jnp.zeros(1)}, state, loss=jnp.float32(0))
  assert int(state.skipped) == 0 and int(state.measured) == 0 and float(state.log_norm) == 0
