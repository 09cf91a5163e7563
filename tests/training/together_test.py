"""Many runs in one program: each ends where it ends alone, whatever the others do."""

from __future__ import annotations

import json
import os
import pathlib
import signal

import jax
import numpy as np
import pytest

from research import together as together_command
from research.core import config as configs
from research.core.errors import UserError
from research.model.attention import core
from research.optim import numbers
from research.training import abreast, alarms, loop, together
from research.training.checkpoint import Checkpoints
from tests import resume_under_kill as interruptions
from tests.tiny import experiment

pytestmark = pytest.mark.usefixtures("one_device")

RUNS = [  # seed, data.seed, learning rate, weight decay
    (0, 0, 1e-2, 0.1),
    (1, 0, 3e-3, 0.1),
    (5, 7, 1e-2, 0.3),
]


def tiny(data, *overrides):
  return experiment(data, "masked_lm", "optimizer.ema=0.9", *overrides)


def member(data, seed, order, peak, decay):
  return tiny(data, f"seed={seed}", f"data.seed={order}", f"optimizer.schedule.peak={peak}", f"optimizer.weight_decay={decay}")


def quiet(line):
  pass


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
  """The last of the runs, which reads another stream with other numbers, trained by itself."""
  workdir = str(tmp_path_factory.mktemp("alone"))
  return workdir, loop.train(member(data, *RUNS[-1]), workdir, quiet)


def same_run(workdir, other):
  """To rounding: a number that is an input is multiplied in another order than one that the compiler knows."""
  (mine, theirs) = (interruptions.arrays(each)[1] for each in (workdir, other))
  assert mine.keys() == theirs.keys()
  for name, array in theirs.items():
    array = np.asarray(array, np.float64)
    np.testing.assert_allclose(np.asarray(mine[name], np.float64), array, atol=1e-4 * np.abs(array).max(initial=1e-30), rtol=0, err_msg=name)
  for mine, theirs in zip(interruptions.lines(workdir), interruptions.lines(other), strict=True):
    assert mine.keys() == theirs.keys() and (mine["step"], mine["split"]) == (theirs["step"], theirs["split"])
    for key in mine.keys() - {"split"}:
      assert mine[key] == pytest.approx(theirs[key], rel=1e-5 if key == "loss" else 1e-3), key


def test_each_run_ends_where_it_ends_alone_though_all_were_stopped_once(data, alone, tmp_path, monkeypatch):
  monkeypatch.setattr(abreast, "_cores", lambda: 2)
  runs = [member(data, *run) for run in RUNS]
  workdirs = [str(tmp_path / str(i)) for i in range(len(runs))]

  def stop(line):
    if line.startswith("[0] step") and line.split()[2].startswith("4/"):
      os.kill(os.getpid(), signal.SIGTERM)

  stopped = together.train(runs, workdirs, stop)
  assert {outcome.summary["stopped_by"] for outcome in stopped} == {"SIGTERM"} and 4 <= stopped[0].summary["step"] < 12
  said = []
  ended = together.train(runs, workdirs, said.append)
  assert any(f"resumed at step {stopped[0].summary['step']}" in line for line in said) and all(outcome.failed is None for outcome in ended)
  same_run(workdirs[-1], alone[0])
  assert ended[-1].summary.keys() == alone[1].keys() and set(os.listdir(alone[0])) <= set(os.listdir(workdirs[-1])) | {"heartbeat.json"}
  same = ("step", "tokens", "flops", "config_hash", "data_hash", "parameters", "baseline")
  assert {key: ended[-1].summary[key] for key in same} == {key: alone[1][key] for key in same}
  assert json.loads(pathlib.Path(workdirs[1], "summary.json").read_text()) == json.loads(json.dumps(ended[1].summary))
  losses = [outcome.summary["valid"]["loss"] for outcome in ended]
  assert len(set(losses)) == len(losses)
  again = together.train(runs, workdirs, said.append)
  assert "finished at step 12 already" in said[-1] and [outcome.summary["step"] for outcome in again] == [12] * len(runs)
  finished = loop.train(runs[0], workdirs[0], said.append)  # research.train takes its folder for its own
  assert finished["step"] == 12 and "finished" in said[-1]


