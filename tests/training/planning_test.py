"""Plans of the real step on simulated devices, and of TPUs where libtpu is there."""

from __future__ import annotations

import importlib.util
import json
import os

import pytest

from benchmarks import atlas
from research import plan as command
from research.core import config as configs
from research.core.errors import UserError, memory_exhausted
from research.core.overrides import load
from research.core.trees import size
from research.parallel import collectives, topology
from research.parallel import mesh as meshes
from research.training import loop, planning, search

KEYS = ("model.layers=2", "model.width=32", "model.attention.heads=4", "data.tokenizer.kind=byte", "data.length=16", "batch_size=8")
FLAGS = [f"--config.{key}" for key in KEYS]


def planned(*changes, target="cpu:8"):
  cfg = configs.typed(load("configs/base.py", [*FLAGS, *(f"--config.{change}" for change in changes)]))
  return planning.make(cfg, topology.make(target))


def test_data_parallel_steps_reduce_every_gradient_once():
  plan = planned("model.tie_head=False", "model.scan=True")
  reduced = sum(c.bytes for c in plan.collectives if c.kind == "all-reduce" and c.axes == ("data",))
  assert 4 * plan.parameters <= reduced < 4.1 * plan.parameters  # the rest are metrics
  assert {c.kind for c in plan.collectives} == {"all-reduce"}
  assert plan.fits and plan.memory["peak"] > 3 * 4 * plan.parameters and plan.executed_flops == plan.flops
  assert plan.step_seconds == pytest.approx(sum(plan.seconds.values())) and 0 < plan.mfu < 1


def test_recomputation_costs_operations_that_are_not_credited_and_fsdp_keeps_less():
  plain, again = planned("model.scan=True"), planned("model.scan=True", "model.remat=full", "mesh.fsdp=8")
  assert again.flops == plain.flops and 1.1 * plain.flops < again.executed_flops < 1.5 * plain.flops
  assert again.memory["arguments"] < plain.memory["arguments"] / 4
  assert ("all-gather", ("fsdp",)) in {(c.kind, c.axes) for c in again.collectives}


@pytest.mark.parametrize(
  "message, over",
  [
    ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm. Exceeded hbm capacity by 5.75G.", 5.75 * 2**30),
    ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 800.0M of 512.0M vmem", 288 * 2**20),
    ("RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Program size 656.49G exceeds available HBM (15.75G)", 640.74 * 2**30),
    ("RESOURCE_EXHAUSTED: no numbers here", None),
  ],
)
def test_what_the_compiler_says_of_a_full_memory(message, over):
  assert memory_exhausted(message) and planning.exceeded(message) == (over and pytest.approx(over, rel=1e-3))
  assert not memory_exhausted("INVALID_ARGUMENT: Used 1.0G of 2.0G")


def test_an_involuntary_rematerialisation_names_the_rules():
  line = ("W0000 spmd_partitioner.cc:652] [SPMD] Involuntary full rematerialization. The compiler cannot go from sharding {devices=[4,1,2]<=[8]} to "
          "{devices=[1,1,8]<=[8]} efficiently for HLO operation %gather = f32[8,16,32]{2,1,0} gather(%a, %b), metadata={op_name=\"jit(logged)/embed/take\"}")  # fmt: skip
  (said,) = planning.rematerialised(line, meshes.make(meshes.Config(data=4, tensor=2)))
  assert "jit(logged)/embed/take f32[8,16,32]" in said and "('batch', ('data', 'fsdp', 'expert'))" in said and "'tensor'" not in said
  assert planning.rematerialised("a line of something else", meshes.make(meshes.Config())) == []


def test_gathers_that_are_reductions_are_told():
  of = lambda kind, axes, dimensions: collectives.Collective(kind, axes, 1, 8, 16.0, dimensions)
  reduced, gathered = of("all-reduce", ("fsdp",), 3), of("all-gather", ("fsdp",), 3)
  (said,) = planning.gathered_by_reducing([reduced, of("all-reduce", ("fsdp", "tensor"), 3)])
  assert "mesh.fsdp" in said
  for fine in ([], [reduced, gathered], [of("all-reduce", ("data",), 3)], [of("all-reduce", ("fsdp",), 2)]):
    assert planning.gathered_by_reducing(fine) == []


def test_the_partitioners_own_words_are_heard():
  said = []
  with topology.heard(said):
    os.write(2, b"from C++\n")
  assert said == ["from C++\n"]


