"""The whole loop on a tiny synthetic text: what it leaves behind, and that an interruption changes nothing."""

from __future__ import annotations

import functools
import json
import math
import os
import pathlib
import random
import shutil
import signal

import flax.linen as nn
import jax
import numpy as np
import pytest

from research.core import config as configs
from research.core.errors import UserError
from research.core.trees import named_leaves
from research.core.types import Field
from research.data import text
from research.evals import loss as loss_eval
from research.parallel import mesh as meshes
from research.parallel.rules import RULES
from research.training import alarms, book, energy, loop, planning
from research.training.checkpoint import Checkpoints
from research.training.restore import restore
from tests import resume_under_kill as interruptions
from tests import tiny
from tests.contracts.common import OBJECTIVES, objective_of
from tests.tiny import experiment

TEXT = [name for name in OBJECTIVES if set(objective_of(name).element_spec) <= {"tokens", "segments"}]  # what data.text delivers rows for
APART = [name for name in TEXT if not objective_of(name).whole_batch]  # whose loss is a sum over rows
RESUMED = {name: {} for name in OBJECTIVES} | {"contrastive": {"texts": 2}}  # with keys that let every data component feed one of them

SUMMARY = {"step", "train", "valid", "best", "tokens", "flops", "tokens_per_second", "mfu", "wall_seconds", "device", "mesh", "config_hash",
           "data_hash", "version"}  # fmt: skip


def quiet(line):
  pass


@pytest.fixture(scope="module", autouse=True)
def one_device_and_a_cache(tmp_path_factory):
  """Runs live on one device, and the same program is compiled once in this file, as it is in a workdir that is resumed."""
  from jax.experimental.compilation_cache import compilation_cache

  with pytest.MonkeyPatch.context() as patch:
    made = meshes.make
    patch.setattr(meshes, "make", lambda cfg, devices=None: made(cfg, devices or jax.devices()[:1]))
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")}
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("cache")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    yield
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return str(tmp_path_factory.mktemp("data"))


def stop_at(step):
  """A `say` that asks the run to stop, as a cluster does, when it tells of that step."""

  def say(line):
    if line.startswith("step") and line.split()[1].startswith(f"{step}/"):
      os.kill(os.getpid(), signal.SIGTERM)

  return say


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
  """One uninterrupted run of each objective, with changes of its keys, made when it is first asked for."""

  @functools.cache
  def run(objective, **changes):
    workdir = str(tmp_path_factory.mktemp(objective))
    return workdir, loop.train(experiment(data, objective, "log.tensorboard=true", **changes), workdir, quiet)

  return run


def copy(whole, tmp_path, keep=None):
  """A copy of the causal run, with its checkpoint of one step only."""
  workdir = tmp_path / "copy"
  shutil.copytree(whole("causal_lm")[0], workdir)
  for step in os.listdir(workdir / "checkpoints"):
    if keep is not None and step != str(keep):
      shutil.rmtree(workdir / "checkpoints" / step)
  return str(workdir)


# --- what a run leaves -------------------------------------------------------------------------------------------------------


def test_energy_is_summed_over_restarts(data, tmp_path, monkeypatch):
  now = iter(range(0, 10_000, 10))
  monkeypatch.setattr(energy, "find", lambda: [energy.Counter("cpu", lambda: float(next(now)), math.inf)])
  config = experiment(data, "causal_lm")
  first = loop.train(config, str(tmp_path), quiet, until=6)["energy_joules"]["cpu"]
  assert Checkpoints(str(tmp_path)).meta()["energy_joules"]["cpu"] == first - 10 > 0  # the summary asks once more
  monkeypatch.setattr(energy, "find", lambda: [energy.Counter("cpu", lambda: 7.0, math.inf)])
  assert loop.train(config, str(tmp_path), quiet)["energy_joules"] == {"cpu": first - 10}
  monkeypatch.setattr(energy, "find", list)
  assert loop.train(experiment(data, "causal_lm"), str(tmp_path / "other"), quiet, until=2)["energy_joules"] is None


def test_what_a_run_leaves_behind(whole, data):
  workdir, summary = whole("causal_lm")
  assert {"config.json", "metrics.jsonl", "summary.json", "loss.png", "checkpoints", "tensorboard", "tokenizer"} <= set(os.listdir(workdir))
  assert json.loads(pathlib.Path(workdir, "summary.json").read_text()) == json.loads(json.dumps(summary))
  assert summary.keys() >= SUMMARY
  assert configs.digest(configs.read(os.path.join(workdir, "config.json"))) == summary["config_hash"]
  assert pathlib.Path(workdir, "loss.png").read_bytes().startswith(b"\x89PNG")
  assert any("tfevents" in name for name in os.listdir(os.path.join(workdir, "tensorboard")))
  assert Checkpoints(workdir).steps() == [8, 12]


