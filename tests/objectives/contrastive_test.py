"""Contrastive learning against naive double loops, and what the batch, its padding and its devices may not change."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.core.types import Batch
from research.evals import loss as loss_eval
from research.model.inputs import EMBEDDING, Output
from research.objectives.in_batch import info_nce, pairwise_sigmoid
from research.parallel import mesh as meshes
from research.parallel.rules import RULES
from research.training.step import make_train_step
from tests.contracts import common
from tests.contracts.common import corrupted
from tests.hf.common import quick

KEY = jax.random.key(5)
TEMPERATURE = 0.05


def unit(rng, *shape):
  x = rng.standard_normal(shape).astype(np.float32)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def given(vectors):
  """An apply whose `embedding` is `vectors` [rows · views, D]."""
  return lambda params, inputs, **_: Output({EMBEDDING: jnp.asarray(vectors)[:, None]}, None, None, None, {}, {})


@pytest.mark.parametrize("texts", [1, 2, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_loss_is_that_of_a_double_loop(texts, symmetric):
  objective = common.objective_of("contrastive", texts=texts, temperature=TEMPERATURE, symmetric=symmetric)
  batch, views = common.batch(objective, 5), max(2, texts)
  if texts == 4:
    batch.rows["segments"][1, 3] = 0  # a row that has one hard negative only
  example = corrupted(objective, KEY, batch._replace(valid=np.array([True, True, True, True, False])), 0)
  vectors = unit(np.random.default_rng(0), 5, views, 8)
  terms, metrics = objective.loss(given(vectors.reshape(-1, 8)), None, example, None, False)
  total, right = 0.0, 0
  for i in range(4):
    own, others = 0.0, []
    for j in range(4):
      for n in range(1, views):
        if texts == 4 and (j, n) == (1, 3):
          continue
        score = float(vectors[i, 0] @ vectors[j, n]) / TEMPERATURE
        others.append(score)
        own = score if (i, 1) == (j, n) else own
    nll = -own + np.log(np.sum(np.exp(others)))
    back = [float(vectors[i, 1] @ vectors[j, 0]) / TEMPERATURE for j in range(4)]
    total += (nll - back[i] + np.log(np.sum(np.exp(back)))) / 2 if symmetric else nll
    right += own == max(others)
  assert float(terms["contrastive"].total) == pytest.approx(total, rel=1e-5)
  assert float(terms["contrastive"].weight) == 4 and float(metrics["accuracy"].total) == right
  assert float(metrics["positive_cosine"].total) == pytest.approx(np.sum(vectors[:4, 0] * vectors[:4, 1]), rel=1e-5)


def test_the_sigmoid_loss_is_that_of_a_double_loop():
  rng = np.random.default_rng(1)
  a, b, present, scale, bias = unit(rng, 6, 8), unit(rng, 6, 8), np.array([1, 1, 0, 1, 1, 0], bool), 10.0, -3.0
  found = pairwise_sigmoid(jnp.asarray(a), jnp.asarray(b), jnp.asarray(present), jnp.float32(scale), jnp.float32(bias))
  for i in range(6):
    expected = 0.0
    for j in range(6):
      if present[j]:
        z = (1 if i == j else -1) * (scale * float(a[i] @ b[j]) + bias)
        expected += np.log1p(np.exp(-z))
    assert float(found.nll[i]) == pytest.approx(expected, rel=1e-5)


def test_a_small_loss_keeps_its_digits():
  """Pairs that are all but learned: in float32 the loss and its gradient are those of float64, though scores of 20 are rounded to 1e-6."""
  rng = np.random.default_rng(3)
  keys = unit(rng, 16, 64)
  queries = keys + 0.02 * rng.standard_normal(keys.shape).astype(np.float32)
  nll = lambda queries: info_nce(queries, jnp.asarray(keys), jnp.arange(16), jnp.ones(16, bool), 20.0).nll
  products = queries.astype(np.float64) @ keys.T
  others = np.where(np.eye(16, dtype=bool), 0.0, np.exp(20 * (products - np.diag(products)[:, None])))
  expected = np.log1p(others.sum(axis=1))
  assert expected.max() < 1e-4
  np.testing.assert_allclose(nll(queries), expected, rtol=1e-4)
  chances = others / (1 + others.sum(axis=1, keepdims=True))
  gradient = 20 * (chances @ keys - chances.sum(axis=1, keepdims=True) * keys)
  np.testing.assert_allclose(jax.grad(lambda queries: jnp.sum(nll(queries)))(queries), gradient, rtol=1e-4, atol=1e-4 * np.abs(gradient).max())


@pytest.mark.parametrize("vectors", [jnp.ones((4, 8)), jnp.zeros((4, 8))], ids=["one vector", "nothing"])
def test_texts_that_have_all_become_one_vector_are_not_called_found(vectors):
  present = jnp.array([True, True, True, False])
  assert not info_nce(vectors, vectors, jnp.arange(4), present, 20.0).correct[:3].any()
  assert not pairwise_sigmoid(vectors, vectors, present, jnp.float32(10.0), jnp.float32(-3.0)).correct[:3].any()


def test_the_one_that_scores_highest_is_found_whatever_absent_ones_score():
  vectors, present = jnp.eye(4)[jnp.array([0, 1, 2, 2])], jnp.array([True, True, True, False])
  assert info_nce(vectors, vectors, jnp.arange(4), present, 20.0).correct[:3].all()
  assert pairwise_sigmoid(vectors, vectors, present, jnp.float32(10.0), jnp.float32(-3.0)).correct[:3].all()


def test_absent_keys_get_no_gradient():
  rng = np.random.default_rng(2)
  queries, keys, present = jnp.asarray(unit(rng, 3, 8)), jnp.asarray(unit(rng, 5, 8)), jnp.array([True, True, True, False, True])
  grads = jax.grad(lambda keys: jnp.sum(info_nce(queries, keys, jnp.arange(3), present, 20.0).nll))(keys)
  assert not grads[3].any() and all(grads[i].any() for i in (0, 1, 2, 4))


def test_dropout_makes_the_two_views_of_a_text():
  objective, _, params, apply = common.build("contrastive", dropout=0.2)
  example = corrupted(objective, KEY, common.batch(objective, 4), 0)
  cosine = lambda train: float(quick(lambda params: objective.loss(apply, params, example, KEY, train)[1]["positive_cosine"].value())(params))
  assert cosine(False) == pytest.approx(1.0, abs=1e-6) and cosine(True) < 0.999


def test_rows_of_padding_are_nobodys_negatives():
  objective, _, params, apply = common.build("contrastive", texts=3)
  step = quick(loss_eval.make_step(apply, objective))
  batch = common.batch(objective, 4)
  short = step(params, jax.tree.map(lambda x: x[:3], batch), KEY, 0)
  empty = jax.tree.map(np.copy, batch)
  empty.rows["tokens"][3], empty.rows["segments"][3] = 0, 0
  for padded in (Batch(batch.rows, batch.index, np.arange(4) < 3), Batch(empty.rows, batch.index, np.arange(4) < 3), empty):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), short, step(params, padded, KEY, 0))


def test_all_devices_share_their_negatives():
  """On eight devices, with microbatches of eight rows, the gradient is that of the sixteen rows on one device."""
  objective, _, params, apply = common.build("contrastive", texts=2)
  batch, optimizer = common.batch(objective, 16), optax.with_extra_args_support(optax.sgd(1.0))

  def after(devices, microbatches):
    mesh = meshes.make(meshes.Config(data=devices), jax.devices()[:devices])
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
      step = quick(make_train_step(apply, objective, optimizer, microbatches))
      state, metrics = step(common.state(params, optimizer), meshes.put(batch, mesh))
    return float(metrics["loss"]), jax.device_get(state.params)

  (loss, one), (loss_8, many) = after(1, 1), after(8, 2)
  assert loss_8 == pytest.approx(loss, rel=1e-6)
  change = jax.tree.map(lambda a, b: np.asarray(a) - b, params, one)
  assert float(optax.tree.norm(jax.tree.map(lambda a, b: a - b, one, many))) <= 1e-5 * float(optax.tree.norm(change))
