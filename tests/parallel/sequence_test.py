"""Rows whose places are spread over devices: what is sent, and that every kernel gives the same there."""

from __future__ import annotations

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.model.attention import grouped
from research.model.attention.core import attend
from research.model.attention.kernels import splash
from research.model.inputs import Sight
from research.model.layers import constrain
from research.parallel import mesh as meshes
from research.parallel.rules import RULES
from tests.contracts import common
from tests.contracts.common import corrupted


def on(axes):
  return meshes.make(meshes.Config(**{"data": 1, **axes}), jax.devices()[: int(np.prod(list(axes.values())))])


def test_of_a_row_only_keys_and_values_are_gathered():
  """Forward and backward pass of two layers with 4 heads and 2 key heads of width 8: no hidden state, query or score crosses to another device."""
  objective, _, params, apply = common.build("causal_lm", model_keys=dict(attention=grouped.Config(heads=4, kv_heads=2)), length=32)
  batch, mesh = common.batch(objective, 4), on(dict(data=2, sequence=2))

  def gradient(params, batch):
    example = corrupted(objective, jax.random.key(0), batch, 0)
    return jax.grad(lambda params: objective.loss(apply, params, example, None, False)[0]["lm"].total)(params)

  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    text = jax.jit(gradient).lower(params, meshes.put(batch, mesh)).compile().as_text()
  sent = re.findall(r"= \(?\w+\[([\d,]*)\]\S* (all-gather|all-to-all|collective-permute)\(", text)
  assert sent == [("2,32,2,8", "all-gather")] * 4, sent


@pytest.mark.parametrize("kernel, axes", [("splash", dict(sequence=2, tensor=2)), ("splash", dict(data=2, tensor=2)), ("chunked", dict(sequence=2, tensor=2)), ("xla", dict(sequence=4))])
def test_kernels_on_a_mesh_equal_the_plain_one_without(kernel, axes, monkeypatch):
  monkeypatch.setattr(splash, "INTERPRET", True)
  rng, L = np.random.default_rng(0), 200
  q, k, v = (jnp.asarray(rng.normal(size=(2, L, heads, 8)), jnp.float32) for heads in (4, 2, 2))
  place, segments = jnp.tile(jnp.arange(L), (2, 1)), jnp.asarray(np.sort(rng.integers(0, 3, (2, L)), axis=1))
  sight = Sight(place, place, segments, segments, kind="causal")

  def both(q, k, v, kernel):
    def loss(q, k, v):
      q = constrain(q, "batch", "length", "heads", "head_dim")
      out = attend(q, k, v, sight, scale=0.3, kernel=kernel)
      return jnp.sum(jnp.sin(out)), out

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)

  run = jax.jit(both, static_argnames="kernel")
  want = run(q, k, v, "xla")
  with jax.set_mesh(on(axes)), nn.logical_axis_rules(RULES):
    got = run(q, k, v, kernel)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5), want, got)


def test_what_a_mesh_does_not_divide_stays_whole():
  with jax.set_mesh(on(dict(sequence=4))), nn.logical_axis_rules(RULES):
    spread = jax.jit(lambda x: constrain(x, "batch", "length", "embed"))
    assert spread(jnp.zeros((2, 8, 4))).sharding.shard_shape((2, 8, 4)) == (2, 2, 4)
    assert spread(jnp.zeros((2, 9, 4))).sharding.is_fully_replicated
