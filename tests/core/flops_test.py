"""FLOPs against counts made by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from research.core.flops import count


def shape(*dims):
  return jax.ShapeDtypeStruct(dims, "float32")


def test_matmul():
  assert count(jnp.matmul, shape(3, 5), shape(5, 7)) == (2 * 3 * 5 * 7, {"dot_general": 2 * 3 * 5 * 7}, 0)


def test_elementwise_work_is_free():
  assert count(lambda x: jnp.sum(jnp.tanh(x) * x), shape(8, 8)).total == 0


def test_einsum_with_batch():
  attention = lambda q, k: jnp.einsum("BLHd,BKHd->BHLK", q, k)
  assert count(attention, shape(2, 5, 3, 4), shape(2, 7, 3, 4)).total == 2 * 2 * 3 * 5 * 7 * 4


def test_convolutions():
  same = lambda x, w: jax.lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
  assert count(same, shape(2, 10, 3), shape(5, 3, 7)).total == 2 * (2 * 10 * 7) * (5 * 3)
  depthwise = lambda x, w: jax.lax.conv_general_dilated(
      x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=3
  )
  assert count(depthwise, shape(2, 10, 3), shape(5, 1, 3)).total == 2 * (2 * 10 * 3) * 5


def test_ragged_product_and_its_gradients():
  product = lambda x, w, sizes: jax.lax.ragged_dot(x, w, sizes)
  args = shape(12, 5), shape(3, 5, 7), jax.ShapeDtypeStruct((3,), "int32")
  assert count(product, *args).total == 2 * 12 * 5 * 7
  gradient = jax.grad(lambda x, w, sizes: jnp.sum(jnp.square(product(x, w, sizes))), argnums=(0, 1))
  assert count(gradient, *args).total == 3 * 2 * 12 * 5 * 7


def test_scan_counts_every_turn():
  loop = lambda x, w: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]
  assert count(loop, shape(3, 5), shape(4, 5, 5)).total == 4 * 2 * 3 * 5 * 5
  nested = lambda x, w: jax.lax.scan(lambda x, _: (loop(x, w), None), x, None, length=6)[0]
  assert count(nested, shape(3, 5), shape(4, 5, 5)).total == 6 * 4 * 2 * 3 * 5 * 5


def test_while_is_counted_once_and_reported():
  search = lambda x: jax.lax.while_loop(lambda x: jnp.sum(x) < 1, lambda x: x @ x, x)
  assert count(search, shape(5, 5))[::2] == (2 * 5**3, 1)
  counter = lambda n: jax.lax.while_loop(lambda i: i < n, lambda i: i + 1, 0)
  assert count(counter, jax.ShapeDtypeStruct((), "int32")).unknown_loops == 0
  assert count(lambda x: jax.lax.fori_loop(0, 4, lambda _, x: x @ x, x), shape(5, 5))[::2] == (4 * 2 * 5**3, 0)


def test_cond_counts_its_dearest_branch():
  either = lambda p, x: jax.lax.cond(p, lambda x: x @ x @ x, lambda x: x @ x, x)
  assert count(either, jax.ShapeDtypeStruct((), "bool"), shape(5, 5)).total == 2 * 2 * 5**3


def mlp(wrap=lambda f: f):
  layer = wrap(lambda x, w: jnp.tanh(x @ w))
  return lambda w, x: jnp.sum(jax.lax.scan(lambda x, w: (layer(x, w), None), x, w)[0])


def test_gradient_of_a_network_is_three_times_its_forward_pass():
  args = shape(4, 8, 8), shape(3, 8)
  forward = count(mlp(), *args).total
  assert forward == 4 * 2 * 3 * 8 * 8
  assert count(jax.jit(jax.value_and_grad(mlp(), argnums=(0, 1))), *args).total == 3 * forward


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.dots_with_no_batch_dims_saveable])
def test_recomputation_is_credited_only_when_asked(policy):
  gradient = jax.grad(mlp(lambda f: jax.checkpoint(f, policy=policy)), argnums=(0, 1))
  args = shape(4, 8, 8), shape(3, 8)
  forward = 4 * 2 * 3 * 8 * 8
  assert count(gradient, *args).total == 3 * forward
  assert count(gradient, *args, credit_recompute=True).total == (4 if policy is None else 3) * forward


def test_recomputation_inside_a_call_is_not_credited():
  inner = jax.checkpoint(lambda x, w: jax.jit(lambda x: jnp.tanh(x @ w))(x))
  gradient = jax.grad(lambda w, x: jnp.sum(inner(inner(x, w[0]), w[1])), argnums=(0, 1))
  assert count(gradient, shape(2, 8, 8), shape(3, 8)).total == 3 * 2 * (2 * 3 * 8 * 8)


def test_custom_derivatives():
  @jax.custom_vjp
  def product(x, w):
    return x @ w

  product.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))
  assert count(product, shape(3, 5), shape(5, 7)).total == 2 * 3 * 5 * 7
  gradient = jax.grad(lambda x, w: jnp.sum(product(x, w)), argnums=(0, 1))
  assert count(gradient, shape(3, 5), shape(5, 7)).total == 3 * 2 * 3 * 5 * 7
  relu = lambda x, w: jax.nn.relu(x @ w)
  assert count(jax.vmap(relu), shape(4, 3, 5), shape(4, 5, 7)).total == 4 * 2 * 3 * 5 * 7


def test_shard_map_counts_all_shards():
  device = jax.devices()[0]
  mesh = Mesh(np.array([device]).reshape(1), ("data",), axis_types=(AxisType.Auto,))
  two = jax.sharding.AbstractMesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
  spec = PartitionSpec("data")
  for over in (mesh, two):
    mapped = jax.shard_map(lambda x, w: x @ w, mesh=over, in_specs=(spec, PartitionSpec(None, None)), out_specs=spec,
                           axis_names={"data"})  # fmt: skip
    assert count(jax.jit(mapped), shape(8, 5), shape(5, 7)).total == 2 * 8 * 5 * 7
