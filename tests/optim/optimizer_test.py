"""Optimizers against numpy written from the papers, against optax, and a contract that every algorithm keeps."""

from __future__ import annotations

import dataclasses
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from research.core.errors import UserError
from research.core.trees import map_named, named_leaves
from research.model import transformer
from research.model.inputs import HeadConfig
from research.optim import optimizer
from research.optim.optimizer import Config
from research.optim.schedule import Config as Schedule

ALGORITHMS = typing.get_args(typing.get_type_hints(Config)["algorithm"])
STEPS = 50
CONSTANT = Schedule(peak=0.01, warmup=0, shape="constant")


def tree(seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return {
      "block_0": {
          "attention": {"query": {"kernel": draw(8, 2, 4)}, "out": {"kernel": draw(2, 4, 8)}},
          "attention_norm": {"scale": draw(8)},
          "ffn": {"up": {"kernel": draw(8, 16), "bias": draw(16)}},
      },
      "embed": {"embedding": draw(11, 8)},
  }


def config(algorithm, **changes):
  changes = {"schedule": CONSTANT, "clip": None, "weight_decay": 0.0, **changes}
  return Config(algorithm=algorithm, **changes)


def trained(opt, params, grads):
  """Parameters and state after one update for each tree of gradients."""
  params = jax.tree.map(jnp.asarray, params)
  state = opt.init(params)

  @jax.jit
  def step(params, state, g):
    updates, state = opt.update(g, state, params, loss=jnp.float32(1))
    return optax.apply_updates(params, updates), state

  for g in grads:
    params, state = step(params, state, g)
  return params, state


def close(a, b, rtol=1e-5, atol=1e-6):
  for (name, x), (_, y) in zip(named_leaves(a), named_leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=name)


GRADS = [tree(seed) for seed in (1, 2, 3)]


# --- references in numpy -----------------------------------------------------------------------------------------------------


def reference(direction, decays=lambda name: False, weight_decay=0.0, rate=lambda step: 0.01):
  """Parameters after GRADS by p ← p − rate · (direction(memory, g, step) + weight_decay · p), in float64."""

  def one(name, p):
    p, memory = p.astype(np.float64), {}
    for step, grads in enumerate(GRADS):
      d = direction(memory, dict(named_leaves(grads))[name].astype(np.float64), step)
      p = p - rate(step) * (d + weight_decay * decays(name) * p)
    return p

  return map_named(one, tree())


def adam_direction(memory, g, step, b1=0.8, b2=0.9, epsilon=1e-3):
  memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
  memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g**2
  return memory["m"] / (1 - b1 ** (step + 1)) / (np.sqrt(memory["v"] / (1 - b2 ** (step + 1))) + epsilon)


def test_adamw():
  decays = lambda name: name.endswith(("kernel", "embedding"))
  schedule = Schedule(peak=0.01, warmup=2, shape="constant")
  cfg = config("adamw", b1=0.8, b2=0.9, epsilon=1e-3, weight_decay=0.3, schedule=schedule)
  wanted = reference(adam_direction, decays, 0.3, rate=lambda step: 0.01 * min(1, (step + 1) / 3))
  close(trained(optimizer.make(cfg, STEPS, tree()), tree(), GRADS)[0], wanted)


def test_adam():
  cfg = config("adam", b1=0.8, b2=0.9, epsilon=1e-3)
  close(trained(optimizer.make(cfg, STEPS), tree(), GRADS)[0], reference(adam_direction))


@pytest.mark.parametrize("momentum,nesterov", [(0.0, False), (0.7, False), (0.7, True)])
def test_sgd(momentum, nesterov):
  def direction(memory, g, step):
    memory["m"] = momentum * memory.get("m", 0) + g
    return g + momentum * memory["m"] if nesterov else memory["m"]

  cfg = config("sgd", momentum=momentum, nesterov=nesterov, weight_decay=0.2, decay="bias")
  wanted = reference(direction, lambda name: "bias" in name, 0.2)
  close(trained(optimizer.make(cfg, STEPS), tree(), GRADS)[0], wanted)


def test_lion():
  def direction(memory, g, step):
    m = memory.get("m", 0)
    memory["m"] = 0.6 * m + 0.4 * g
    return np.sign(0.9 * m + 0.1 * g)

  close(trained(optimizer.make(config("lion", b1=0.9, b2=0.6), STEPS), tree(), GRADS)[0], reference(direction))


@pytest.mark.parametrize("parameter_scale", [True, False])
def test_adafactor_is_that_of_optax(parameter_scale):
  rng = np.random.default_rng(0)
  draw = lambda: {"factored": rng.normal(size=(130, 128)).astype(np.float32), "bias": rng.normal(size=5).astype(np.float32)}
  params, grads = draw(), [draw(), draw()]
  ours, state = trained(optimizer.make(config("adafactor", parameter_scale=parameter_scale), STEPS), params, grads)
  theirs = optax.adafactor(0.01, multiply_by_parameter_scale=parameter_scale)
  wanted, memory = jax.tree.map(jnp.asarray, params), theirs.init(params)
  for g in grads:
    updates, memory = theirs.update(g, memory, wanted)
    wanted = optax.apply_updates(wanted, updates)
  close(ours, wanted)
  assert max(leaf.size for leaf in jax.tree.leaves(state)) == 130  # no second moment of full size


# --- clipping, decay, averages -----------------------------------------------------------------------------------------------


def test_gradients_are_clipped_to_a_global_norm():
  grads = GRADS[0]
  norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads)))
  update = lambda clip: jax.tree.map(
      lambda new, old: (old - new) / 0.01,
      trained(optimizer.make(config("sgd", clip=clip, momentum=0.0), STEPS), tree(), [grads])[0], tree(),
  )  # fmt: skip
  close(update(norm / 4), jax.tree.map(lambda g: g / 4, grads), atol=1e-4)
  close(update(norm * 4), grads, atol=1e-4)