def test_what_the_summary_says(whole):
  workdir, summary = whole("causal_lm")
  assert summary["step"] == 12 and summary["tokens"] == 12 * 4 * 16 and summary["stopped_by"] is None and summary["skipped"] == 0
  assert summary["valid"]["step"] == 12 and summary["train"]["step"] == 12
  assert summary["valid"]["perplexity"] == pytest.approx(math.exp(summary["valid"]["loss"]))
  losses = {line["step"]: line["loss"] for line in interruptions.lines(workdir) if line["split"] == "valid"}
  assert summary["best"]["valid"]["loss"] == min(losses.values()) == losses[summary["best"]["step"]]
  assert {"loss", "accuracy", "bits_per_byte", "perplexity"} <= summary["valid"].keys()
  assert summary["device"] == {"kind": jax.devices()[0].device_kind, "count": 1} and summary["mesh"] == dict.fromkeys(meshes.AXES, 1)
  assert summary["tokens_per_second"] > 0 and summary["mfu"] > 0 and summary["wall_seconds"] > 0 and summary["flops"] % 12 == 0
  first, *others = [line for line in book.monitor.read_metrics(workdir) if line["split"] == "train"]
  assert "tokens_per_second" not in first and all(line["tokens_per_second"] > 0 for line in others), "no step has been timed when the first is through"
  assert all(summary["seconds"][part] > 0 for part in ("set_up", "compile", "train", "evaluate", "save")) and summary["seconds"]["lost"] == 0
  assert summary["goodput"] == pytest.approx(summary["seconds"]["train"] / sum(summary["seconds"].values()), abs=1e-3)


@pytest.mark.parametrize("steps, part", [((3, -1), "negative"), ((0, 13), "ends at steps 12")])
def test_steps_that_no_run_reaches_are_refused(data, steps, part):
  with pytest.raises(UserError, match=part):
    experiment(data, "causal_lm", f"checkpoint.steps={steps}")


@pytest.mark.parametrize("name", APART)
def test_every_line_of_metrics_once_and_the_loss_falls(whole, name):
  workdir, _ = whole(name)
  found = interruptions.lines(workdir)
  assert [line["step"] for line in found if line["split"] == "train"] == [1, 2, 4, 6, 8, 10, 12]
  assert [line["step"] for line in found if line["split"] == "valid"] == [6, 12]
  train = [line["loss"] for line in found if line["split"] == "train"]
  assert train[0] > 5.0 and train[-1] < train[0] - 0.3
  assert all({"loss", "gradient_norm", "learning_rate", "skipped"} <= line.keys() for line in found if line["split"] == "train")


def test_initial_values_are_the_same_on_every_mesh(data):
  cfg = configs.typed(experiment(data))
  prepared = planning.Imagined(planning.vocabulary(cfg.data, None))
  one, many = (
    loop.initial_state(loop.assemble(cfg, prepared, meshes.make(meshes.Config(**axes), jax.devices()[:count])))
    for axes, count in ((dict(data=1), 1), (dict(data=2, fsdp=2, tensor=2), 8))
  )
  for (name, a), (_, b) in zip(named_leaves(one.params), named_leaves(many.params)):
    np.testing.assert_array_equal(a, b, err_msg=name)


def test_operations_are_the_models_whatever_mesh_and_kernel(data):
  """Of one device with plain attention: not those that a kernel computes twice, nor those that it does not tell."""

  def counted(count=1, *overrides):
    cfg = configs.typed(experiment(data, "causal_lm", "data.length=256", *overrides))
    run = loop.assemble(cfg, planning.Imagined(planning.vocabulary(cfg.data, None)), meshes.make(cfg.mesh, jax.devices()[:count]))
    jaxpr = None
    if "splash" not in str(overrides):  # which cannot be traced here
      with jax.set_mesh(run.mesh), nn.logical_axis_rules(RULES):
        jaxpr = loop.jitted_step(run).trace(run.state, loop.batch_shapes(run)).jaxpr
    return loop.operations(run, jaxpr)

  want, again = counted()
  assert want == again > 0
  assert counted(1, "model.attention.kernel=chunked") == counted(1, "model.attention.kernel=splash") == (want, want)
  assert counted(4, "mesh.sequence=2", "mesh.fsdp=2", "mesh.data=1", "model.dropout=0") == (want, want)
  once, twice = counted(1, "model.remat=full")
  assert once == want < twice