def test_meshes_are_ranked_and_what_cannot_be_is_told_why():
  tried = search.run("configs/base.py", [*FLAGS, "--config.model.attention.heads=2", "--config.batch_size=4"], topology.make("cpu:4"), None, ["data", "tensor"], ["none"], [4], lambda line: None)
  assert [t.mesh["data"] * t.mesh["tensor"] for t in tried] == [4] * 3
  good, bad = [t for t in tried if not t.reason], [t for t in tried if t.reason]
  assert tried == [*good, *bad] and [t.mesh["tensor"] for t in bad] == [4] and "does not divide" in bad[0].reason
  assert good[0].row_seconds() <= good[1].row_seconds()
  assert bad[0].reason in search.table(tried)


def test_the_command_prints_json_and_a_page(run):
  code, out, _ = run(command, "--config=configs/base.py", "--topology=cpu:8", "--json", *FLAGS)
  record = json.loads(out)
  assert code == 0 and record["mesh"]["data"] == 8 and record["collectives"][0]["kind"] == "all-reduce"
  page = planned().page()
  assert "data 8 on 8 devices" in page and "all-reduce over data" in page


@pytest.mark.parametrize(
  "arguments, parts",
  [
    (["--config=configs/base.py"], ["--topology is missing"]),
    (["--config=configs/base.py", "--topology=v5f:2x2"], ["no chip 'v5f'", "Did you mean"]),
    (["--config=configs/base.py", "--topology=v5e"], ["such as v5e:2x2"]),
    (["--config=configs/base.py", "--topology=cpu:many"], ["cpu:8"]),
    (["--config=configs/base.py", "--topology=cpu:64"], ["device_count=64"]),
    (["--config=configs/shakespeare_char.py", "--topology=cpu:1"], ["--vocab_size"]),
    (["--config=configs/base.py", "--topology=cpu:8", "--config.batch_size=9"], ["9 rows", "nearest"]),
    (["--config=configs/base.py", "--topology=cpu:8", "--search", "--axes=datum"], ["--axes=datum"]),
  ],
)
def test_mistakes_are_one_sentence(fails, arguments, parts):
  fails(command, arguments, *parts)