@pytest.mark.parametrize("other", [RUNS[0], (2, 7, 3e-3, 0.1)], ids=["another stream", "the same stream"])
def test_side_by_side_as_on_an_accelerator_each_ends_there_too(data, alone, tmp_path, monkeypatch, other):
  monkeypatch.setattr(together, "platform", lambda: "gpu")
  calls, choose = [], core.choose
  monkeypatch.setattr(core, "choose", lambda kernel, call, binding=True: calls.append(call) or choose(kernel, call, binding))
  workdirs = [str(tmp_path / str(i)) for i in range(2)]
  together.train([member(data, *run) for run in (other, RUNS[-1])], workdirs, quiet)
  assert {call.stacked for call in calls} == {False, True} and calls[-1].stacked  # a shape is asked of one run, the steps are of both; not every kernel can
  same_run(workdirs[-1], alone[0])


def test_a_run_that_diverges_is_named_and_the_others_go_on(data, tmp_path, monkeypatch):
  monkeypatch.setattr(alarms, "STREAK", 3)
  initial = together._initial

  def poisoned(members, said):
    good, bad = initial(members, said)
    return [good, bad.replace(params=jax.tree.map(lambda x: x.at[:].set(np.nan), bad.params))]

  monkeypatch.setattr(together, "_initial", poisoned)
  said, runs = [], [member(data, *run) for run in RUNS[:2]]
  good, bad = together.train(runs, [str(tmp_path / "good"), str(tmp_path / "bad")], said.append)
  assert good.failed is None and good.summary["step"] == 12 and np.isfinite(good.summary["valid"]["loss"])
  assert "updates were all skipped" in bad.failed and str(tmp_path / "bad") in bad.failed and bad.summary == {}
  assert any(line.startswith("[1] FAILED at step") for line in said) and not os.path.exists(tmp_path / "bad" / "summary.json")
  assert Checkpoints(str(tmp_path / "good")).steps()[-1] == 12 and max(Checkpoints(str(tmp_path / "bad")).steps()) < 12


@pytest.mark.parametrize("override, part", [("model.width=32", "'model.width' is 32 there and 16 here"), ("optimizer.weight_decay=0", "optimizer.weight_decay"),
                                            ("optimizer.clip=none", "optimizer.clip"), ("objective=causal_lm", "objective")])  # fmt: skip
def test_runs_of_two_programs_are_refused(tmp_path, override, part):
  with pytest.raises(UserError, match=part) as info:
    together.train([tiny(""), tiny("", override)], [str(tmp_path / "a"), str(tmp_path / "b")], quiet)
  assert "\n" not in str(info.value) and not os.listdir(tmp_path)


def test_what_is_free_in_a_program():
  assert together.program(tiny("", "seed=3", "data.seed=4", "optimizer.b2=0.9", "optimizer.schedule.peak=0.5", "init_from=runs/x")) == together.program(tiny(""))
  assert together.program(tiny("", "optimizer.schedule.warmup=3")) != together.program(tiny(""))


def test_one_folder_for_two_runs_and_checkpoints_of_no_common_step_are_refused(data, alone, tmp_path):
  config = member(data, *RUNS[-1])
  with pytest.raises(UserError, match="one workdir"):
    together.train([config, config], [str(tmp_path / "a"), str(tmp_path / "x" / ".." / "a")], quiet)
  with pytest.raises(UserError, match="no checkpoint of a step that all"):
    together.train([config, config], [alone[0], str(tmp_path / "new")], quiet)