@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if a != "adam"])
def test_only_chosen_parameters_decay(algorithm):
  zeros = jax.tree.map(np.zeros_like, tree())
  params, _ = trained(optimizer.make(config(algorithm, weight_decay=0.5), STEPS, tree()), tree(), [zeros] * 3)
  for name, leaf in named_leaves(params):
    start = dict(named_leaves(tree()))[name]
    if name.endswith(("kernel", "embedding")):
      np.testing.assert_allclose(leaf, start * (1 - 0.01 * 0.5) ** 3, rtol=1e-5, err_msg=name)
    else:
      np.testing.assert_array_equal(leaf, start, err_msg=name)


def test_the_defaults_decay_the_kernels_and_embeddings_of_the_model():
  for scan in (False, True):
    cfg = transformer.Config(layers=2, width=8, norm="layer", norm_bias=True, scan=scan, token_types=2)
    cfg = dataclasses.replace(cfg, attention=dataclasses.replace(cfg.attention, heads=2, bias=True))
    model = transformer.make(cfg, 11, {"tokens": HeadConfig("token", bias=True)}, 4)
    shapes = nn.unbox(jax.eval_shape(lambda key: transformer.init(model, key), jax.random.key(0)))
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    ones = jax.tree.map(np.ones_like, zeros)
    after, _ = trained(optimizer.make(config("sgd", weight_decay=0.5), STEPS, shapes), ones, [zeros])
    decayed = {name.rpartition("/")[2] for name, leaf in named_leaves(after) if np.all(leaf < 1)}
    kept = {name.rpartition("/")[2] for name, leaf in named_leaves(after) if np.all(leaf == 1)}
    assert decayed == {"kernel", "embedding"} and kept == {"scale", "bias"}
    # Muon knows every kernel of a block as a matrix.
    state = jax.eval_shape(optimizer.make(config("muon"), STEPS, shapes).init, shapes)
    by_muon = {name.partition("/mu/")[2] for name, _ in named_leaves(state) if "/muon/" in name and "/mu/" in name}
    assert by_muon == {name for name, _ in named_leaves(shapes) if name.startswith("stack") and name.endswith("kernel")}


def test_average_of_parameters():
  opt = optimizer.make(config("adamw", ema=0.75), STEPS)
  wanted = jax.tree.map(np.float64, tree())
  for n in range(4):
    params, state = trained(opt, tree(), GRADS[:n])
    wanted = wanted if n == 0 else jax.tree.map(lambda average, p: 0.75 * average + 0.25 * np.float64(p), wanted, params)
    close(optimizer.ema_params(state), wanted)
  plain = trained(optimizer.make(config("adamw"), STEPS), tree(), GRADS)
  close(params, plain[0], atol=0, rtol=0)  # the average changes nothing
  assert optimizer.ema_params(plain[1]) is None


def test_average_is_found_in_a_saved_state():
  _, state = trained(optimizer.make(config("muon", ema=0.75), STEPS), tree(), GRADS)
  as_saved = lambda x: (
      {k: as_saved(v) for k, v in x._asdict().items()} if hasattr(x, "_asdict")
      else {k: as_saved(v) for k, v in x.items()} if isinstance(x, dict)
      else [as_saved(v) for v in x] if isinstance(x, tuple) else np.asarray(x)
  )  # fmt: skip
  close(optimizer.saved_average(as_saved(state)), optimizer.ema_params(state))
  _, state = trained(optimizer.make(config("muon"), STEPS), tree(), GRADS)
  assert optimizer.saved_average(as_saved(state)) is None


