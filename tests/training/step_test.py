"""The whole training step: what it reports, and that a bad batch leaves no trace but a count."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.core import config as configs
from research.core.types import Mean
from research.model.inputs import Output
from research.optim import guard, optimizer, schedule
from research.training.step import gradient_norms, in_microbatches, make_train_step
from tests.contracts import common
from tests.contracts.common import corrupted
from tests.hf.common import quick

BAD = 5  # index of the row that makes a batch's loss NaN


def poisoned(objective, how):
  """The objective, its loss (or gradient) not finite where the batch holds row BAD."""

  def loss(apply, params, example, key, train):
    terms, metrics = objective.loss(apply, params, example, key, train)
    (name, mean), *_ = terms.items()
    bad = jnp.any(example.inputs.tokens[:, 0] == BAD)
    leaf = jax.tree.leaves(params)[0]
    # √0 has an infinite gradient, so the second form has a finite loss.
    extra = jnp.nan if how == "loss" else jnp.sqrt(jnp.sum(leaf - jax.lax.stop_gradient(leaf)))
    return {**terms, name: mean.replace(total=mean.total + jnp.where(bad, extra, 0.0))}, metrics

  return objective._replace(loss=loss)


@pytest.fixture(scope="module")
def built():
  objective, _, params, apply = common.build("causal_lm", dropout=0.1)
  cfg = optimizer.Config(schedule=schedule.Config(peak=1e-2, warmup=1), ema=0.9)
  return objective, params, apply, configs.make(cfg, 20)


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_bad_batch_is_skipped_and_counted(built, how, microbatches):
  objective, params, apply, optim = built
  step = jax.jit(make_train_step(apply, poisoned(objective, how), optim, microbatches))
  first = common.batch(objective, 4)
  first.rows["tokens"][:, 0] = 7
  bad = jax.tree.map(np.copy, first)
  bad.rows["tokens"][2, 0] = BAD
  if how == "gradient":  # 0 · ∞ would make every batch bad
    step_of_good = jax.jit(make_train_step(apply, objective, optim, microbatches))
  else:
    step_of_good = step
  state, metrics = step_of_good(common.state(params, optim), first)
  assert int(guard.skipped(state.opt_state)) == 0 and np.isfinite(float(metrics["loss"]))
  after, metrics = step(state, bad)
  assert not np.isfinite(float(metrics["loss" if how == "loss" else "gradient_norm"]))
  jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
  jax.tree.map(np.testing.assert_array_equal, after.opt_state.inner, state.opt_state.inner)
  assert int(guard.skipped(after.opt_state)) == 1 and int(after.step) == 2
  good, _ = step_of_good(after, first)
  assert int(guard.skipped(good.opt_state)) == 1
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(good.params))
  assert any((a != b).any() for a, b in zip(jax.tree.leaves(good.params), jax.tree.leaves(after.params)))


@pytest.mark.parametrize("name", common.OBJECTIVES)
def test_what_is_reported(name):
  objective, _, params, apply = common.build(name)
  optim = optax.with_extra_args_support(optax.sgd(1.0))  # the change of the parameters is the gradient
  state = common.state(params, optim)
  after, metrics = jax.jit(make_train_step(apply, objective, optim, 1))(state, common.batch(objective, 4))
  groups = {"tower_image", "tower_text"} if name == "image_text" else {"block_0", "block_1", "embed" if "tokens" in objective.element_spec else "patches"}
  assert {"loss", "gradient_norm", *(f"gradient_norm/{group}" for group in groups)} <= metrics.keys()
  assert "absolute_error" in metrics if name == "similarity" else any("accuracy" in metric for metric in metrics)
  batch = common.batch(objective, 4)
  assert float(metrics["targets"]) == pytest.approx(float(sum(objective.weights(corrupted(objective, jax.random.split(state.key)[0], batch, 0)).values())))
  if "segments" in batch.rows and name not in ("contrastive", "causal_lm", common.OUTSIDE):  # which read other places than those of the row
    assert float(metrics["padding"]) == pytest.approx((batch.rows["segments"] == 0).mean())
  assert ("bits_per_byte" in metrics) == objective.causal
  assert all(isinstance(m, (jax.Array, Mean)) for m in metrics.values())
  groups = [float(value) for key, value in metrics.items() if key.startswith("gradient_norm/")]
  assert np.sqrt(np.square(groups).sum()) == pytest.approx(float(metrics["gradient_norm"]), rel=1e-5)
  grads = jax.tree.map(lambda a, b: a - b, params, after.params)
  assert float(optax.global_norm(grads)) == pytest.approx(float(metrics["gradient_norm"]), rel=1e-3)
  assert int(after.step) == 1 and (jax.random.key_data(after.key) == jax.random.key_data(state.key)).all()


def test_norms_by_group():
  one = lambda *shape: jnp.ones(shape)
  grads = {"embed": {"e": one(4)}, "stack": {"block_0": {"a": one(3), "b": {"c": one(6)}}, "blocks": {"a": one(2)}},
           "encoder": {"block_0": {"a": one(16)}}, "half": jnp.full(10_000, 300.0, jnp.float16)}  # fmt: skip
  norms = {name: float(value) for name, value in gradient_norms(grads).items()}
  assert norms["gradient_norm/embed"] == 2 and norms["gradient_norm/block_0"] == 3 and norms["gradient_norm/encoder_block_0"] == 4
  assert norms["gradient_norm/half"] == pytest.approx(3e4, rel=1e-5)  # squares beyond float16's range
  assert norms["gradient_norm"] == pytest.approx(np.sqrt(4 + 9 + 2 + 16 + 9e8), rel=1e-5)


def test_dropout_differs_from_step_to_step_and_follows_the_key(built):
  objective, params, apply, optim = built
  step = jax.jit(make_train_step(apply, objective, optim, 1))
  batch = common.batch(objective, 4)
  loss = lambda at, seed: float(step(common.state(params, optim, seed).replace(step=jnp.int32(at)), batch)[1]["loss"])
  assert loss(0, 0) == loss(0, 0)
  assert len({loss(0, 0), loss(1, 0), loss(0, 1)}) == 3


def test_microbatches_of_a_whole_batch_objective_draw_the_same_dropout_in_both_passes():
  """The recomputed forward pass gives the gradient of one that keeps everything: microbatch by microbatch, with their keys, written out."""
  objective, _, params, apply = common.build("contrastive", dropout=0.3)
  example = corrupted(objective, jax.random.key(1), common.batch(objective, 6), 0)
  parts, key = 3, jax.random.key(2)

  def written_out(params, inputs, *, read, key, train):
    found = []
    for m, part_key in enumerate(jax.random.split(key, parts)):
      part = jax.tree.map(lambda x: x[m::parts], inputs)
      found.append(apply(params, part, read=read, key=part_key, train=train).heads["embedding"])
    vectors = jnp.stack(found, axis=1)
    return Output({"embedding": vectors.reshape(-1, *vectors.shape[2:])}, None, None, None, {}, {})

  gradient = lambda apply: quick(jax.value_and_grad(lambda params: objective.loss(apply, params, example, key, True)[0]["contrastive"].total))(params)
  (loss, kept), (again, computed) = gradient(written_out), gradient(in_microbatches(apply, parts))
  assert float(again) == pytest.approx(float(loss), rel=1e-6)
  assert float(optax.tree.norm(jax.tree.map(lambda a, b: a - b, kept, computed))) <= 1e-5 * float(optax.tree.norm(kept))
  other = quick(lambda params: objective.loss(in_microbatches(apply, parts), params, example, jax.random.key(3), True)[0]["contrastive"].total)(params)
  assert abs(float(other) - float(loss)) > 1e-4  # dropout was on


def test_a_whole_batch_in_microbatches_holds_the_activations_of_one():
  objective, _, params, apply = common.build("contrastive")
  example = corrupted(objective, jax.random.key(1), common.batch(objective, 64), 0)

  def peak(apply):
    loss = lambda params: objective.loss(apply, params, example, None, True)[0]["contrastive"].total
    return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

  assert peak(in_microbatches(apply, 16)) < peak(apply) / 4