@pytest.mark.parametrize("key", numbers.NUMBERS)
def test_every_number_may_be_an_array(key):
  """The update that an array makes is the one that the number makes."""
  algorithm = {"momentum": "sgd", "muon_momentum": "muon", "muon_rate": "muon"}.get(key, "adamw")
  cfg = configs.typed(tiny("", f"optimizer.algorithm={algorithm}", "optimizer.muon=kernel", "optimizer.spike=5", "optimizer.muon_rate=2.0")).optimizer
  params = {"up": {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}}

  def updated(cfg):
    optimizer = configs.make(cfg, 10)
    state = optimizer.init(params)
    for i in range(3):
      updates, state = optimizer.update(jax.tree.map(lambda x, i=i: (1 + i) * np.cos(3 * i * x), params), state, params, loss=1.0)
    return updates

  inner = key.rpartition(".")[2]
  value = {"clip": 5.0, "spike": 2.0}.get(inner, 0.37)
  plain = jax.jit(lambda: updated(numbers.replaced(cfg, {key: value})))()
  traced = jax.jit(lambda x: updated(numbers.replaced(cfg, {key: x})))(np.float32(value))
  np.testing.assert_allclose(traced["up"]["kernel"], plain["up"]["kernel"], atol=1e-4 * np.abs(plain["up"]["kernel"]).max(), rtol=0)
  if key not in ("spike", "ema", "schedule.end"):  # which do nothing to the first updates
    other = jax.jit(lambda: updated(numbers.replaced(cfg, {key: value / 2})))()
    assert np.abs(plain["up"]["kernel"] - other["up"]["kernel"]).max() > 1e-3 * np.abs(plain["up"]["kernel"]).max()


def test_in_float64_too_a_rate_is_the_very_one_that_a_run_has_alone():
  with jax.enable_x64(True):
    typed = [configs.typed(member("", 0, 0, peak, decay)) for peak, decay in ((1e-2, 0.1), (3e-3, 0.3), (7e-4, 0.2))]
    values = together._values(typed)
    assert values[0].keys() == {"schedule.peak", "weight_decay"} and values[0]["weight_decay"].dtype == np.float64
    for value, cfg in zip(values, typed, strict=True):
      own = numbers.replaced(typed[0].optimizer, value)
      mine, theirs = (np.asarray(configs.make(each.schedule, 12)(np.arange(12))) for each in (own, cfg.optimizer))
      assert mine.dtype == theirs.dtype == np.float32 and (mine == theirs).all()


# --- the command -------------------------------------------------------------------------------------------------------------


def test_the_command_trains_each_program_of_a_file(data, tmp_path, run):
  pathlib.Path(tmp_path, "config.json").write_text(configs.record(tiny(data, "steps=2", "evaluate.every=2", "optimizer.schedule.warmup=1")))
  lines = [f"python -m research.train --config={tmp_path} --workdir={tmp_path / name} {more}".strip()
           for name, more in (("a", ""), ("b", "--config.seed=1"), ("c", "--config.model.width=8"), ("d", "--until=1"))]  # fmt: skip
  runs = tmp_path / "runs.txt"
  runs.write_text("# four runs\n\n" + "\n".join(lines) + "\n")
  code, out, _ = run(together_command, runs)
  assert code == 0 and "program 1 of 3" in out and "2 runs in one program" in out and out.count("step 2  loss") == 3
  assert all(json.loads((tmp_path / name / "summary.json").read_text())["step"] == (1 if name == "d" else 2) for name in "abcd")


@pytest.mark.parametrize("line, part", [("", "names none"), ("python -m research.train --workdir=x", "line 1"), ("python -m research.evaluate --workdir=x", "line 1"),
                                        ("python -m research.train --config=a --workdir=x && reboot", "line 1"), ("python 'x", "close its quotes"),
                                        ("python -m research.train --config=a --workdir=x --until=soon", "line 1")])  # fmt: skip
def test_mistakes_in_a_file_of_runs(tmp_path, run, line, part):
  path = tmp_path / "runs.txt"
  path.write_text(line)
  code, _, err = run(together_command, path)
  assert code == 2 and part in err and "Traceback" not in err
  code, _, err = run(together_command, tmp_path / "absent.txt")
  assert code == 2 and "absent.txt" in err
