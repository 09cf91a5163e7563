"""The fused cross-entropy against the plain one: values, all gradients, every number of chunks."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from research.model.inputs import Projection
from research.objectives import cross_entropy
from research.objectives.cross_entropy import token_loss
from research.parallel import mesh as meshes
from research.parallel.rules import RULES

B, P, D, V = 3, 6, 5, 11


def arrays(places=P, dtype=jnp.float32, seed=0):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(2 * rng.normal(size=shape), jnp.float32)
  hidden, kernel, bias = normal(B, places, D).astype(dtype), normal(V, D), normal(V)
  targets = jnp.asarray(rng.integers(0, V, (B, places)), jnp.int32)
  weights = jnp.asarray(rng.choice([0.0, 1.0, 0.5], (B, places)), jnp.float32)
  return hidden, kernel, bias, targets, weights


def plain(hidden, kernel, bias, targets, weights, z_loss=0.0, label_smoothing=0.0):
  logits = Projection(hidden, kernel, bias).logits()
  likelihoods = jax.nn.log_softmax(logits)
  nll = -jnp.take_along_axis(likelihoods, targets[..., None], -1)[..., 0]
  q = (1 - label_smoothing) * jax.nn.one_hot(targets, logits.shape[-1]) + label_smoothing / logits.shape[-1]
  loss = -jnp.sum(q * likelihoods, -1) + z_loss * jax.nn.logsumexp(logits, -1) ** 2
  return jnp.sum(loss * weights), nll, jnp.argmax(logits, -1) == targets


def fused(hidden, kernel, bias, targets, weights, **more):
  return token_loss(Projection(hidden, kernel, bias), targets, weights, **more)


def differences(a, b):
  scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(b))
  return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))) / scale


FORMS = [*((chunks, {}) for chunks in (1, 2, 3, 6)), (3, dict(z_loss=0.02)), (3, dict(label_smoothing=0.1)), (1, dict(z_loss=0.01, label_smoothing=0.2))]


@pytest.mark.parametrize("chunks, more", FORMS)
@pytest.mark.parametrize("pieces, filling", [(1, 0), (3, 0), (1, 5)], ids=["whole", "pieces", "filled up"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients(monkeypatch, chunks, with_bias, pieces, filling, more):
  monkeypatch.setattr(cross_entropy, "_filling", lambda vocab: filling)
  monkeypatch.setattr(cross_entropy, "CHUNK", P * V // chunks if pieces == 1 else P * V // chunks // 2)
  monkeypatch.setattr(cross_entropy, "PIECE", -(-V // pieces))
  assert cross_entropy._pieces(V) == pieces and cross_entropy._chunks(P, V, P * V // chunks) == chunks
  hidden, kernel, bias, targets, weights = arrays()
  bias = bias if with_bias else None
  at = (0, 1, 2) if with_bias else (0, 1)

  def both(f):
    def scaled(*args):  # an upstream gradient other than 1
      found = f(*args, **more)
      return 0.37 * found[0], found

    return jax.jit(jax.value_and_grad(scaled, argnums=at, has_aux=True))(hidden, kernel, bias, targets, weights)

  ((_, (total, nll, correct)), got), ((_, (want_total, want_nll, want_correct)), want) = both(fused), both(plain)
  assert float(total) == pytest.approx(float(want_total), rel=1e-6)
  np.testing.assert_allclose(nll, want_nll, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(correct, want_correct)
  for mine, theirs in zip(got, want):
    assert mine.dtype == theirs.dtype and differences(mine, theirs) < 1e-6


def test_a_gpu_gets_whole_tiles_of_a_vocabulary_that_no_mesh_cuts(monkeypatch):
  assert cross_entropy._filling(50257) == 0
  monkeypatch.setattr(cross_entropy, "platform", lambda: "gpu")
  assert cross_entropy._filling(50257) == 50304 - 50257 and cross_entropy._filling(50304) == 0
  with jax.set_mesh(jax.make_mesh((8,), ("tensor",))), nn.logical_axis_rules((("vocab", "tensor"),)):
    assert cross_entropy._filling(50257) == 0


def test_the_vocabulary_stays_whole_where_devices_share_it(monkeypatch):
  monkeypatch.setattr(cross_entropy, "PIECE", V // 2)
  assert cross_entropy._pieces(V) > 1
  with jax.set_mesh(jax.make_mesh((8,), ("tensor",))):
    assert cross_entropy._pieces(V) == 1


@pytest.mark.parametrize("chunks", [1, 3])
def test_places_that_are_spread_over_devices_stay_there(monkeypatch, chunks):
  """Rows over two devices and places over two: the same numbers, and no device is sent another's hidden states."""
  places = 6 * chunks
  monkeypatch.setattr(cross_entropy, "CHUNK", places // 2 * V // chunks)
  hidden, kernel, bias, targets, weights = (jnp.concatenate([x, x[:1]]) if x.shape[0] == B else x for x in arrays(places))
  both = lambda f: jax.value_and_grad(lambda *a: (0.37 * f(*a, targets, weights)[0], f(*a, targets, weights)), (0, 1, 2), has_aux=True)
  ((_, want_parts), want) = jax.jit(both(plain))(hidden, kernel, bias)
  mesh = meshes.make(meshes.Config(data=2, sequence=2), jax.devices()[:4])
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    here = jax.device_put(hidden, NamedSharding(mesh, PartitionSpec("data", "sequence")))
    compiled = jax.jit(both(fused), out_shardings=(None, (here.sharding, None, None))).lower(here, kernel, bias).compile()
    ((_, parts), got) = compiled(here, kernel, bias)
  assert "all-gather" not in compiled.as_text() and "all-to-all" not in compiled.as_text()
  assert ("while" in compiled.as_text()) == (chunks > 1)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), tuple(parts), want_parts)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)


