"""Sums that are divided once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.types import Mean, Vocab


def test_means_of_parts_add_up_to_the_mean_of_the_whole():
  rng = np.random.default_rng(0)
  values, weights = rng.normal(size=(7, 5)).astype(np.float32), rng.integers(0, 3, (7, 5)).astype(np.float32)
  parts = [Mean.of(jnp.asarray(values[i:j]), jnp.asarray(weights[i:j])) for i, j in ((0, 1), (1, 5), (5, 7))]
  whole = parts[0] + parts[1] + parts[2]
  assert float(whole.value()) == pytest.approx(np.average(values, weights=weights), rel=1e-6)


def test_nothing_weighed_is_zero_and_has_no_bad_gradient():
  assert float(Mean.of(jnp.ones(3), jnp.zeros(3)).value()) == 0.0
  gradient = jax.grad(lambda x: Mean.of(x, jnp.zeros(3)).value())(jnp.ones(3))
  assert np.isfinite(gradient).all()


def test_sums_are_at_least_float32():
  mean = Mean.of(jnp.ones(5000, jnp.bfloat16), jnp.ones(5000, jnp.bfloat16))
  assert mean.total.dtype == jnp.float32 and float(mean.total) == 5000  # in bfloat16 the sum stops at 256


def test_a_mean_is_a_tree():
  doubled = jax.tree.map(lambda x: 2 * x, Mean(jnp.ones(()), jnp.ones(())))
  assert isinstance(doubled, Mean) and float(doubled.total) == 2


def test_plain_ids_are_those_that_are_not_special():
  vocab = Vocab(6, {"pad": 0, "mask": 4}, np.zeros(6, bool), np.ones(6, np.int32))
  assert vocab.plain.tolist() == [1, 2, 3, 5] and vocab.plain.dtype == np.int32