# --- interruptions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_happened(whole, data, name, tmp_path, monkeypatch):
  (undisturbed, _), workdir, config = whole(name, **RESUMED[name]), str(tmp_path), experiment(data, name, **RESUMED[name])
  monkeypatch.setattr(book.monitor, "draw", lambda *args: None)  # the picture takes a tenth of so short a run
  stopped = loop.train(config, workdir, stop_at(4))
  assert stopped["stopped_by"] == "SIGTERM" and 4 <= stopped["step"] < 12
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  saved, said = Checkpoints(workdir).meta()["seconds"]["train"], []
  resumed = loop.train(config, workdir, said.append)
  assert any(f"resumed at step {stopped['step']}" in line for line in said)
  assert resumed["seconds"]["train"] > saved and resumed["seconds"]["lost"] == 0
  assert interruptions.same_arrays(undisturbed, workdir) == []
  assert interruptions.lines(workdir) == interruptions.lines(undisturbed)


def test_a_run_halts_where_it_is_told_to_and_goes_on_as_if_nothing_had_happened(whole, data, tmp_path):
  (undisturbed, _), workdir, said = whole("causal_lm"), str(tmp_path), []
  config = experiment(data, "causal_lm", "log.tensorboard=true")
  halted = loop.train(config, workdir, quiet, until=6)
  assert (halted["step"], halted["stopped_by"], halted["valid"]["step"]) == (6, None, 6) and Checkpoints(workdir).steps()[-1] == 6
  assert loop.train(config, workdir, said.append, until=6)["step"] == 6 and "stands at step 6 already" in said[-1]
  loop.train(config, workdir, quiet)
  assert interruptions.same_arrays(undisturbed, workdir) == []
  extra = {(6, "valid"), (6, "train")} - {(line["step"], line["split"]) for line in interruptions.lines(undisturbed)}
  assert [line for line in interruptions.lines(workdir) if (line["step"], line["split"]) not in extra] == interruptions.lines(undisturbed)
  with pytest.raises(UserError, match="until=13: a run of 12 steps"):
    loop.train(config, workdir, quiet, until=13)


def test_every_kind_of_data_feeds_a_run_that_is_resumed(data):
  fed = {f"data.{name}" for name in configs.members("data") if hasattr(configs.find(f"data.{name}"), "train_rows")}
  assert fed == {experiment(data, name, **changes).data.name for name, changes in RESUMED.items()}, "give RESUMED an objective that reads this data"


def test_an_objective_that_no_tiny_data_serves_is_told_what_to_add(data):
  field = Field((3,), "int32", (None,), "chords")
  with pytest.raises(AssertionError, match=r"rows of chords \[3\]: add to FEEDS in tests/tiny.py"):
    tiny.data(objective_of("causal_lm")._replace(element_spec={"chords": field}), data)


def test_a_run_that_is_finished_says_so(whole, data):
  workdir, summary = whole("causal_lm")
  said = []
  again = loop.train(experiment(data, "causal_lm", "log.tensorboard=true"), workdir, said.append)
  assert again == json.loads(json.dumps(summary)) and any("finished at step 12" in line for line in said)


@pytest.mark.parametrize("left", [None, '{"step": 4, "stopped_by": "SIGTERM"}', '{"step": 12, "tra'], ids=["none", "of an earlier stop", "cut off"])
def test_a_run_killed_after_its_last_checkpoint_gets_its_summary(whole, data, tmp_path, left):
  workdir, summary = copy(whole, tmp_path), whole("causal_lm")[1]
  path = pathlib.Path(workdir, "summary.json")
  path.unlink() if left is None else path.write_text(left)
  again = loop.train(experiment(data, "causal_lm", "log.tensorboard=true"), workdir, quiet)
  assert again == json.loads(path.read_text()) and again["stopped_by"] is None and again["flops"] > 0
  same = ("step", "train", "valid", "best", "tokens", "flops", "tokens_per_second", "mfu", "config_hash", "data_hash")
  assert {key: again[key] for key in same} == {key: summary[key] for key in same}


def test_harmless_changes_are_told_and_taken(whole, data, tmp_path):
  workdir = copy(whole, tmp_path, keep=8)
  said = []
  loop.train(
    experiment(data, "causal_lm", "microbatches=2", "checkpoint.every=100", "evaluate.batch_size=3", "log.tensorboard=false"),
    workdir,
    said.append,
  )
  changes = next(line for line in said if line.startswith("resuming with changes"))
  assert all(part in changes for part in ("microbatches: 1 -> 2", "checkpoint.every: 4 -> 100", "evaluate.batch_size"))
  assert [line["step"] for line in interruptions.lines(workdir)] == [line["step"] for line in interruptions.lines(whole("causal_lm")[0])]