def test_the_chunks_are_equal_parts_and_small_enough():
  for places in (1, 7, 12, 128):
    for limit in (1, V, 3 * V, 10**6):
      chunks = cross_entropy._chunks(places, V, limit)
      assert places % chunks == 0 and (places // chunks * V <= limit or chunks == places)


def test_one_position(monkeypatch):
  args = arrays(places=1)
  assert float(fused(*args)[0]) == pytest.approx(float(plain(*args)[0]), rel=1e-6)


@pytest.mark.parametrize("chunk", [V, 10**6])
def test_bfloat16_hidden_gives_a_float32_loss(monkeypatch, chunk):
  monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
  hidden, kernel, bias, targets, weights = arrays(dtype=jnp.bfloat16)
  total, nll, _ = fused(hidden, kernel, bias, targets, weights)
  assert total.dtype == nll.dtype == jnp.float32
  exact = plain(hidden.astype(jnp.float32), kernel.astype(jnp.bfloat16).astype(jnp.float32), bias, targets, weights)
  assert float(total) == pytest.approx(float(exact[0]), rel=1e-5)  # only the operands are rounded, no logit is
  d_hidden, d_kernel = jax.grad(lambda *a: fused(*a, bias, targets, weights)[0], argnums=(0, 1))(hidden, kernel)
  want = jax.grad(lambda *a: plain(*a, bias, targets, weights)[0], argnums=(0, 1))(hidden.astype(jnp.float32), kernel)
  assert d_hidden.dtype == jnp.bfloat16 and d_kernel.dtype == jnp.float32
  assert differences(d_hidden.astype(jnp.float32), want[0]) < 0.02 and differences(d_kernel, want[1]) < 0.02


def test_zero_weights_give_zero_loss_and_gradient():
  hidden, kernel, bias, targets, weights = arrays()
  value, gradient = jax.value_and_grad(lambda *a: fused(*a, targets, 0 * weights)[0], argnums=(0, 1, 2))(hidden, kernel, bias)
  assert float(value) == 0 and all(float(jnp.abs(leaf).max()) == 0 for leaf in gradient)


def test_scores_as_large_as_they_come_stay_finite():
  hidden, kernel, bias, targets, weights = arrays()
  value, gradient = jax.value_and_grad(lambda h: fused(h, kernel, bias, targets, weights)[0])(1e4 * hidden)
  assert np.isfinite(float(value)) and np.isfinite(gradient).all()
