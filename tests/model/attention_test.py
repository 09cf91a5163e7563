"""Attention against a naive loop over the visibility rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.model.attention.core import attend
from research.model.attention.kernels import base
from research.model.inputs import UNSEEN, Sight


def naive(q, k, v, sight, scale, window):
  B, L, H, d = q.shape
  K, G = k.shape[1], k.shape[2]
  out = np.zeros((B, L, H, d))
  for b in range(B):
    for h in range(H):
      for i in range(L):
        keys = []
        for j in range(K):
          seen = True
          if sight.kind == "causal":
            seen &= j <= i
          if sight.kind == "ordered":
            seen &= bool(sight.k_order[b, j] <= sight.q_order[b, i])
          if sight.q_segments is not None:
            seen &= bool(sight.q_segments[b, i] == sight.k_segments[b, j])
          if window is not None:
            seen &= bool(abs(sight.q_positions[b, i] - sight.k_positions[b, j]) < window)
          if seen:
            keys.append(j)
        if keys:
          g = h // (H // G)
          s = np.array([scale * q[b, i, h] @ k[b, j, g] for j in keys])
          p = np.exp(s - s.max())
          out[b, i, h] = (p / p.sum()) @ v[b, keys, g]
  return out


@pytest.mark.parametrize("kind", ["full", "causal", "ordered"])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_equals_the_rule_applied_pair_by_pair(kind, heads, window, packed):
  rng = np.random.default_rng([len(kind), *heads, window or 0, packed])
  B, L, d = 2, 7, 4
  q, k, v = (rng.normal(size=(B, L, h, d)).astype(np.float32) for h in (heads[0], heads[1], heads[1]))
  positions = np.tile(np.arange(L), (B, 1))
  segments = np.array([[1, 1, 1, 2, 2, 2, 0], [1, 1, 2, 2, 2, 3, 3]]) if packed else None
  order = rng.permuted(np.tile(np.arange(L), (B, 1)), axis=1)
  q_order = order - 1  # a query stream: the first in the order sees nothing
  ordered = kind == "ordered"
  sight = Sight(positions, positions, segments, segments, q_order if ordered else None, order if ordered else None, kind=kind, blind=ordered)
  got = attend(*map(jnp.asarray, (q, k, v)), jax.tree.map(jnp.asarray, sight), scale=0.3, window=window)
  np.testing.assert_allclose(got, naive(q, k, v, sight, 0.3, window), atol=2e-6)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("length", [7, 9])
def test_blocks_of_causal_attention_equal_the_whole(heads, length, monkeypatch):
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.normal(size=(2, length, h, 4)), jnp.float32) for h in (heads[0], heads[1], heads[1]))
  bias = jnp.asarray(rng.normal(size=(1, heads[0], length, length)), jnp.float32)
  positions, segments = jnp.tile(jnp.arange(length), (2, 1)), jnp.asarray(rng.integers(1, 3, (2, length)))
  sight = Sight(positions, positions, segments, segments, kind="causal")
  run = lambda q, k, v, bias: attend(q, k, v, sight, scale=0.3, bias=bias, window=4)
  loss = lambda *x: (run(*x) ** 2).sum()
  both = lambda: jax.jit(lambda *x: (run(*x), jax.grad(loss, (0, 1, 2, 3))(*x)))(q, k, v, bias)
  assert len(base.blocks("causal", length)) == 1
  whole, grads = both()
  monkeypatch.setattr(base, "BLOCK", 2)
  assert len(base.blocks("causal", length)) == length // 2
  in_blocks, of_blocks = both()
  np.testing.assert_allclose(in_blocks, whole, atol=2e-6)
  for a, b in zip(of_blocks, grads):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_scores_that_nobody_sees_are_not_made():
  shapes = []
  length = 4 * base.BLOCK
  q = jax.ShapeDtypeStruct((1, length, 1, 8), "float32")
  positions = np.arange(length)[None]
  jaxpr = jax.make_jaxpr(lambda q: attend(q, q, q, Sight(positions, positions, kind="causal"), scale=1.0))(q)
  for equation in jaxpr.eqns:
    if equation.primitive.name == "exp":
      shapes.append(equation.outvars[0].aval.shape[-2:])
  assert sum(a * b for a, b in shapes) == length**2 * 5 // 8


def test_a_query_that_sees_nothing_outputs_zero_with_zero_gradient():
  q = jnp.ones((1, 2, 1, 4))
  order = jnp.array([[5, UNSEEN]])
  sight = Sight(order, order, q_order=jnp.array([[4, 6]]), k_order=order, kind="ordered", blind=True)
  out = attend(q, q, q, sight, scale=1.0)
  assert (out[0, 0] == 0).all() and (out[0, 1] == 1).all()
  grads = jax.grad(lambda v: attend(q, q, v, sight, scale=1.0)[0, 0].sum())(q)
  assert (grads == 0).all()
