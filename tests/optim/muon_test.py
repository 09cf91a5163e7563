"""Muon: every kernel is orthogonalised as the matrix that it is, whatever axes it is stored with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from research.optim import optimizer
from research.optim.schedule import Config as Schedule
from tests.compiling import FULL

D, H, d, F = 16, 4, 3, 40
UP = "block_0/ffn/up/kernel"


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def directions(params, grads, **changes):
  """−update / rate after two steps, so that momentum has a part in it."""
  cfg = optimizer.Config(algorithm="muon", schedule=Schedule(peak=1.0, warmup=0, shape="constant"), clip=None,
                         weight_decay=changes.pop("weight_decay", 0.0), **changes)  # fmt: skip
  opt = optimizer.make(cfg, 10, params)
  params = jax.tree.map(jnp.asarray, params)
  update = jax.jit(lambda g, state: opt.update(g, state, params, loss=jnp.float32(1)), compiler_options=FULL)  # the iteration magnifies rounding
  state = opt.init(params)
  for g in grads:
    updates, state = update(g, state)
  return jax.tree.map(lambda u: -np.asarray(u), updates)


def of_kernels(grads, **changes):
  """{name: direction} for {name: gradients of that kernel}."""
  unflatten = lambda n: traverse_util.unflatten_dict({name: both[n] for name, both in grads.items()}, sep="/")
  return traverse_util.flatten_dict(directions(unflatten(0), [unflatten(0), unflatten(1)], **changes), sep="/")


ATTENTION = {
    "block_0/attention/query/kernel": ((D, H, d), (D, H * d)),
    "block_0/attention/key/kernel": ((D, 1, d), (D, d)),
    "stack/block_1/cross_attention/value/kernel": ((D, H, 5), (D, H * 5)),
    "stack/block_0/attention/out/kernel": ((H, d, D), (H * d, D)),
}


@pytest.mark.parametrize("scale", ["rms", "shape"])
def test_attention_kernels_are_matrices_of_all_heads(scale):
  grads = {name: [draw(*shape, seed=seed) for seed in (1, 2)] for name, (shape, _) in ATTENTION.items()}
  flat = {f"block_0/{i}/kernel": [g.reshape(ATTENTION[name][1]) for g in grads[name]] for i, name in enumerate(grads)}
  ours, wanted = of_kernels(grads, muon_scale=scale), of_kernels(flat, muon_scale=scale)
  for i, (name, (_, matrix)) in enumerate(ATTENTION.items()):
    np.testing.assert_allclose(ours[name].reshape(matrix), wanted[f"block_0/{i}/kernel"], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("scale", ["rms", "shape"])
def test_stacked_layers_are_apart_and_experts_too(scale):
  kinds = {"ffn/up": (D, F), "ffn/down": (F, D), "attention/query": (D, H, d), "attention/out": (H, d, D)}
  grads = {kind: [draw(2, *shape, seed=seed) for seed in (1, 2)] for kind, shape in kinds.items()}
  stacked = of_kernels({f"stack/blocks/{kind}/kernel": both for kind, both in grads.items()}, muon_scale=scale)
  apart = {f"stack/block_{i}/{kind}/kernel": [g[i] for g in both] for kind, both in grads.items() for i in range(2)}
  unrolled = of_kernels(apart, muon_scale=scale)
  for name, update in unrolled.items():
    _, block, rest = name.split("/", 2)
    np.testing.assert_allclose(stacked[f"stack/blocks/{rest}"][int(block[-1])], update, atol=1e-5, err_msg=name)
  experts = of_kernels({"block_0/feed_forward/experts_up/kernel": grads["ffn/up"]}, muon_scale=scale)["block_0/feed_forward/experts_up/kernel"]
  for i in range(2):
    np.testing.assert_allclose(experts[i], unrolled[f"stack/block_{i}/ffn/up/kernel"], atol=1e-5)


@pytest.mark.parametrize("shape", [(D, F), (F, D), (D, D)])
def test_singular_values_are_near_one(shape):
  grads = [draw(*shape, seed=seed) * 1e-3 for seed in (1, 2)]
  update = of_kernels({UP: grads}, muon_scale="shape")[UP] / np.sqrt(max(1, shape[1] / shape[0]))
  values = np.linalg.svd(update, compute_uv=False)
  assert np.all((values > 0.5) & (values < 1.3))
  momentum = 0.95 * (0.95 * grads[0] + grads[1]) + grads[1]  # Nesterov's, but for the correction of the start
  u, _, v = np.linalg.svd(momentum, full_matrices=False)
  assert np.sum(update * (u @ v)) / np.linalg.norm(update) / np.linalg.norm(u @ v) > 0.9


def test_rms_is_that_of_adam():
  for shape in ((D, F), (F, D)):
    update = of_kernels({UP: [draw(*shape), draw(*shape, seed=1)]})[UP]
    assert 0.15 < np.sqrt(np.mean(update**2)) < 0.25


def test_other_parameters_go_by_adamw_and_the_rate_is_for_matrices_only():
  ffn = {"up": {"kernel": draw(D, F), "bias": draw(F)}}
  params = {"block_0": {"ffn": ffn}, "embed": {"embedding": draw(7, D)}, "head": {"kernel": draw(7, D)}}
  grads = [jax.tree.map(lambda p, seed=seed: draw(*p.shape, seed=seed), params) for seed in (1, 2)]
  once, thrice = directions(params, grads, weight_decay=0.1), directions(params, grads, weight_decay=0.1, muon_rate=3.0)
  adamw = optimizer.make(optimizer.Config(schedule=Schedule(peak=1.0, warmup=0, shape="constant"), clip=None), 10)
  state = adamw.init(params)
  for g in grads:
    updates, state = adamw.update(g, state, params, loss=jnp.float32(1))
  for path in (("embed", "embedding"), ("head", "kernel")):
    for tree in (once, thrice):
      np.testing.assert_allclose(tree[path[0]][path[1]], -np.asarray(updates[path[0]][path[1]]), rtol=1e-5, atol=1e-6)
  up = lambda tree: tree["block_0"]["ffn"]["up"]
  np.testing.assert_allclose(up(once)["bias"], -np.asarray(up(updates)["bias"]), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(up(thrice)["kernel"], 3 * up(once)["kernel"], rtol=1e-5)
  assert optax.tree.norm({"difference": up(once)["kernel"] + np.asarray(up(updates)["kernel"])}) > 1
