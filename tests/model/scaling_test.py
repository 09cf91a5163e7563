"""Scalings of rotary positions: their limits, which hold without a reference; tests/hf compares the numbers with transformers."""

import jax.numpy as jnp
import numpy as np
import pytest

from research.core import config as configs
from research.core.overrides import resolve
from research.model import transformer
from research.model.position import rotary
from research.model.position.scaling import dynamic, linear, llama3, longrope, yarn

D, BASE = 16, 10000.0
PLAIN = BASE ** (-np.arange(0, D, 2) / D)
ROW = jnp.full((1, 1, 1, 1), 8)


def speeds(cfg, longest=ROW):
  return tuple(map(np.asarray, configs.make(cfg, BASE, D, longest)))


@pytest.mark.parametrize("cfg", [linear.Config(), dynamic.Config(3.0, 100), llama3.Config(1.0), yarn.Config(), longrope.Config((1.0,) * 8, (2.0,) * 8)])
def test_nothing_changes_without_a_factor_or_within_the_length(cfg):
  frequency, factor = speeds(cfg)
  np.testing.assert_allclose(np.broadcast_to(frequency, (1, 1, 1, D // 2))[0, 0, 0], PLAIN, rtol=1e-5)
  assert factor == 1.0


def test_slow_planes_are_interpolated_and_fast_ones_stay():
  for cfg in (llama3.Config(8.0, length=64), yarn.Config(8.0, length=64)):
    frequency, _ = speeds(cfg)
    np.testing.assert_allclose(frequency[[0, -1]], [PLAIN[0], PLAIN[-1] / 8], rtol=1e-5)
    assert (np.diff(frequency) < 0).all() and (frequency <= PLAIN * 1.00001).all() and (frequency >= PLAIN / 8.00001).all()


def test_speeds_follow_the_length_of_each_row():
  longest = jnp.array([50, 400]).reshape(2, 1, 1, 1)
  frequency, _ = speeds(dynamic.Config(3.0, 100), longest)
  np.testing.assert_allclose(frequency[0, 0, 0], PLAIN, rtol=1e-5)
  assert (frequency[1, 0, 0, 1:] < PLAIN[1:] * 0.99).all()
  frequency, _ = speeds(longrope.Config((1.0,) * 8, (2.0,) * 8, length=100), longest)
  np.testing.assert_allclose(frequency[:, 0, 0], [PLAIN, PLAIN / 2], rtol=1e-5)


def test_sharper_scores():
  assert speeds(yarn.Config(4.0))[1] == pytest.approx(0.1 * np.log(4) + 1)
  assert speeds(longrope.Config((1.0,) * 8, (1.0,) * 8, 64, 4.0))[1] == pytest.approx(np.sqrt(1 + np.log(4) / np.log(64)))


def test_mistakes():
  with pytest.raises(ValueError, match="high must be greater"):
    llama3.Config(low=4.0, high=1.0)
  with pytest.raises(ValueError, match="long has 3 factors; a head of width 16 has 8 planes"):
    speeds(longrope.Config((1.0,) * 8, (1.0,) * 3))


def test_a_scaling_is_chosen_by_name():
  config = configs.use("model.transformer")
  cfg = configs.typed(resolve(config, ["position.scaling=model.position.scaling.yarn", "position.scaling.factor=4"]))
  assert cfg == transformer.Config(position=rotary.Config(scaling=yarn.Config(4.0)))