def test_without_libtpu_the_way_to_get_it_is_told(fails, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  fails(command, ["--config=configs/base.py", "--topology=v5e:2x2"], "libtpu", "pip install -e '.[tpu]'")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -e '.[tpu]'")
def test_a_step_compiles_for_tpus_and_one_that_is_too_large_is_a_plan():
  topology.prepare("v5e:2x2")
  plan = planned("mesh.fsdp=4", target="v5e:2x2")
  assert plan.fits and plan.devices == 4 and plan.capacity == 16 * 2**30
  assert any(c.axes == ("fsdp",) and c.dimensions == 2 for c in plan.collectives)
  huge = planned("model.width=8192", "model.layers=24", "model.scan=True", target="v5e:2x2")
  assert not huge.fits and huge.over > 0 and "DOES NOT FIT" in huge.page()
  split = meshes.make(meshes.Config(fsdp=8, tensor=2), topology.make("v5p:4x4x4").devices)  # no axis of the torus is 2 or 8 long
  assert split.devices.size == 64 == len({device.id for device in split.devices.flat})
  with pytest.raises(UserError, match="v5e:3x7x9 is none that libtpu knows"):
    topology.make("v5e:3x7x9")


GATHER = dict(kind="all-gather", axes=["fsdp"], count=4, bytes=1000, sent=500, dimensions=1)
ENTRY = dict(
    changed=["mesh.fsdp=8"], compiler="jax, libtpu", devices=8, mesh=dict(data=1, fsdp=8), batch_size=64, parameters=10, flops=1e12, executed_flops=1e12,
    fits=True, over=None, capacity=200, memory=dict(peak=100), traffic=1000, collectives=[GATHER, GATHER | dict(dimensions=2)], seconds=dict(compute=1.0),
    step_seconds=1.0, mfu=0.5, warnings=[],
)  # fmt: skip


def test_the_atlas_tells_what_became_worse():
  old = ENTRY
  assert atlas.changes(old, old) == [] == atlas.changes(old, old | dict(step_seconds=1.01))
  assert atlas.changes(old, old | dict(step_seconds=1.1)) == [("time +10.0%", False)]
  assert atlas.changes(old, old | dict(fits=False, over=2**30, memory={})) == [("fits no longer, over by 1.00 GiB", True)]
  assert atlas.changes(old, old | dict(collectives=[GATHER] * 3)) == [("all-gather over fsdp: 12, not 8", True)]
  assert atlas.changes(old, old | dict(collectives=[GATHER])) == [("all-gather over fsdp: 4, not 8", False)]


@pytest.mark.parametrize(
  "key, value, told",
  [
    ("changed", ["mesh.fsdp=4"], "changed ['mesh.fsdp=4'], not ['mesh.fsdp=8']"),
    ("mesh", dict(data=2, fsdp=4), "mesh {'data': 2, 'fsdp': 4}, not {'data': 1, 'fsdp': 8}"),
    ("batch_size", 65, "batch_size 65, not 64"),
    ("parameters", 11, "parameters 11, not 10"),
    ("capacity", 201, "capacity 201, not 200"),
    ("flops", 1.1e12, "operations +10.0%"),
    ("memory", dict(peak=110), "memory +10.0%"),
    ("traffic", 900, "traffic -10.0%"),
    ("warnings", ["it gathers"], "warns: it gathers"),
  ],
)
def test_no_number_of_the_atlas_changes_unseen(key, value, told):
  assert [text for text, _ in atlas.changes(ENTRY, ENTRY | {key: value})] == [told]


def test_the_amount_by_which_a_recipe_does_not_fit_is_compared():
  full = ENTRY | dict(fits=False, over=2**30, memory={}, traffic=None, collectives=[])
  assert atlas.changes(full, full | dict(over=1.01 * 2**30)) == []
  assert atlas.changes(full, full | dict(over=1.1 * 2**30)) == [("bytes over +10.0%", False)]
  assert atlas.changes(full, ENTRY)[0] == ("fits now", False)


@pytest.mark.parametrize("change, code", [({}, 0), (dict(batch_size=65), 1), (dict(mesh=dict(data=8, fsdp=1)), 1), (None, 1)])
def test_a_check_of_the_atlas_is_red_where_anything_differs(change, code, monkeypatch, tmp_path, run):
  """The file is left as it is; an entry that it lacks (None) differs too."""
  name = "gpt2.py:124m on v5e:4x4"
  text = json.dumps({} if change is None else {name: ENTRY})
  (tmp_path / "atlas.json").write_text(text)
  monkeypatch.setattr(atlas, "FILE", tmp_path / "atlas.json")
  monkeypatch.setattr(atlas, "measured", lambda recipe, topology, changed: (ENTRY | (change or {}), 1.0))
  assert run(atlas, "--check", "--only=gpt2.py:124m")[0] == code
  assert (tmp_path / "atlas.json").read_text() == text and [path.name for path in tmp_path.iterdir()] == ["atlas.json"]


def test_an_entry_of_the_atlas_that_does_not_compile_keeps_no_other_back(monkeypatch, tmp_path, fails):
  def measured(recipe, topology, changed):
    if recipe == "gpt2.py:355m":
      raise UserError("it cannot be.")
    return ENTRY, 1.0

  for name in ("FILE", "PAGE"):
    monkeypatch.setattr(atlas, name, tmp_path / name)
  monkeypatch.setattr(atlas, "measured", measured)
  fails(atlas, ["--only=gpt2"], "1 of 4 entries", "it cannot be.")
  assert [name.partition(" ")[0] for name in json.loads((tmp_path / "FILE").read_text())] == ["gpt2.py:124m", "gpt2.py:774m", "gpt2.py:1558m"]


@pytest.mark.parametrize("recipe", sorted({recipe.partition(":")[0]: recipe for recipe, _ in atlas.ENTRIES}.values()))
def test_every_recipe_can_be_built(recipe):
  cfg = configs.typed(load(f"configs/{recipe}"))
  run = loop.assemble(cfg, planning.Imagined(planning.vocabulary(cfg.data, atlas.VOCABULARIES.get(recipe))), meshes.make(cfg.mesh, topology.make("cpu:1").devices))
  assert size(run.state.params) > 0


def test_the_atlas_holds_every_recipe_and_its_page_is_that_of_the_file():
  entries = json.loads(atlas.FILE.read_text(encoding="utf-8"))
  recipes = {path.name for path in (atlas.HERE.parent / "configs").glob("*.py") if not path.name.startswith("_")}
  assert {recipe.partition(":")[0] for recipe, _ in atlas.ENTRIES} == recipes
  assert {name: tuple(entry["changed"]) for name, entry in entries.items()} == {f"{recipe} on {topology}": changed for (recipe, topology), changed in atlas.ENTRIES.items()}
  assert atlas.page(entries) == atlas.PAGE.read_text(encoding="utf-8"), "run `python -m benchmarks.atlas --only=…` for what was changed"
