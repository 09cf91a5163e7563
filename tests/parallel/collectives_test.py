"""What is read from a compiled program's text: groups and axes, loops, bytes."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from research.parallel import chips, collectives, hlo
from research.parallel import mesh as meshes


def grid(**sizes):
  shape = tuple(sizes.values())
  return SimpleNamespace(devices=np.arange(np.prod(shape)).reshape(shape), axis_names=tuple(sizes))


@pytest.mark.parametrize(
  "text, mesh, count, axes",
  [
    ("replica_groups=[4,64]<=[64,4]T(1,0), dimensions={1}", grid(fsdp=64, tensor=4), 4, ("fsdp",)),
    ("replica_groups=[64,4]<=[256], use_global_device_ids=true", grid(fsdp=64, tensor=4), 64, ("tensor",)),
    ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", grid(data=2, fsdp=2, tensor=2), 2, ("data", "tensor")),
    ("replica_groups={{0,1},{2,3}}, to_apply=%add", grid(data=2, tensor=2), 2, ("tensor",)),
    ("replica_groups={{0,2},{1,3}}, to_apply=%add", grid(data=2, tensor=2), 2, ("data",)),
    ("replica_groups={}, to_apply=%add", grid(data=2, tensor=2), 1, ("data", "tensor")),
    ("channel_id=3, source_target_pairs={{0,1},{1,0},{2,3},{3,2}}", grid(data=2, tensor=2), 4, ("tensor",)),
    ("replica_groups=mesh['axis_0'=32,'axis_1'=2] {'axis_0'}, dimensions={1}", grid(data=32, tensor=2), 2, ("data",)),
    ("replica_groups=mesh['a'=8] {'a':(2)2}", grid(data=2, fsdp=2, tensor=2), 4, ("fsdp",)),
  ],
)  # fmt: skip
def test_groups_and_their_axes(text, mesh, count, axes):
  groups = collectives.replica_groups(text, mesh.devices.size)
  assert len(groups) == count and collectives.axes_of(groups, mesh) == axes
  if "pairs" not in text:
    assert sorted(i for group in groups for i in group) == list(range(mesh.devices.size))


ASYNC = """
HloModule m
%start (p: bf16[4,8]) -> (bf16[4,8], bf16[8,8]) {
  %p = bf16[4,8]{1,0} parameter(0)
  %gather.1 = bf16[8,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,2]<=[2], dimensions={0}
  ROOT %custom = (bf16[4,8]{1,0}, bf16[8,8]{1,0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}
%done (q: bf16[4,8]) -> bf16[8,8] {
  %q = bf16[4,8]{1,0} parameter(0)
  %gather.2 = bf16[8,8]{1,0} all-gather(%q), channel_id=7, replica_groups=[1,2]<=[2], dimensions={0}
  ROOT %custom.2 = bf16[8,8]{1,0} custom-call(%gather.2), custom_call_target="AsyncCollectiveDone"
}
%all-reduce-scatter.1 (r: f32[8,8]) -> f32[4,8] {
  %r = f32[8,8]{1,0} parameter(0)
  %sum = f32[8,8]{1,0} all-reduce(%r), channel_id=8, replica_groups={{0,1}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %cut = f32[4,8]{1,0} dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={4,8}
}
%body (b: (s32[], bf16[4,8], f32[8,8])) -> (s32[], bf16[4,8], f32[8,8]) {
  %b = (s32[], bf16[4,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  %x = bf16[4,8]{1,0} get-tuple-element(%b), index=1
  %y = f32[8,8]{1,0} get-tuple-element(%b), index=2
  %a = (bf16[4,8]{1,0}, bf16[8,8]{1,0}) fusion(%x), kind=kCustom, calls=%start
  %d = bf16[8,8]{1,0} fusion(%x), kind=kCustom, calls=%done
  %s = f32[4,8]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %t = (s32[], bf16[4,8]{1,0}, f32[8,8]{1,0}) tuple(%x, %x, %y)
}
%condition (c: (s32[], bf16[4,8], f32[8,8])) -> pred[] {
  %c = (s32[], bf16[4,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %limit = s32[] constant(6)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}
ENTRY %main (z: bf16[4,8], w: f32[8,8]) -> bf16[4,8] {
  %z = bf16[4,8]{1,0} parameter(0)
  %w = f32[8,8]{1,0} parameter(1)
  %two = s32[] constant(2)
  %init = (s32[], bf16[4,8]{1,0}, f32[8,8]{1,0}) tuple(%two, %z, %w)
  %loop = (s32[], bf16[4,8]{1,0}, f32[8,8]{1,0}) while(%init), condition=%condition, body=%body
  ROOT %out = bf16[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_tpus_asynchronous_collective_counts_once_and_its_fused_reduce_scatter_as_one():
  program = hlo.parse(ASYNC)
  runs, unknown = hlo.walk(program)
  gather, scatter = sorted(collectives.found(program, runs, grid(data=2)), key=lambda c: c.kind)
  assert unknown == 0
  assert gather[:5] == ("all-gather", ("data",), 4, 4 * 128, 4 * 64)  # the loop counts from 2 to 6
  assert scatter[:5] == ("reduce-scatter", ("data",), 4, 4 * 256, 4 * 128)


KERNEL = """HloModule step, is_scheduled=true
%summed (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %sum = f32[8]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1}}, to_apply=%add
}, execution_thread="sparsecore"
ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %kernel = (f32[8]{0}, f32[8]{0}) custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="attention"}
  %y = f32[8]{0} get-tuple-element(%kernel), index=0
  ROOT %z = f32[8]{0} call(%y), to_apply=%summed
}
"""


def test_what_stands_after_a_kernel_whose_metadata_has_lines_of_its_own_is_read():
  program = hlo.parse(KERNEL)
  assert [*program.computations["main"].instructions] == ["x", "kernel", "y", "z"]
  assert program.computations["main"].instructions["kernel"].attributes.endswith('}}, metadata={op_name="attention"}')
  (summed,) = collectives.found(program, hlo.walk(program)[0], grid(data=2))
  assert (summed.kind, summed.count, summed.bytes) == ("all-reduce", 1, 32)
  with pytest.raises(ValueError, match="outside of any computation: '  %y"):
    hlo.parse(KERNEL.replace("}}, metadata", "}\n}}, metadata"))


def test_bytes_of_shapes():
  assert hlo.sizes("(f32[2,3]{1,0:T(8,128)S(1)}, bf16[4], pred[], s4[8], token[])") == [24, 8, 1, 4, 0]
  assert hlo.sizes("(f32[2,3]{1,0:T(8,128)S(1)}, bf16[4]{0:T(128)})", main_memory=True) == [0, 8]


def test_a_slice_reads_what_it_gives_and_an_update_in_place_writes_what_it_changes():
  def pick(table, i):
    return jax.lax.dynamic_slice_in_dim(table, i, 1) * 2.0

  def put(table, i):
    return jax.lax.dynamic_update_slice_in_dim(table, jnp.ones((1, 128)), i, 0)

  def traffic(function, **kwargs):
    program = hlo.parse(jax.jit(function, **kwargs).lower(jax.ShapeDtypeStruct((1000, 128), jnp.float32), 3).compile().as_text())
    return hlo.traffic(program, hlo.walk(program)[0])

  assert 2 * 512 <= traffic(pick) < 8 * 512
  assert 512 <= traffic(put, donate_argnums=0) < 8 * 512


def stacked(scan: bool, layers: int = 5):
  """Feed-forward layers, the batch over `data` and the inner width over `tensor`; differentiated."""
  mesh = meshes.make(meshes.Config(data=2, tensor=4))
  array = lambda spec, *shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
  weights = array((None, None, "tensor"), layers, 16, 64), array((None, "tensor", None), layers, 64, 16)

  def layer(h, w):
    return jnp.tanh(h @ w[0]) @ w[1], None

  def loss(weights, x):
    h = jax.lax.scan(layer, x, weights)[0] if scan else x
    for i in range(0 if scan else layers):
      h, _ = layer(h, (weights[0][i], weights[1][i]))
    return jnp.sum(h**2)

  program = hlo.parse(jax.jit(jax.grad(loss, argnums=(0, 1))).lower(weights, array(("data",), 8, 16)).compile().as_text())
  runs, unknown = hlo.walk(program)
  assert unknown == 0
  found = {(c.kind, c.axes): c for c in collectives.found(program, runs, mesh)}
  return found, [w.size * 4 for w in weights]


def test_a_scanned_stack_talks_as_much_as_an_unrolled_one():
  (scanned, parameters), (unrolled, _) = stacked(True), stacked(False)
  data, tensor = ("all-reduce", ("data",)), ("all-reduce", ("tensor",))
  for found in (scanned, unrolled):
    assert found[data].bytes == sum(parameters) / 4  # the gradients, a quarter of them on each device along `tensor`
    assert found[data].sent == found[data].bytes  # 2 · (2 − 1)/2
  for found in (scanned, unrolled):
    assert found[tensor][2:4] == (2 * 5, 2 * 5 * 4 * 16 * 4)  # each layer's activations, forward and backward


def test_a_chip_is_told_by_the_longest_name():
  assert chips.of_kind("TPU v5 lite") is chips.CHIPS["v5e"] and chips.of_kind("TPU v5") is chips.CHIPS["v5p"]
  assert chips.of_kind("NVIDIA L40S").flops == 362e12 and chips.of_kind("a loom") is None
  assert chips.CHIPS["v5e"].least([1, 3, 2]) == 3 and chips.CHIPS["cpu"].least([1, 3, 2]) == 6
  for name, chip in chips.CHIPS.items():
    if chip.kind.startswith("TPU"):
      assert 1 <= chip.flops / chip.bandwidth < 1000 and chip.memory >= 16 * 2**30 and chip.network < chip.bandwidth, name
