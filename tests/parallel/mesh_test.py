"""Meshes and the places of a run's arrays, on eight simulated devices."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from research.core import config as configs
from research.core.config import use
from research.core.errors import UserError
from research.core.trees import named_leaves
from research.model import transformer
from research.model.attention import grouped
from research.parallel import mesh as meshes
from research.parallel.rules import RULES
from tests import drawn
from tests.contracts import common


@pytest.mark.parametrize(
  "axes, sizes",
  [
    (dict(), (8, 1, 1, 1, 1)),
    (dict(fsdp=2), (4, 2, 1, 1, 1)),
    (dict(data=2, fsdp=-1, tensor=2), (2, 2, 1, 1, 2)),
    (dict(data=1, fsdp=1, tensor=8), (1, 1, 1, 1, 8)),
    (dict(data=1, fsdp=8, tensor=-1), (1, 8, 1, 1, 1)),
    (dict(expert=2, sequence=4), (1, 1, 2, 4, 1)),
  ],
)
def test_sizes(axes, sizes):
  mesh = meshes.make(meshes.Config(**axes))
  assert tuple(meshes.shape(mesh).values()) == sizes and tuple(meshes.shape(mesh)) == meshes.AXES
  assert all(kind == AxisType.Auto for kind in mesh.axis_types)
  assert len({device.id for device in mesh.devices.flat}) == 8


def test_one_device():
  assert meshes.shape(meshes.make(meshes.Config(), jax.devices()[:1])) == dict.fromkeys(meshes.AXES, 1)


@pytest.mark.parametrize(
  "axes, parts",
  [
    (dict(data=3), ["data 3", "8 devices", "give 3"]),
    (dict(data=-1, tensor=3), ["tensor 3", "divisor of 8"]),
    (dict(data=16), ["16"]),
    (dict(data=-1, fsdp=-1), ["at most one"]),
    (dict(data=0), ["positive"]),
    (dict(tensor=-2), ["positive"]),
  ],
)
def test_wrong_sizes_are_one_sentence(axes, parts):
  with pytest.raises(UserError) as info:
    meshes.make(meshes.Config(**axes))
  assert all(part in str(info.value) for part in parts) and "\n" not in str(info.value)


def test_the_batch_must_fit():
  mesh = meshes.make(meshes.Config(data=2, fsdp=2, tensor=2))
  meshes.check_batch(mesh, 8, 2)
  with pytest.raises(UserError, match="batch_size 9 is not a multiple of microbatches 2"):
    meshes.check_batch(mesh, 9, 2)
  with pytest.raises(UserError, match="nearest batch_size that can is 16") as info:
    meshes.check_batch(mesh, 14, 2)
  near = int(str(info.value).rstrip(".").split()[-1])
  meshes.check_batch(mesh, near, 2)


def test_put_spreads_rows_over_data_and_fsdp():
  objective, *_ = common.build("causal_lm")
  batch = common.batch(objective, 8)
  mesh = meshes.make(meshes.Config(data=2, fsdp=2, tensor=2))
  placed = meshes.put(batch, mesh)
  tokens = placed.rows["tokens"]
  assert {shard.data.shape[0] for shard in tokens.addressable_shards} == {2}
  np.testing.assert_array_equal(tokens, batch.rows["tokens"])


@pytest.mark.parametrize("name", ["causal_lm", "causal_lm-experts", "permutation_lm", "next_sentence", "image_text", "seq2seq"])
def test_initial_values_are_the_same_on_every_mesh(name):
  """Of each kind of model: decoder, experts, two streams, types, towers with patches, encoder and decoder."""
  _, model = common.parts(name, model_keys=common.shallow(name))
  boxed = drawn.boxed(model)
  init = lambda key: nn.unbox(transformer.init(model, key))
  one = jax.jit(init)(jax.random.key(0))
  mesh = meshes.make(meshes.Config(data=2, fsdp=2, tensor=2))
  shardings = meshes.state_shardings(boxed, nn.unbox(boxed), mesh)
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    many = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
  assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(many))
  for (leaf, a), (_, b) in zip(named_leaves(one), named_leaves(many)):
    np.testing.assert_array_equal(a, b, err_msg=leaf)


MODEL = dict(layers=2, width=16, attention=grouped.Config(heads=4, kv_heads=2, qk_norm=True), norm="layer", norm_bias=True)


def placed(optimizer, axes, **changes):
  """Shapes with shardings of a state, by name."""
  objective = configs.make(configs.typed(use("objectives.masked_lm")), common.vocab(), 12)
  model = transformer.make(transformer.Config(**{**MODEL, **changes}), common.SIZE, objective.heads, 12)
  boxed = drawn.boxed(model)
  made = configs.make(configs.typed(use("optim.optimizer", **optimizer)), 200, nn.unbox(boxed))
  state = jax.eval_shape(lambda params: common.state(params, made), nn.unbox(boxed))
  shardings = meshes.state_shardings(boxed, state, meshes.make(meshes.Config(**axes)))
  return {name: (leaf.shape, sharding) for (name, leaf), (_, sharding) in zip(named_leaves(state), named_leaves(shardings))}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
  "optimizer", [dict(ema=0.9), dict(algorithm="muon", ema=0.9), dict(algorithm="lion"), dict(algorithm="sgd")], ids=str
)
def test_moments_and_averages_live_where_their_parameters_live(optimizer, scan):
  found = placed(optimizer, dict(data=2, fsdp=2, tensor=2), scan=scan)
  params = {name.removeprefix("params/"): value for name, value in found.items() if name.startswith("params/")}
  split = {name for name, (_, sharding) in params.items() if not sharding.is_fully_replicated}
  assert {name.rpartition("/")[0].rpartition("/")[2] for name in split} >= {"query", "key", "value", "out", "up", "down", "embed"}
  times = dict.fromkeys(params, 0)
  for name, (shape, sharding) in found.items():
    owner = max((p for p in params if name.endswith("/" + p)), key=len, default=None) if name.startswith("opt_state") else None
    if owner is None:
      continue
    times[owner] += 1
    assert shape == params[owner][0]
    assert sharding == params[owner][1], f"{name} is {sharding.spec}, its parameter {params[owner][1].spec}"
  assert min(times.values()) >= 1 + ("ema" in optimizer), times  # every parameter has its moment, and its average


def test_adafactors_vectors_are_everywhere_and_its_state_fits():
  found = placed(dict(algorithm="adafactor"), dict(data=1, fsdp=4, tensor=2))
  for name, (shape, sharding) in found.items():
    if name.startswith("opt_state"):
      sharding.shard_shape(shape)  # raises where the axes do not divide
      assert not name.endswith(("v_row", "v_col")) or sharding.is_fully_replicated


def test_the_width_is_split_over_fsdp_and_heads_over_tensor():
  found = placed({}, dict(data=2, fsdp=2, tensor=2))
  query = found["params/stack/block_0/self_attention/query/kernel"]
  assert query[0] == (16, 4, 4) and query[1].spec == PartitionSpec("fsdp", "tensor", None)
  assert found["params/embed/embedding"][1].spec == PartitionSpec("tensor", "fsdp")
  assert found["step"][1].is_fully_replicated and found["key"][1].is_fully_replicated


def test_a_parameter_that_an_axis_does_not_divide_is_named():
  with pytest.raises(UserError) as info:
    placed({}, dict(data=1, tensor=8))
  text = str(info.value)
  assert "tensor" in text and "8" in text and "kernel'" in text and "nearest size that does is" in text
  with pytest.raises(UserError, match="fsdp.*of size 8.*embed"):
    placed({}, dict(data=1, fsdp=8), width=12, attention=grouped.Config(heads=2))