@pytest.mark.parametrize(
  "override, parts",
  [
    ("batch_size=8", ["batch_size 4 -> 8", "another batch size"]),
    ("optimizer.b1=0.5", ["optimizer.b1: 0.9 -> 0.5", "another config"]),
    ("objective=masked_lm", ["objective", "another config"]),
    ("data.seed=9", ["data.seed: 0 -> 9"]),
    ("steps=20", ["steps: 12 -> 20"]),
  ],
)
def test_another_experiment_under_the_same_name_is_refused(whole, data, override, parts):
  workdir, _ = whole("causal_lm")
  with pytest.raises(UserError) as info:
    loop.train(experiment(data, "causal_lm", "log.tensorboard=true", override), workdir, quiet)
  assert all(part in str(info.value) for part in [workdir, *parts]) and "\n" not in str(info.value)


def test_data_that_changed_is_refused(tmp_path):
  path = tmp_path / "some.txt"
  path.write_text("the quick brown fox jumps over the lazy dog. " * 60)
  config = experiment(
    "", "causal_lm", "data.sources.text=files", f"data.sources.text.paths={str(path)!r},", "steps=2", "optimizer.schedule.warmup=1"
  )
  workdir = str(tmp_path / "run")
  loop.train(config, workdir, quiet)
  path.write_text("the quick brown fox jumps over the lazy cat. " * 60)
  with pytest.raises(UserError, match="data of .* has changed since step 2") as info:
    loop.train(config, workdir, quiet)
  assert "\n" not in str(info.value)


@pytest.mark.long
def test_killed_runs_end_where_an_undisturbed_one_ends(tmp_path):
  """`python -m tests.resume_under_kill` does it twenty times; here SIGKILL in the middle of a save and SIGTERM at work."""
  config = interruptions.write_config(str(tmp_path))
  reference, broken = str(tmp_path / "whole"), str(tmp_path / "broken")
  few = "--config.steps=160"
  interruptions.finish(interruptions.start(config, reference, few))
  assert interruptions.kill(config, broken, "mid-save", random.Random(0), 60, few) is not None
  process = interruptions.start(config, broken, few)
  for line in process.stdout:
    if line.startswith("step"):
      process.send_signal(signal.SIGTERM)
      break
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 143 and "stopped by SIGTERM at step" in output and "the same command goes on" in output
  assert "Traceback" not in output
  interruptions.finish(interruptions.start(config, broken, few))
  assert interruptions.same_arrays(reference, broken) == []
  assert interruptions.lines(broken) == interruptions.lines(reference)


# --- starting from another run, averages, profiles ---------------------------------------------------------------------------


def test_the_weights_that_a_run_started_from_may_be_named_otherwise_when_it_goes_on(whole, data, tmp_path, monkeypatch):
  source, workdir, said = copy(whole, tmp_path), str(tmp_path / "run"), []
  loop.train(experiment(data, "causal_lm", f"init_from={source}"), workdir, quiet, until=2)
  monkeypatch.chdir(tmp_path)
  loop.train(experiment(data, "causal_lm", "init_from=copy"), workdir, said.append, until=4)
  assert any("resumed at step 2" in line for line in said)
  again = lambda path: loop.train(experiment(data, "causal_lm", f"init_from={path}"), workdir, quiet, until=4)
  refused = lambda: pytest.raises(UserError, match="holds a run with another config \\(init_from")
  with refused():
    again("other")
  shutil.copytree("copy", "elsewhere/copy")
  again("elsewhere/copy")
  for record in pathlib.Path("elsewhere/copy").glob("checkpoints/*/meta/metadata"):
    record.write_text(record.read_text().replace('"step"', '"other"'))
  with refused():  # of one name, but not the same
    again("elsewhere/copy")
  os.rename("copy", "moved")
  again("elsewhere/copy")  # there is nothing to compare it with
  with refused():
    again("moved")
  os.mkdir("copy")
  with refused():
    again("elsewhere/copy")


