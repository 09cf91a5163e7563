"""The mixture of experts against a loop over experts and tokens, its losses against their formulas, on one device and on many."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.core import flops
from research.core.config import make
from research.model import transformer
from research.model.attention import grouped
from research.model.ffn import dense, moe
from research.model.inputs import HeadConfig, Inputs
from research.model.layers import ACTIVATIONS
from research.parallel import mesh as meshes
from research.parallel.rules import RULES
from research.training.step import make_train_step
from tests import drawn
from tests.contracts import common
from tests.contracts.common import corrupted
from tests.mesh_invariance import DOUBLE, MESHES, losses

B, L, D = 8, 6, 8
SIZES = dict(width=D, deviation=0.5, out_deviation=0.5, dtype="float32", param_dtype="float32")
CONFIGS = {
    "top-1": moe.Config(experts=4, active=1, hidden=12, normalize=False),
    "top-2": moe.Config(experts=4, active=2, hidden=12, gated=True, activation="silu"),
    "capacity": moe.Config(experts=4, active=2, hidden=12, normalize=False, capacity=0.75),
}


def layer(cfg, **changes):
  module = make(cfg, **{**SIZES, **changes})
  x = jax.random.normal(jax.random.key(0), (B, L, D), changes.get("dtype", "float32"))
  counts = jnp.asarray(np.arange(L) < np.array([6, 5, 6, 3, 6, 6, 1, 6])[:, None], jnp.float32)
  return module, nn.unbox(jax.jit(module.init)(jax.random.key(1), x, counts))["params"], x, counts


def choices(cfg, params, x, counts):
  """What every token chooses, and which of it its expert takes: bool [B, L, E] each, token by token."""
  p = np.asarray(jax.nn.softmax(x @ params["router"]["kernel"]))
  chosen, taken = np.zeros(p.shape, bool), np.zeros(p.shape, bool)
  slots = np.inf if cfg.capacity is None else -(-cfg.capacity * cfg.active * L // cfg.experts)
  for row, token in zip(*np.nonzero(counts)):
    for e in np.argsort(-p[row, token], kind="stable")[: cfg.active]:
      chosen[row, token, e] = True
      taken[row, token, e] = chosen[row, :, e].sum() <= slots
  return chosen, taken


def by_hand(cfg, chosen, taken, params, x):
  """(y [B, L, D], balance [B], router_z [B]), one expert after the other, each over all tokens."""
  act, real = ACTIVATIONS[cfg.activation], chosen.any(-1)
  logits = x @ params["router"]["kernel"]
  p = jax.nn.softmax(logits)
  weights = p / jnp.where(real, jnp.sum(p * chosen, axis=-1), 1.0)[..., None] if cfg.normalize else p
  y = jnp.zeros_like(x)
  for e in range(cfg.experts):
    up = x @ params["experts_up"]["kernel"][e]
    h = act(x @ params["experts_gate"]["kernel"][e]) * up if cfg.gated else act(up)
    y += jnp.where(taken[..., e, None], weights[..., e, None] * (h @ params["experts_down"]["kernel"][e]), 0)
  mean = lambda values: jnp.stack([jnp.mean(values[row][real[row]], axis=0) for row in range(B)])
  balance = cfg.experts * jnp.sum(mean(chosen / cfg.active) * mean(p), axis=-1)
  return y, balance, mean(jnp.square(jnp.log(jnp.sum(jnp.exp(logits), axis=-1))))


@pytest.fixture
def float64():
  """So that another order of a sum is no difference."""
  with jax.enable_x64(True):
    yield


@pytest.mark.parametrize("name", CONFIGS)
def test_it_equals_a_loop_over_tokens_and_experts(name, float64):
  cfg = CONFIGS[name]
  module, params, x, counts = layer(cfg, **DOUBLE)
  chosen, taken = choices(cfg, params, x, counts)

  def ours(params, x):
    y, aux = module.apply({"params": params}, x, counts)
    return jnp.sum(jnp.sin(y)) + sum(aux[loss].factor * jnp.sum(aux[loss].values) for loss in aux), (y, aux)

  def theirs(params, x):
    y, balance, router_z = by_hand(cfg, chosen, taken, params, x)
    return jnp.sum(jnp.sin(y)) + cfg.balance * jnp.sum(balance) + cfg.router_z * jnp.sum(router_z), (y, balance, router_z)

  (value, (y, aux)), grads = jax.jit(jax.value_and_grad(ours, argnums=(0, 1), has_aux=True))(params, x)
  (wanted, (wanted_y, balance, router_z)), wanted_grads = jax.jit(jax.value_and_grad(theirs, argnums=(0, 1), has_aux=True))(params, x)
  np.testing.assert_allclose(y, wanted_y, atol=1e-12)
  np.testing.assert_allclose(aux["balance"].values, balance, rtol=1e-12)
  np.testing.assert_allclose(aux["router_z"].values, router_z, rtol=1e-12)
  assert float(value) == pytest.approx(float(wanted), rel=1e-12)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), grads, wanted_grads)
  if cfg.capacity is not None:
    dropped = (chosen & ~taken).sum((1, 2)) / chosen.sum((1, 2))
    assert 0 < dropped.max() < 1
    np.testing.assert_allclose(aux["dropped"].values, dropped, rtol=1e-12)
  np.testing.assert_allclose(aux["busiest_expert"].values, cfg.experts * chosen.sum(1).max(1) / chosen.sum((1, 2)), rtol=1e-12)


def test_one_expert_is_the_plain_network():
  cfg = moe.Config(experts=1, active=1, hidden=12, gated=True)
  module, params, x, _ = layer(cfg)
  plain = {name: {"kernel": params[f"experts_{name}"]["kernel"][0]} for name in ("gate", "up", "down")}
  network = make(dense.Config(hidden=12, gated=True, activation=cfg.activation), **SIZES)
  both = jax.jit(lambda params, plain: (module.apply({"params": params}, x, None), network.apply({"params": plain}, x, None)))
  (found, aux), (wanted, none) = both(params, plain)
  np.testing.assert_allclose(found, wanted, atol=1e-6)
  np.testing.assert_allclose(aux["balance"].values, 1.0, rtol=1e-6)
  assert none == {}


@pytest.mark.parametrize("name,axes", [("top-2", dict(expert=2, fsdp=2, tensor=2)), ("capacity", dict(expert=4, sequence=2)), ("top-1", dict(expert=2, data=3))])
def test_on_a_mesh_it_gives_the_same(name, axes):
  """With a mesh that cannot deal out the rows too: three devices along data leave the rows whole."""
  with jax.enable_x64(True):
    module, params, x, counts = layer(CONFIGS[name], dtype="float64", param_dtype="float64")

    def f(params, x):
      y, aux = module.apply({"params": params}, x, counts)
      return jnp.sum(jnp.sin(y)) + sum(jnp.sum(each.factor * each.values) for each in aux.values()), y

    gradient = lambda: jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(params, x)
    one = gradient()
    mesh = meshes.make(meshes.Config(**{"data": 1, **axes}), jax.devices()[: int(np.prod(list(axes.values())))])
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
      many = gradient()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), one, many)


def test_a_run_on_any_mesh_has_the_same_losses():
  """In float64, for a choice hangs on the numbers; tests/mesh_invariance.py runs fifty steps on every mesh."""
  one = np.array(losses("causal_lm-experts", dict(data=1), 8, layers=1, **DOUBLE))
  many = losses("causal_lm-experts", MESHES["expert 2 × fsdp 2 × tensor 2"], 8, layers=1, **DOUBLE)
  assert np.abs(one - many).max() <= 1e-9


def test_operations_are_those_of_the_active_experts_on_any_mesh():
  cfg = CONFIGS["top-2"]
  module, params, x, _ = layer(cfg)
  step = lambda params, x: jax.grad(lambda *args: jnp.sum(jnp.square(module.apply({"params": args[0]}, args[1], None)[0])), argnums=(0, 1))(params, x)
  router, expert = 2 * B * L * D * cfg.experts, 3 * 2 * B * L * D * cfg.hidden
  wanted = 3 * (router + cfg.active * expert)
  combined = 3 * 2 * B * L * cfg.active * D  # the sum of a token's experts, with their weights
  assert flops.count(step, params, x).total == wanted + combined
  with jax.set_mesh(meshes.make(meshes.Config(data=2, expert=4))), nn.logical_axis_rules(RULES):
    counted = flops.count(step, params, x).by_primitive
  assert counted["ragged_dot_general"] == 3 * cfg.active * expert


def experts_model(**changes):
  objective, model = common.parts("causal_lm-experts", model_keys=changes)
  return objective, model, drawn.parameters(model)


def test_training_adds_the_models_own_losses_and_microbatches_change_nothing():
  objective, model, params = experts_model(layers=1)
  batch = common.batch(objective, 8)
  optimizer = optax.with_extra_args_support(optax.sgd(1.0))

  def update(microbatches):
    step = jax.jit(make_train_step(transformer.bind(model), objective, optimizer, microbatches))
    after, metrics = step(common.state(params, optimizer), batch)
    return jax.tree.map(lambda a, b: a - b, params, after.params), {name: float(getattr(m, "value", lambda m=m: m)()) for name, m in metrics.items()}

  one, metrics = update(1)
  cfg = model.cfg.ffn
  assert metrics["loss"] == pytest.approx(metrics["loss_lm"] + cfg.balance * metrics["balance"] + cfg.router_z * metrics["router_z"], rel=1e-6)
  example = corrupted(objective, jax.random.key(0), batch, 0)
  terms, _ = objective.loss(common.compiled(model), params, example, None, False)
  assert metrics["loss_lm"] == pytest.approx(float(terms["lm"].value()), rel=1e-6)
  many, parts = update(4)
  for name in ("loss", "loss_lm", "balance", "router_z", "busiest_expert"):
    assert parts[name] == pytest.approx(metrics[name], rel=2e-6), name
  assert float(optax.tree.norm(jax.tree.map(lambda a, b: a - b, one, many))) <= 1e-5 * float(optax.tree.norm(one))


def test_own_losses_are_means_over_layers_scanned_or_not_and_a_place_asked_twice_counts_once():
  _, model, params = experts_model()
  inputs = Inputs(jnp.asarray(np.random.default_rng(0).integers(7, common.SIZE, (3, common.LENGTH)), jnp.int32))
  apply = lambda model, params, read: jax.jit(lambda params: transformer.bind(model)(params, inputs, read={"lm": read}).aux)(params)
  whole = apply(model, params, None)
  stacked = {**params, "stack": {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params["stack"][f"block_{i}"] for i in range(2)))}}
  scanned = apply(model.clone(cfg=dataclasses.replace(model.cfg, scan=True)), stacked, None)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), whole, scanned)
  few = jnp.broadcast_to(jnp.array([2, 5, 9]), (3, 3))
  twice = jnp.broadcast_to(jnp.array([2, 5, 9, 5, 5]), (3, 5))
  once, again = apply(model, params, few), apply(model, params, twice)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), once, again)
  assert np.abs(once["router_z"].values - whole["router_z"].values).min() > 1e-3


def test_an_encoder_and_its_decoder_both_have_experts():
  cfg = transformer.Config(layers=1, encoder_layers=1, width=16, attention=grouped.Config(heads=2), ffn=moe.Config(experts=4, hidden=8))
  model = transformer.make(cfg, common.SIZE, {"lm": HeadConfig()}, 6)
  tokens = jnp.arange(12).reshape(2, 6)
  inputs = Inputs(tokens, source=Inputs(tokens, kind="full"))

  def aux(params, inputs):
    return transformer.bind(model)(params, inputs, read={"lm": None}).aux["router_z"].values

  params = drawn.parameters(model)
  grads = jax.jit(jax.grad(lambda params: jnp.sum(aux(params, inputs))))(params)
  for stack in ("stack", "encoder"):
    assert jnp.abs(grads[stack]["block_0"]["feed_forward"]["router"]["kernel"]).max() > 0


@pytest.mark.parametrize("keys,named", [(dict(active=9), "active"), (dict(active=1), "normalize"), (dict(capacity=0.0), "capacity")])
def test_settings_that_cannot_be_are_refused(keys, named):
  with pytest.raises(ValueError, match=named):
    moe.Config(**keys)