def test_narrow_parameters_have_a_wide_state():
  params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), tree())
  grads = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), GRADS[0])
  after, state = trained(optimizer.make(config("adamw", ema=0.9), STEPS), params, [grads])
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(after)} == {"bfloat16"}
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} == {"int32", "float32"}


# --- the contract ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_contract(algorithm):
  """A quadratic goes down; the state is arrays of constant shapes; jit with donation works."""
  target = tree(7)
  cfg = config(algorithm, ema=0.9, clip=1.0, spike=10.0, schedule=Schedule(peak=0.02, warmup=2), weight_decay=0.0)
  opt = optimizer.make(cfg, STEPS, target)
  loss = lambda params: sum(jnp.sum(jnp.square(p - t)) for p, t in zip(jax.tree.leaves(params), jax.tree.leaves(target)))

  def step(params, state):
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = opt.update(grads, state, params, loss=value)
    return optax.apply_updates(params, updates), state, value

  params = jax.tree.map(jnp.asarray, tree())
  state = opt.init(params)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
  before = jax.tree.map(lambda x: (x.shape, x.dtype), (params, state))
  step = jax.jit(step, donate_argnums=(0, 1))
  values = []
  for _ in range(STEPS):
    params, state, value = step(params, state)
    values.append(float(value))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), (params, state)) == before
  assert values[-1] < 0.9 * values[0] and np.all(np.isfinite(values)) and int(state.skipped) == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_has_a_parameters_shape_bears_its_name(algorithm):
  """By which a mesh places it like the parameter."""
  zeros = lambda *shape: jnp.zeros(shape, jnp.float32)
  params = {"embed": {"embedding": zeros(23, 8)}, "block_0": {"ffn": {"up": {"kernel": zeros(8, 17)}}}}
  state = optimizer.make(config(algorithm, ema=0.9), STEPS).init(params)
  names = dict(named_leaves(params))
  for name, leaf in named_leaves(state):
    if leaf.size >= 100:
      assert any(name.endswith("/" + of) and leaf.shape == names[of].shape for of in names), name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_mesh_does_not_matter(algorithm):
  devices = jax.devices()
  mesh = jax.make_mesh((len(devices),), ("fsdp",), axis_types=(AxisType.Auto,), devices=devices)
  spec = lambda x: PartitionSpec("fsdp") if x.shape and x.shape[0] % len(devices) == 0 else PartitionSpec()
  place = lambda x: jax.device_put(x, NamedSharding(mesh, spec(x)))
  opt = optimizer.make(config(algorithm, ema=0.9), STEPS)
  step = jax.jit(lambda g, s, p: opt.update(g, s, p, loss=jnp.float32(1)))
  params = jax.tree.map(jnp.asarray, tree())
  plain, _ = step(GRADS[0], opt.init(params), params)
  sharded, _ = step(jax.tree.map(place, GRADS[0]), jax.tree.map(place, opt.init(params)), jax.tree.map(place, params))
  close(sharded, plain, rtol=1e-4)


def test_learning_rate_can_be_read():
  cfg = Config(schedule=Schedule(peak=0.1, warmup=4, shape="constant"))
  assert [round(float(optimizer.learning_rate(cfg, 9)(step)), 6) for step in (0, 4, 8)] == [0.02, 0.1, 0.1]


@pytest.mark.parametrize("changes,message", [
    ({"algorithm": "adam", "weight_decay": 0.1}, "optimizer.weight_decay is 0.1"),
    ({"b2": 1.0}, "optimizer.b2"),
    ({"clip": 0.0}, "optimizer.clip"),
    ({"ema": 1.0}, "optimizer.ema"),
    ({"spike": 0.5}, "optimizer.spike"),
    ({"weight_decay": -0.1}, "optimizer.weight_decay"),
    ({"decay": "(kernel"}, "optimizer.decay .* is not a regular expression"),
    ({"decay": "kernels", "weight_decay": 0.1}, "optimizer.decay 'kernels' chooses no parameter"),
    ({"algorithm": "muon", "muon": "layer_.*"}, "optimizer.muon 'layer_.*' chooses no parameter"),
    ({"algorithm": "muon", "muon": "scale"}, "optimizer.muon chooses 'block_0/attention_norm/scale'"),
])  # fmt: skip
def test_wrong_keys_are_named(changes, message):
  with pytest.raises(UserError, match=message):
    optimizer.make(dataclasses.replace(config("adamw"), **changes), STEPS, tree())