def test_init_from_takes_the_parameters_and_nothing_else(whole, data, tmp_path):
  workdir, _ = whole("causal_lm")
  saved = dict(named_leaves(Checkpoints(workdir).restore_params()))
  run = loop.build(configs.typed(experiment(data, "causal_lm", f"init_from={workdir}", "optimizer.ema=0.5")), data, quiet)
  state = loop.initial_state(run)
  for name, leaf in named_leaves(state.params):
    np.testing.assert_array_equal(leaf, saved[name])
  for name, leaf in named_leaves(state.opt_state):
    if "params_ema/" in name:  # the average starts from them, too
      np.testing.assert_array_equal(leaf, saved[name.partition("params_ema/")[2]])
  assert int(state.step) == 0
  other = loop.build(configs.typed(experiment(data, "causal_lm", f"init_from={workdir}", "model.width=32")), data, quiet)
  with pytest.raises(UserError, match="parameter '.*' is .* there and .* here"):
    loop.initial_state(other)
  absent = loop.build(configs.typed(experiment(data, "causal_lm", f"init_from={tmp_path / 'absent'}")), data, quiet)
  with pytest.raises(UserError, match="no checkpoints in"):
    loop.initial_state(absent)


def test_evaluation_reads_the_average_and_a_profile_and_chosen_steps_are_kept(data, tmp_path):
  workdir = str(tmp_path)
  saves = ("checkpoint.every=6", "checkpoint.steps=(0,5)", "checkpoint.keep=1")
  config = experiment(data, "causal_lm", "optimizer.ema=0.9", "steps=6", "evaluate.every=100", *saves)
  summary = loop.train(config, workdir, quiet, profile=range(2, 4))
  assert list(pathlib.Path(workdir, "profile").rglob("*.xplane.pb"))
  _, saved = interruptions.arrays(workdir)
  run = loop.build(configs.typed(config), data, quiet)
  rows = text.valid_rows(run.prepared, run.cfg.data, run.objective.element_spec)
  step = jax.jit(loss_eval.make_step(run.apply, run.objective))
  score = lambda params: loss_eval.run(step, params, run.objective, rows, 7, run.mesh, jax.random.key(1), 6)["loss"]
  average = Checkpoints(workdir).restore_params()
  assert score(average) == pytest.approx(summary["valid"]["loss"], rel=1e-6)
  raw = jax.tree_util.tree_map_with_path(
    lambda path, leaf: saved["params/" + jax.tree_util.keystr(path, simple=True, separator="/")], average
  )
  assert abs(score(raw) - summary["valid"]["loss"]) > 1e-3
  np.testing.assert_array_equal(jax.tree.leaves(restore(workdir).params)[0], jax.tree.leaves(average)[0])
  assert Checkpoints(workdir).steps() == [0, 5, 6]
  jax.tree.map(np.testing.assert_array_equal, Checkpoints(workdir).restore_params(0), loop.initial_state(run).params)


@pytest.mark.parametrize("name", APART)
def test_evaluation_covers_the_whole_split_whatever_the_batch_size(whole, data, name):
  run = loop.build(configs.typed(experiment(data, name)), data, quiet)
  rows = text.valid_rows(run.prepared, run.cfg.data, run.objective.element_spec)
  params = restore(whole(name)[0]).params
  seen = []

  def step(params, batch, key, at):
    seen.extend(int(i) for i, valid in zip(batch.index[:, 1], batch.valid) if valid)
    return evaluate(params, batch, key, at)

  evaluate = jax.jit(loss_eval.make_step(run.apply, run.objective))
  scores = []
  for batch_size in (1, 5, 64):
    seen.clear()
    scores.append(loss_eval.run(step, params, run.objective, rows, batch_size, run.mesh, jax.random.key(1), 12))
    assert seen == list(range(len(rows)))
  for score in scores[1:]:
    assert score == pytest.approx(scores[0], rel=1e-5)
  assert scores[0]["loss"] == pytest.approx(whole(name)[1]["valid"]["loss"], rel=1e-5)
  if name == "causal_lm":  # every token of the split but the first is a target once
    tokens = sum(splits["valid"].tokens for splits in run.prepared.splits.values())
    assert sum(int((row["segments"][1:] > 0).sum()) for row in (rows[i] for i in range(len(rows)))) == tokens - 1


def test_a_run_that_only_skips_updates_is_given_up(data, tmp_path, monkeypatch):
  monkeypatch.setattr(alarms, "STREAK", 2)
  overrides = [
    "steps=40",
    "log.every=1",
    "optimizer.schedule.peak=1e30",
    "optimizer.schedule.warmup=0",
    "optimizer.clip=none",
    "checkpoint.every=100",
  ]
  with pytest.raises(UserError, match="updates were all skipped .* lower the learning rate") as info:
    loop.train(experiment(data, "causal_lm", *overrides), str(tmp_path), quiet)
  assert "\n" not in str(info.value)
  assert any(math.isnan(line["loss"]) or line["skipped"] for line in interruptions.read_metrics(str(tmp_path)))
