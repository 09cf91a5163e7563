"""Schedules against their formulas at the steps where they bend."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.errors import UserError
from research.optim.schedule import Config, make

PEAK, WARMUP, STEPS = 2e-3, 10, 111  # from the peak at step 10 to the last update at step 110 are 100 steps
SHAPES = ("constant", "cosine", "linear", "inverse_sqrt", "constant_decay")


def values(shape, **changes):
  cfg = Config(peak=PEAK, warmup=WARMUP, shape=shape, end=0.1, **changes)
  return np.asarray(jax.jit(make(cfg, STEPS))(jnp.arange(STEPS + 50))) / PEAK


@pytest.mark.parametrize("shape", SHAPES)
def test_warm_up(shape):
  rates = values(shape)
  np.testing.assert_allclose(rates[:WARMUP], (np.arange(WARMUP) + 1) / (WARMUP + 1), rtol=1e-6)
  assert rates[0] > 0 and np.isclose(rates[WARMUP], 1.0)
  assert np.all(np.diff(rates[: WARMUP + 1]) > 0) and np.all(np.diff(rates[WARMUP:]) <= 0)


def test_cosine():
  rates = values("cosine")
  quarter = 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2
  np.testing.assert_allclose(rates[[35, 60, 110, 160]], [quarter, 0.55, 0.1, 0.1], rtol=1e-5)


def test_linear():
  np.testing.assert_allclose(values("linear")[[35, 60, 110, 160]], [0.775, 0.55, 0.1, 0.1], rtol=1e-5)


def test_constant():
  np.testing.assert_allclose(values("constant")[[10, 60, 160]], 1.0, rtol=1e-6)


def test_inverse_sqrt():
  np.testing.assert_allclose(values("inverse_sqrt")[[10, 43, 98]], [1, 1 / 2, 1 / 3], rtol=1e-5)


def test_constant_decay():
  rates = values("constant_decay", decay_fraction=20 / 111)
  np.testing.assert_allclose(rates[10:91], 1.0, rtol=1e-6)
  np.testing.assert_allclose(rates[[91, 100, 110, 130]], [1 - 0.9 / 20, 0.55, 0.1, 0.1], rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_shortest_runs_are_finite(shape):
  for warmup, steps in ((0, 1), (1, 2), (3, 4)):
    rates = make(Config(warmup=warmup, shape=shape), steps)(jnp.arange(steps))
    assert rates.dtype == jnp.float32 and bool(jnp.all((rates > 0) & (rates <= 1e-3)))


def test_wrong_keys_are_named():
  with pytest.raises(UserError, match=r"schedule\.warmup 100 is more than steps 50"):
    make(Config(warmup=100), 50)
  with pytest.raises(UserError, match=r"decay_fraction 0\.5"):
    make(Config(warmup=60, shape="constant_decay", decay_fraction=0.5), 100)
  with pytest.raises(UserError, match=r"schedule\.end is 1\.5"):
    make(Config(end=1.5), 1000)
  with pytest.raises(UserError, match=r"schedule\.peak"):
    make(Config(peak=-1.0), 1000)
