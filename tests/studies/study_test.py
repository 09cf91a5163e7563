"""What a study stands for: its arms, its runs, what names them, and that a mistake ends it before anything runs."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shlex
import sys
import textwrap

import numpy as np
import pytest

from research.core import config as configs
from research.core.errors import UserError
from research.core.overrides import flag, load
from research.studies import address, results, stages, writing
from research.studies.board import DONE, FAILED, WAITS
from research.studies.design import LogUniform
from research.studies.launch import Outcome, left
from research.studies.runs import Ready, choose, measured
from research.studies.study import Halving, Search, Study, Tuning, arms_of, check, factors, load_study, resolved
from tests.studies.common import leave, write_config

PEAK, WIDTH = "optimizer.schedule.peak", "model.width"
ARMS = [{PEAK: peak, WIDTH: width} for peak in (1e-3, 3e-3) for width in (16, 32)]


def quiet(line):
  pass


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def ready_of(base, tmp_path_factory):
  """A study made ready in one folder, where the data are prepared once."""
  root = str(tmp_path_factory.mktemp("study"))

  def make(root=root, keep_code=False, **changes):
    study = Study(**{"question": "?", "base": base, "arms": ARMS, "seeds": 2, "steps": 2, **changes})
    check(study)
    return Ready(study, root, quiet, keep_code)

  return make


# --- the file ----------------------------------------------------------------------------------------------------------------


def test_a_two_factor_study_is_written_in_fifteen_lines(base, tmp_path):
  text = f"""
    from research.studies.study import Study


    def get_study():
      return Study(
        question="Does a wider model want a smaller step?",
        base="{base}",
        arms=[{{"optimizer.schedule.peak": peak, "model.width": width}} for peak in (1e-3, 3e-3) for width in (16, 32)],
        steps=200,
      )
    """
  path = tmp_path / "wide" / "study.py"
  path.parent.mkdir()
  path.write_text(textwrap.dedent(text).lstrip())
  assert len(path.read_text().splitlines()) <= 15
  study = load_study(str(path), ["--config.batch_size=8"])
  assert study.name == "wide" and study.blocks == (0, 1, 2) and study.common == {"batch_size": 8} and study.metric == "valid.loss"
  assert [arm.name for arm in arms_of(study)] == ["peak=0.001 width=16", "peak=0.001 width=32", "peak=0.003 width=16", "peak=0.003 width=32"]


@pytest.mark.parametrize(
  "changes, parts",
  [
    ({"arms": [{"model.widht": 16}]}, ["no config key 'model.widht'", "Did you mean 'model.width'?"]),
    ({"arms": [{}, {"objective": "masked_ml"}]}, ["Did you mean 'objectives.masked_lm'?"]),
    ({"arms": [{WIDTH: "wide"}]}, ["'model.width'", "'wide'"]),
    ({"common": {"modle.width": 16}}, ["'modle.width'", "Did you mean 'model'?"]),
    ({"base": "absent.py"}, ["no config file 'absent.py'"]),
    ({"tuning": Tuning((1.0, 2.0), key="optimizer.schedule.peka"), "arms": [{}]}, ["'optimizer.schedule.peka'", "Did you mean"]),
    ({"tuning": Tuning((1e-3, 2e-3))}, ["'optimizer.schedule.peak'", "tuning of the study decides it"]),
    ({"tuning": Tuning((1e-3,), metric="valid.accuracy")}, ["'valid.accuracy'", "better='lower' or 'higher'"]),
    ({"arms": [{"name": "a", "after": "nowhere:b"}]}, ["'nowhere' is no folder of a study", "sweep that one first"]),
    ({"halving": Halving(), "metrics": {"evaluations.loss": "lower"}}, ["halving goes by 'evaluations.loss'", "such as valid.loss"]),
    ({"halving": Halving(), "arms": [{"name": "a"}, {"name": "b", "after": "a"}]}, ["halving takes no arms with 'after'"]),
    ({"search": Search({PEAK: LogUniform(1e-4, 1e-2)}), "halving": Halving()}, ["a search takes neither halving"]),
    ({"search": Search({PEAK: LogUniform(1e-4, 1e-2)}), "tuning": Tuning((16, 32), WIDTH), "arms": [{}]}, ["a search takes no tuning"]),
    ({"search": Search({PEAK: LogUniform(1e-4, 1e-2)}), "arms": [{WIDTH: 16}]}, [PEAK, "latin_hypercube"]),
    ({"arms": [{"seed": 3}]}, ["'seed'", "seeds of the study decides it"]),
    ({"arms": [{"steps": 3}]}, ["'steps'", "the budget of the study decides it"]),
    ({"arms": [{}, {}]}, ["two arms are called 'baseline'"]),
    ({"arms": [{"name": "a"}, {"name": "b", "after": "c"}]}, ["'c', which is no arm above it", "Known: a."]),
    ({"arms": [{"name": "b", "after": "b"}]}, ["'b', which is no arm above it"]),
    ({"baseline": "peak=0.001 width=61"}, ["is no arm", "Did you mean 'peak=0.001 width=16'?"]),
    ({"evals": ("minimal_pear --data=x",)}, ["no evaluation 'minimal_pear'", "Did you mean 'minimal_pairs'?"]),
    ({"evals": ("minimal_pairs --date=x",)}, ["'--date=x'", "Did you mean 'data'?"]),
    ({"evals": ("minimal_pairs --data='x",)}, ["--data='x", "close its quotes"]),
    ({"steps": None}, ["equal in one thing", "steps, tokens, flops"]),
    ({"tokens": 1e6}, ["not steps and tokens"]),
    ({"steps": 0}, ["steps=0"]),
    ({"seeds": (1, 1)}, ["seeds=(1, 1)"]),
    ({"metrics": {"vaild.loss": "lower"}}, ["'vaild.loss'", "Did you mean 'valid'?"]),
    ({"metrics": {"valid.loss": "down"}}, ["'down'", "'lower' or 'higher'"]),
    ({"arms": [{"model": configs.use("model.transformer")}]}, ["'model'", "no flag can say"]),
    ({"arms": ({WIDTH: width} for width in (16, 32))}, ["arms are a list"]),
    ({"arms": [{"name": "a\nb"}]}, ["'a\\nb'", "one line"]),
    ({"arms": [{"name": ["a"]}]}, ["['a']", "one line"]),
    ({"arms": [{"name": "a"}, {"name": "b", "after": 1}]}, ["after 1"]),
    ({"arms": [{"evals": None}]}, ["evals=None", "baseline"]),
    ({"evals": ("minimal_pairs --pairs=many",)}, ["'--pairs=many'", "whole number"]),
    ({"metrics": {"evaluations.probing.accuracy": "higher"}}, ["'evaluations.probing.accuracy'", "evals=['probing']"]),
    ({"metrics": {3: "lower"}}, ["metric 3"]),
    ({"base": None}, ["base=None"]),
    ({"seeds": 3.0}, ["seeds=3.0"]),
    ({"steps": 10.5}, ["steps=10.5", "whole number"]),
    ({"steps": None, "tokens": float("inf")}, ["tokens=inf"]),
    ({"tuning": {"values": [1e-3]}}, ["write tuning=Tuning(…)"]),
    ({"halving": 3}, ["write halving=Halving(…)"]),
    ({"search": Search({PEAK: LogUniform(1e-4, 1e-2)}), "arms": [{PEAK: 1.0}]}, [f"'{PEAK}' is 1.0", "the search may take"]),
  ],
  ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)  # fmt: skip
def test_a_mistake_is_one_sentence_before_anything_runs(base, changes, parts):
  with pytest.raises(UserError) as error:
    check(Study(**{"question": "?", "base": base, "arms": ARMS, "steps": 2, **changes}))
  assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value), error.value


@pytest.mark.parametrize(
  "make, parts",
  [
    (lambda: Tuning((1e-3, 1e-3)), ["tuning.values", "once"]),
    (lambda: Tuning(1e-3), ["tuning.values=0.001", "list"]),
    (lambda: Tuning([None, 1.0], "optimizer.clip"), ["optimizer.clip", "None", "an arm of its own"]),
    (lambda: Tuning((1e-3, 2e-3), blocks=3), ["tuning.blocks=3"]),
    (lambda: Halving(2.5), ["rungs=2.5"]),
    (lambda: Search({PEAK: 1e-3}), [f"'{PEAK}'", "0.001"]),
    (lambda: Search({}), ["a space is a mapping"]),
    (lambda: Search({PEAK: LogUniform(1e-4, 1e-2)}, count=0), ["count=0"]),
  ],
)
def test_a_mistake_in_a_part_of_a_study_is_one_sentence(make, parts):
  with pytest.raises(UserError) as error:
    make()
  assert all(part in str(error.value) for part in parts), error.value


def test_values_of_an_array_are_values(base):
  study = Study("?", base, [{}], steps=2, tuning=Tuning(np.array([1e-3, 2e-3])))
  check(study)
  assert study.tuning.values == (1e-3, 2e-3) and {type(value) for value in study.tuning.values} == {float}


@pytest.mark.parametrize("line, parts", [("Study(question='?', bsae='x', arms=[{}], steps=1)", ["line 4", "'bsae'"]), ("None", ["returns no study"])])
def test_a_mistake_in_the_file_is_one_sentence(tmp_path, line, parts):
  path = tmp_path / "study.py"
  path.write_text(f"from research.studies.study import Study\n\ndef get_study():\n  return {line}\n")
  with pytest.raises(UserError) as error:
    load_study(str(path))
  assert all(part in str(error.value) for part in ["study file", *parts]), error.value


def test_parts_of_a_model_that_do_not_go_together_are_told_before_anything_runs(ready_of):
  with pytest.raises(UserError, match="heads"):
    ready_of(arms=[{}, {"model.attention.heads": 3}])
  with pytest.raises(UserError, match="warmup 50"):
    ready_of(arms=[{}, {"optimizer.schedule.warmup": 50}])


# --- the runs ----------------------------------------------------------------------------------------------------------------


def test_the_arms_of_a_block_share_their_order_of_rows_and_nothing_is_named_twice(ready_of):
  found = ready_of().runs()
  assert [(run.arm, run.block) for run in found] == [(arm.name, block) for block in (0, 1) for arm in ready_of().arms]
  assert len({run.address for run in found}) == 8
  for block in (0, 1):
    mine = [run for run in found if run.block == block]
    assert {(run.overrides["seed"], run.overrides["data.seed"]) for run in mine} == {(block, block)}
    assert len({run.data_hash for run in mine}) == 1
  assert len({run.data_hash for run in found}) == 2


def test_the_command_of_a_run_has_its_config(ready_of, base):
  ready = ready_of(common={"log.every": 3})
  run = ready.runs()[3]
  words = shlex.split(run.command(ready.root))
  assert words[:3] == ["python", "-m", "research.train"] and words[3] == f"--config={base}" and words[4] == f"--workdir={run.folder(ready.root)}"
  config = load(base, words[5:])
  assert configs.digest(config) == run.config_hash
  assert (config.model.width, config.optimizer.schedule.peak, config.steps, config.log.every) == (32, 3e-3, 2, 3)


NASTY = ["a b", "$(touch pwned)", "`touch pwned`;touch pwned&", "'\"\\ * ? ~ $HOME ${x} {a,b}", "one\ntouch pwned\n", "", "é — '", "--", "none", "True", "3", "1e-3",
         "a=b", None, True, 3, 0.1, (1, 2), ("a", "b c"), [1], {"a": 0.5}, np.float64(0.1), np.int64(7)]  # fmt: skip


@pytest.mark.parametrize("value", NASTY, ids=repr)
def test_a_flag_says_the_very_value_in_one_line_and_one_word(value):
  from research.core.overrides import split

  (word,) = shlex.split(shlex.join([flag("a.b", value)]))
  assert split(word) == ("a.b", value) and type(split(word)[1]) is type(value.item() if hasattr(value, "item") else value)
  assert "\n" not in word


@pytest.mark.parametrize("budget, per_step", [("tokens", 64), ("flops", None)])
def test_a_budget_gives_each_arm_the_nearest_number_of_steps(ready_of, budget, per_step):
  costs = [per_step or cost.flops for cost in ready_of().costs]
  amount = 7.6 * max(costs)
  ready = ready_of(steps=None, **{budget: amount}, arms=[{WIDTH: 16}, {WIDTH: 32}])
  spent = [steps * (per_step or cost.flops) for steps, cost in zip(ready.steps, ready.costs)]
  assert all(abs(total - amount) <= (per_step or cost.flops) / 2 for total, cost in zip(spent, ready.costs))
  assert ready.steps[1] == 8 and (ready.steps[0] == 8 if per_step else ready.steps[0] > 15)
  found = ready.runs()
  assert [run.overrides["steps"] for run in found[:2]] == ready.steps == [run.steps for run in found[:2]]
  with pytest.raises(UserError, match="raise the budget"):
    ready_of(steps=None, **{budget: 0.4 * max(costs)})


def test_the_warm_up_keeps_its_share_of_the_steps_unless_the_study_sets_it(ready_of):
  warmups = lambda **changes: [run.overrides.get("optimizer.schedule.warmup") for run in ready_of(seeds=1, **changes).runs()]
  assert warmups(steps=50, arms=[{}]) == [5] and warmups(steps=100, arms=[{}]) == [None]
  assert warmups(steps=50, arms=[{"optimizer.schedule.warmup": 7}, {"optimizer.schedule.warmup": 3}]) == [7, 3]
  assert warmups(steps=50, arms=[{}], common={"optimizer.schedule.warmup": 8}) == [8]


def test_levels_are_what_stands_in_the_config_of_each_arm(base):
  arms = [{}, {"model.norm": "layer"}, {"objective": "causal_lm", "objective.z_loss": 0.1}, {"objective": "masked_lm"}, {WIDTH: 16}]
  study = Study("?", base, arms, steps=2)
  found, levels = factors(arms_of(study), [resolved(study, arm)[1] for arm in arms_of(study)])
  assert [arm.name for arm in arms_of(study)] == ["baseline", "norm=layer", "objective=causal_lm z_loss=0.1", "objective=masked_lm", "width=16"]
  plain = load(base)
  assert found == {"model.norm": [plain.model.norm, "layer"], "objective": ["causal_lm", "masked_lm"], "objective.z_loss": [plain.objective.z_loss, 0.1, None]}
  assert levels[3] == {"model.norm": plain.model.norm, "objective": "masked_lm", "objective.z_loss": None} and levels[4] == levels[0]


# --- addresses ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path, monkeypatch):
  """An objective outside the package, in a package of its own, with a helper and a file that nobody reads."""
  folder = tmp_path / "mine"
  folder.mkdir()
  for name, text in {"__init__": "", "helper": '"""Says."""\n\nVALUE = 1  # a number\n', "unread": "VALUE = 1\n",
                     "objective": "import dataclasses\nfrom mine.helper import VALUE\n\n\n@dataclasses.dataclass(frozen=True)\nclass Config:\n  a: int = VALUE\n"}.items():  # fmt: skip
    (folder / f"{name}.py").write_text(text)
  monkeypatch.syspath_prepend(str(tmp_path))
  yield folder
  for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
    del sys.modules[name]


def test_the_address_changes_with_any_key_but_the_place_of_the_data(base):
  of = lambda *overrides, data="d", code="c", after=None: address.address(load(base, overrides), data, code, after)
  same = of()
  assert of("data.directory=/elsewhere") == same and of(f"{WIDTH}=16") == same
  others = [of(f"{WIDTH}=32"), of("seed=1"), of("log.every=2"), of("mesh.fsdp=2"), of(data="e"), of(code="d"), of("init_from=x", after="0" * 12),
            of("init_from=x", after="1" * 12)]  # fmt: skip
  assert len({same, *others}) == 9
  assert of("init_from=/a/runs/0", after="0" * 12) == of("init_from=/b/runs/0", after="0" * 12)


def test_the_address_changes_with_the_data(ready_of, tmp_path):
  text, found = tmp_path / "some.txt", []
  for content in ("the quick brown fox jumps over the lazy dog. ", "the quick brown fox jumps over the lazy cat. "):
    text.write_text(content * 60)
    found += ready_of(str(tmp_path / "study"), arms=[{}], seeds=1, common={"data.sources.text": "files", "data.sources.text.paths": str(text)}).runs()
  one, other = found
  assert one.config_hash == other.config_hash and one.code == other.code and one.data_hash != other.data_hash and one.address != other.address
  leave(one, str(tmp_path / "study"))
  assert left(one, str(tmp_path / "study")) == [] and left(other, str(tmp_path / "study"))


def test_a_run_that_ended_on_other_data_than_its_address_says_is_no_run_of_the_study(ready_of, tmp_path):
  run = ready_of().runs()[0]
  leave(run, str(tmp_path), data_hash="another")
  with pytest.raises(UserError, match="other data .hash another."):
    left(run, str(tmp_path))


def test_the_code_of_a_run_is_what_it_can_reach(base, outside):
  plain, mine = (address.components(load(base, overrides)) for overrides in ([], ["objective=mine.objective"]))
  reached = address.reachable(plain)
  assert {"research", "research.train", "research.training.step", "research.objectives.causal_lm", "research.model.ffn.dense", "research.data.sources.files"} <= reached.keys()
  assert not {"research.objectives.masked_lm", "research.model.ffn.moe", "research.sweep", "research.evaluate"} & reached.keys()
  assert not [name for name in reached if name.startswith(("research.hf", "research.studies", "research.decode"))]
  assert {"mine", "mine.objective", "mine.helper"} <= address.reachable(mine).keys() and "mine.unread" not in address.reachable(mine)


@pytest.mark.parametrize(
  "file, old, new, counts",
  [
    ("helper", "VALUE = 1", "VALUE = 2", True),
    ("helper", "a number", "some number", False),
    ("helper", "Says.", "Tells.", False),
    ("unread", "VALUE = 1", "VALUE = 2", False),
    ("objective", "a: int = VALUE", "a: int = VALUE + 1", True),
  ],
)
def test_the_address_changes_with_code_but_not_with_what_is_said_of_it(base, outside, file, old, new, counts):
  plain, mine = (address.components(load(base, overrides)) for overrides in ([], ["objective=mine.objective"]))
  before, others = address.code_hash(mine), address.code_hash(plain)
  path = outside / f"{file}.py"
  assert old in path.read_text()
  path.write_text(path.read_text().replace(old, new))
  assert (address.code_hash(mine) != before) == counts and address.code_hash(plain) == others


def test_keep_code_counts_what_only_other_code_has_made(ready_of, tmp_path, monkeypatch):
  root = str(tmp_path)
  ready = ready_of(root)
  stages.save(ready, {}, [])
  before = {run.address for run in ready.runs()}
  monkeypatch.setattr(address, "code_hash", lambda parts: "other code")
  assert not before & {run.address for run in ready_of(root).runs()}
  kept = ready_of(root, keep_code=True)
  assert {run.address for run in kept.runs()} == before and {run.code for run in kept.runs()} == {run.code for run in ready.runs()}
  changed = ready_of(root, keep_code=True, common={"log.every": 2})
  assert not before & {run.address for run in changed.runs()}


def test_keep_code_still_counts_them_after_a_sweep_without_it(ready_of, tmp_path, monkeypatch):
  root = str(tmp_path)
  ready = ready_of(root)
  stages.save(ready, {}, [])
  before = [run.address for run in ready.runs()]
  for run in ready.runs():
    leave(run, root)
  assert "earlier" not in json.loads((tmp_path / "study.json").read_text())
  monkeypatch.setattr(address, "code_hash", lambda parts: "other code")
  said = []
  plain = Ready(ready.study, root, said.append)
  for run in plain.runs():
    os.makedirs(run.folder(root))
  stages.save(plain, {}, [])
  assert not set(before) & {run.address for run in plain.runs()} and [line for line in said if "--keep_code counts them" in line] == said[-1:]
  assert [run["address"] for run in json.loads((tmp_path / "study.json").read_text())["earlier"]] == before
  assert [run.address for run in ready_of(root, keep_code=True).runs()] == before
  (tmp_path / "study.json").write_text("{")
  assert len(ready_of(root).runs()) == len(before)
  with pytest.raises(UserError, match="study.json' is damaged .* --keep_code"):
    ready_of(root, keep_code=True)


def test_keep_code_knows_the_runs_of_a_study_that_was_moved(ready_of, tmp_path, monkeypatch):
  here, there = str(tmp_path / "here"), str(tmp_path / "there")
  ready = ready_of(here, arms=AFTER)
  stages.save(ready, {}, [])
  os.rename(here, there)
  monkeypatch.setattr(address, "code_hash", lambda parts: "other code")
  kept = ready_of(there, arms=AFTER, keep_code=True).runs()
  assert [run.address for run in kept] == [run.address for run in ready.runs()]
  assert {run.overrides.get("init_from") for run in kept if run.after} == {os.path.join(there, "runs", run.address) for run in kept if not run.after}
  swapped = ready_of(there, arms=[{**AFTER[0], "model.width": 32}, {**AFTER[1], "model.width": 16}], keep_code=True).runs()
  assert not {run.address for run in swapped} & {run.address for run in kept}


# --- one after another, tuning -----------------------------------------------------------------------------------------------

AFTER = [{"name": "first"}, {"name": "second", "after": "first", "optimizer.weight_decay": 0.2}]


def test_an_arm_that_starts_from_another_has_its_run_of_the_same_block(ready_of):
  ready = ready_of(arms=AFTER)
  found = {(run.arm, run.block): run for run in ready.runs()}
  for block in (0, 1):
    first, second = found["first", block], found["second", block]
    assert second.after == first.address and second.overrides["init_from"] == first.folder(ready.root) and first.after is None
  other = ready_of(arms=[{**AFTER[0], "model.width": 32}, {**AFTER[1], "model.width": 16}])
  assert {run.address for run in other.runs() if run.arm == "second"}.isdisjoint({run.address for run in ready.runs()})


def losses(runs, root, table):
  for run in runs:
    if (loss := table.get((run.arm, run.tuned))) is not None:
      leave(run, root, valid={"loss": loss + 0.1 * run.block})


def test_each_arm_is_tuned_by_the_one_rule_that_is_said(ready_of, tmp_path):
  study = dict(arms=[{WIDTH: 16}, {WIDTH: 32}], tuning=Tuning((1e-3, 3e-3, 1e-2), blocks=(7, 8)))
  ready = ready_of(str(tmp_path), **study)
  found = ready.tuning_runs({})
  assert ready.runs({}) == [] and len(found) == 12 and {run.block for run in found} == {7, 8}
  assert "one of 0.001, 0.003, 0.01 with the lowest mean valid.loss over blocks 7, 8, apart from" in ready.study.tuning_rule
  table = {("width=16", 1e-3): 3.0, ("width=16", 3e-3): 2.0, ("width=16", 1e-2): float("nan"), ("width=32", 1e-3): 2.5, ("width=32", 3e-3): 2.6}
  losses(found, ready.root, table)
  assert choose(ready.study, found, ready.root) == {"width=16": 3e-3}  # of the other arm a run is not done yet
  chosen = choose(ready.study, found, ready.root, all_ended=True)
  assert chosen == {"width=16": 3e-3, "width=32": 1e-3}
  assert {(run.arm, run.overrides[PEAK]) for run in ready.runs(chosen)} == {("width=16", 3e-3), ("width=32", 1e-3)}
  for seeds in (2, 5):  # more seeds leave what was tuned as it is
    assert ready_of(**{**study, "seeds": seeds, "tuning": Tuning((1e-3,))}).study.tuning_blocks == (1000,)
  assert ready_of(**{**study, "seeds": (7, 1000), "tuning": Tuning((1e-3,))}).study.tuning_blocks == (1001,)


def test_a_study_is_tuned_first_then_compared_and_an_arm_without_a_value_is_left_out(ready_of, tmp_path):
  ready = ready_of(str(tmp_path), arms=[*AFTER, {"name": "lost", WIDTH: 32}], tuning=Tuning((1e-3, 3e-3, 2e-3)))
  table = {("first", 1e-3): 3.0, ("first", 3e-3): 2.0, ("first", 2e-3): 2.5, ("second", 1e-3): 1.0, ("second", 3e-3): 4.0, ("second", 2e-3): 0.5}
  table |= {("lost", value): float("nan") for value in (1e-3, 3e-3, 2e-3)}
  batches, said = [], []

  def start(found):
    batches.append([(run.arm, run.tuned, run.overrides[PEAK]) for run in found])
    losses(found, ready.root, table)
    return Outcome(dict.fromkeys((run.address for run in found), DONE))

  assert stages.sweep(ready, start, said.append) == 1
  values = (1e-3, 3e-3, 2e-3)
  assert batches[:2] == [[("first", v, v) for v in values] + [("lost", v, v) for v in values], [("second", v, v) for v in values]]
  assert batches[2] == [(arm, None, value) for _ in (0, 1) for arm, value in (("first", 3e-3), ("second", 2e-3))]
  assert any(line.startswith("lost: could not be tuned") and "left out" in line for line in said)
  assert any(line.startswith("first: tuned to optimizer.schedule.peak=0.003, at the edge") for line in said)
  assert "second: tuned to optimizer.schedule.peak=0.002" in said
  record = json.loads(pathlib.Path(ready.root, "study.json").read_text())
  assert record["tuning"]["chosen"] == {"first": 3e-3, "second": 2e-3} and len(record["tuning"]["runs"]) == 9
  assert [(run["arm"], bool(run["address"])) for run in record["runs"][:3]] == [("first", True), ("second", True), ("lost", False)]
  del batches[:]  # the same again finds all tuned that can be
  assert stages.sweep(ready, start, said.append) == 1 and len(batches) == 1


@pytest.mark.parametrize("halving", [None, Halving(rungs=2)], ids=["to the end", "halved"])
@pytest.mark.parametrize("loss", [2.5, float("nan")], ids=["failed", "diverged"])
def test_a_value_loses_by_a_run_that_diverged_and_by_no_other_failure(ready_of, tmp_path, halving, loss):
  """It logged one more line, at another step than its last, and came no further."""
  ready, said = ready_of(str(tmp_path), arms=[{WIDTH: 16}], steps=8, seeds=1, tuning=Tuning((1e-3, 3e-3), blocks=(1,), halving=halving)), []

  def start(found):
    for run in found:
      if run.tuned == 1e-3:
        os.makedirs(run.folder(ready.root), exist_ok=True)
        pathlib.Path(run.folder(ready.root), "metrics.jsonl").write_text(json.dumps({"step": 1, "split": "train", "loss": loss, "skipped": 0}) + "\n")
      else:
        leave(run, ready.root, valid={"loss": 2.0}, stopped_by=None)
    return Outcome({run.address: FAILED if run.tuned == 1e-3 else DONE for run in found})

  status, record = stages.sweep(ready, start, said.append), json.loads(pathlib.Path(tmp_path, "study.json").read_text())
  if loss == 2.5:
    assert status == 1 and record["tuning"]["chosen"] == {} and "1 of 2 tuning runs are done, 1 have failed" in said[-1]
    assert re.match(r"nothing is decided: no valid\.loss of baseline · block 1 · trying 0\.001( · to step 4)?, though no loss has diverged there: mend", said[-2])
  else:
    assert status == 0 and record["tuning"]["chosen"] == {"baseline": 3e-3} and (halving is None or any("dropped 0.001 diverged" in line for line in said))


def test_a_sweep_that_only_hands_runs_on_stops_after_tuning_runs(ready_of, tmp_path):
  ready = ready_of(str(tmp_path), tuning=Tuning((1e-3, 3e-3)), arms=[{WIDTH: 16}, {WIDTH: 32}])
  said = []
  assert stages.sweep(ready, lambda found: Outcome({run.address: WAITS for run in found}, pending=True), said.append) == 0
  assert "0 of 4 tuning runs are done" in said[-1]


# --- halving, search, another study ------------------------------------------------------------------------------------------

QUALITY = {16: 2.0, 32: 1.0, 24: 3.0, 48: float("nan"), 8: 4.0, 40: 1.5}


def stand_in(ready, batches, quality=QUALITY):
  """Brings each run to its goal; what it scores there is its width's quality, or that of its learning rate."""

  def start(found):
    batches.append([(run.overrides[WIDTH], run.tuned, run.block, run.until) for run in found])
    for run in found:
      if left(run, ready.root):
        loss = quality.get(run.overrides[WIDTH], 0.0) + (1000 * run.overrides[PEAK] if PEAK in run.overrides else 0.0)
        leave(run, ready.root, valid={"loss": loss + 0.1 * run.block}, stopped_by=None)
    return Outcome(dict.fromkeys((run.address for run in found), DONE))

  return start


def test_halving_drops_the_worse_arms_on_the_way_and_keeps_the_baseline(ready_of, tmp_path):
  widths = (16, 32, 24, 48, 8, 40)
  ready = ready_of(str(tmp_path), arms=[{WIDTH: width} for width in widths], steps=8, halving=Halving(rungs=3), baseline="width=8")
  batches, said = [], []
  assert stages.sweep(ready, stand_in(ready, batches), said.append) == 0
  every = lambda alive, until: [(width, None, block, until) for width in alive for block in (0, 1)]
  assert batches[0] == every(widths, 2) and batches[1] == every((16, 32, 8, 40), 4)
  assert batches[2] == [(width, None, block, None) for block in (0, 1) for width in (32, 8)]
  assert "after rung 1 of 3 dropped width=24 3.0500, width=48 diverged" in said[0] and "dropped width=16 2.0500, width=40 1.5500" in said[1]
  found = results.read(str(tmp_path))
  state = {arm: {run.state for run in found.of(arm)} for arm in found.arms}
  assert [state[f"width={width}"] for width in (32, 8, 16, 24)] == [{"done"}, {"done"}, {"dropped"}, {"dropped"}]
  writing.write(str(tmp_path))
  text, record = pathlib.Path(tmp_path, "report.md").read_text(), pathlib.Path(tmp_path, "study.json").read_text()
  assert "`width=24` | 3.0500 at step 2" in text and "`width=40` | 1.5500 at step 4" in text and "--until" not in record
  del batches[:]  # the same again decides the same and writes the same bytes
  assert stages.sweep(ready, stand_in(ready, batches), said.append) == 0 and batches[2] == [(width, None, block, None) for block in (0, 1) for width in (32, 8)]
  assert pathlib.Path(tmp_path, "study.json").read_text() == record


def test_nothing_is_decided_by_the_runs_that_there_are_when_the_code_was_edited(ready_of, tmp_path):
  ready, said = ready_of(str(tmp_path), arms=[{WIDTH: 16}, {WIDTH: 32}], steps=8, seeds=1, tuning=Tuning((1e-3, 3e-3), halving=Halving(rungs=2))), []

  def start(found):
    leave(found[0], ready.root, valid={"loss": 1.0}, stopped_by=None)
    return Outcome({run.address: DONE if run is found[0] else WAITS for run in found}, edited=True)

  assert stages.sweep(ready, start, said.append) == 1 and "the code was edited meanwhile" in said[-1] and not any("dropped" in line for line in said)
  assert json.loads(pathlib.Path(tmp_path, "study.json").read_text())["tuning"]["chosen"] == {}


def test_a_sweep_stopped_within_a_rung_says_so_and_goes_no_further(ready_of, tmp_path):
  ready, said, batches = ready_of(str(tmp_path), arms=[{WIDTH: 16}, {WIDTH: 32}], steps=8, halving=Halving(rungs=2)), [], []

  def start(found):
    batches.append(found)
    return Outcome(dict.fromkeys((run.address for run in found), WAITS), signal=15)

  assert stages.sweep(ready, start, said.append) == 143 and len(batches) == 1 and {run.until for run in batches[0]} == {4}
  assert "0 of 4 runs are done" in said[-1] and "the same command goes on" in said[-1]
  assert "--until=4" in batches[0][0].arguments("x") and [task.words[3] for task in left(batches[0][0], ready.root)] == ["--until=4"]


def test_values_of_a_tuned_key_are_halved_and_the_last_one_left_need_not_go_on(ready_of, tmp_path):
  peaks = (1e-3, 3e-3, 2e-3, 1e-2)
  ready = ready_of(str(tmp_path), arms=[{WIDTH: 16}, {WIDTH: 32}], steps=8, seeds=1, tuning=Tuning(peaks, blocks=(1,), halving=Halving(rungs=3)))
  batches, said = [], []
  assert stages.sweep(ready, stand_in(ready, batches), said.append) == 0
  assert [{(peak, until) for _, peak, _, until in batch} for batch in batches] == [{(peak, 2) for peak in peaks}, {(1e-3, 4), (2e-3, 4)}, {(None, None)}]
  record = json.loads(pathlib.Path(tmp_path, "study.json").read_text())
  assert record["tuning"]["chosen"] == {"width=16": 1e-3, "width=32": 1e-3} and "by successive halving" in record["tuning"]["rule"]
  assert sorted(run["until"] for run in record["tuning"]["runs"]) == [2] * 4 + [4] * 4 and "until" not in record["runs"][0]
  writing.write(str(tmp_path))
  text = pathlib.Path(tmp_path, "report.md").read_text()
  assert "| 3.1000 at step 4 | 5.1000 at step 2 | 4.1000 at step 4 | 12.1000 at step 2 |" in text and "All 2 runs are done" not in text
  state = {(run.arm, run.plan["value"]): run.state for run in results.read(str(tmp_path)).tuning}
  assert [state["width=16", peak] for peak in peaks] == ["chosen", "dropped", "dropped", "dropped"] and "| chosen | `runs/" in text


def test_runs_that_went_past_a_rung_before_the_study_was_halved_are_told(ready_of, tmp_path):
  ready, said = ready_of(str(tmp_path), arms=[{WIDTH: 16}, {WIDTH: 32}], seeds=1, steps=8, halving=Halving(rungs=2)), []

  def start(found):
    for run, until in zip(found, (None, found[1].until)):
      leave(dataclasses.replace(run, until=until), ready.root, valid={"loss": 1.0}, stopped_by=None)
    return Outcome(dict.fromkeys((run.address for run in found), DONE))

  assert stages.sweep(ready, start, said.append) == 1
  assert any("nothing is decided: width=16 · block 0 · to step 4 went further before the study was halved so" in line and "another folder" in line for line in said)


def test_a_search_asks_for_more_arms_by_the_scores_of_those_before(ready_of, tmp_path, monkeypatch):
  asked = []

  def suggest(count, space, told, better, seed):
    asked.append((count, better, seed, told))
    return [{PEAK: 1e-3}, {PEAK: told[0][0][PEAK] / 2 ** (1 + seed)}]  # the first is one that has been tried

  monkeypatch.setattr(stages.design, "suggest", suggest)
  monkeypatch.setattr(stages.design, "sampler_library", lambda: None)
  batches, said = [], []
  study = Study("?", ready_of().study.base, [{PEAK: 1e-3}, {PEAK: 4e-3}], common={WIDTH: 16}, seeds=2, steps=2, search=Search({PEAK: LogUniform(1e-4, 1e-2)}, rounds=2, count=2))
  make = lambda study: Ready(study, str(tmp_path), quiet)
  start = lambda found: stand_in(ready_of(str(tmp_path)), batches)(found)
  assert stages.search(make, study, start, said.append) == 0
  assert [len(batch) for batch in batches] == [4, 6, 8] and [a[:3] for a in asked] == [(2, "lower", 0), (2, "lower", 1)]
  assert asked[1][3] == [({PEAK: 1e-3}, 3.05), ({PEAK: 4e-3}, 6.05), ({PEAK: 5e-4}, 2.55)]
  record = json.loads(pathlib.Path(tmp_path, "study.json").read_text())
  assert [arm["name"] for arm in record["arms"]] == ["peak=0.001", "peak=0.004", "peak=0.0005", "peak=0.00025"] and record["search"]["rounds"] == 2
  writing.write(str(tmp_path))
  monkeypatch.undo()
  monkeypatch.setitem(sys.modules, "optuna", None)
  with pytest.raises(UserError, match=r"pip install -e '\.\[search\]'"):  # before anything is made ready
    stages.search(None, study, start)
  assert "suggested by Optuna's TPE" in pathlib.Path(tmp_path, "report.md").read_text()


def test_the_arms_of_a_search_keep_their_names(ready_of, tmp_path, monkeypatch):
  monkeypatch.setattr(stages.design, "suggest", lambda count, space, told, better, seed: [{PEAK: 2e-3, WIDTH: 32}])
  monkeypatch.setattr(stages.design, "sampler_library", lambda: None)
  study = Study("?", ready_of().study.base, [{PEAK: 1e-3, WIDTH: 16}, {PEAK: 4e-3, WIDTH: 16}], seeds=1, steps=2, baseline="peak=0.004", search=Search({PEAK: LogUniform(1e-4, 1e-2), WIDTH: [16, 32]}, rounds=1, count=1))
  make = lambda study: Ready(study, str(tmp_path), quiet)
  assert stages.search(make, study, lambda found: stand_in(ready_of(str(tmp_path)), [])(found), quiet) == 0
  assert results.read(str(tmp_path)).arms == ["peak=0.001", "peak=0.004", "peak=0.002 width=32"]


def test_an_arm_may_start_from_a_run_of_another_study_that_has_ended(ready_of, tmp_path):
  first = ready_of(str(tmp_path / "first"), arms=[{WIDTH: 16}, {WIDTH: 32}])
  stages.save(first, {}, [])
  second = ready_of(str(tmp_path / "second"), arms=[{"name": "tuned", WIDTH: 32, "after": f"{tmp_path}/first:width=32"}])
  with pytest.raises(UserError, match="no run of arm 'width=32' and block 0 that has ended: sweep it first"):
    second.runs()
  for run in first.runs():
    leave(run, first.root, valid={"loss": 1.0}, stopped_by=None)
  source = {run.block: run for run in first.runs() if run.arm == "width=32"}
  (tmp_path / "a:b").symlink_to("first")
  assert arms_of(Study("?", "x.py", [{"after": f"{tmp_path}/a:b:c:d"}], steps=1))[0].other == (f"{tmp_path}/a:b", "c:d")
  tuned = ready_of(str(tmp_path / "tuned"), arms=[{"name": "tuned", WIDTH: 32, "after": f"{tmp_path}/first:width=32"}], tuning=Tuning((1e-3, 3e-3), blocks=(0,)))
  batches: list = []
  assert stages.sweep(tuned, stand_in(tuned, batches), quiet) == 0 and [len(batch) for batch in batches] == [2, 2]
  writing.write(tuned.root)
  spent = results.read(first.root).total_flops("width=32")
  assert results.read(tuned.root).total_flops("tuned") == 2 * spent > 0
  assert [(run.after, run.overrides["init_from"]) for run in second.runs()] == [(source[b].address, source[b].folder(first.root)) for b in (0, 1)]


def test_a_metric_is_found_in_what_a_run_has_left(ready_of, tmp_path):
  run = ready_of().runs()[0]
  assert measured(run, str(tmp_path), "valid.loss") is None
  leave(run, str(tmp_path), valid={"loss": 2.0}, flops=5.0)
  scores = {"minimal_pairs of $RESEARCH_DATA/a.tar.gz": {"scores": {"overall": {"value": 61.5, "low": 1}}}, "loss": {"scores": {"loss": {"value": 3.0}}}}
  pathlib.Path(run.folder(str(tmp_path)), "evaluations.json").write_text(json.dumps(scores))
  of = lambda metric: measured(run, str(tmp_path), metric)
  assert (of("valid.loss"), of("flops"), of("evaluations.minimal_pairs.overall"), of("evaluations.loss.scores.loss.value")) == (2.0, 5.0, 61.5, 3.0)
  assert of("evaluations.minimal_pairs of $RESEARCH_DATA/a.tar.gz.scores.overall.value") == 61.5
  assert of("valid.accuracy") is None and of("evaluations.tagging.f1") is None
  for damaged in ('{"minimal', "[1]"):
    pathlib.Path(run.folder(str(tmp_path)), "evaluations.json").write_text(damaged)
    assert of("evaluations.minimal_pairs.overall") is None
  leave(run, str(tmp_path), valid={"loss": 2.0}, step=1)
  assert of("valid.loss") is None


# --- study.json --------------------------------------------------------------------------------------------------------------


def test_the_record_has_all_that_a_report_reads_and_the_same_bytes_each_time(ready_of, base):
  changes = dict(metrics={"valid.loss": "lower", "valid.accuracy": "higher"}, hypothesis="Yes.", baseline="peak=0.003 width=16", name="wide")
  text = ready_of(**changes).record({})
  assert text == ready_of(**changes).record({})
  record = json.loads(text)
  assert {key: record[key] for key in ("name", "question", "hypothesis", "base", "blocks", "tuning")} == {
    "name": "wide", "question": "?", "hypothesis": "Yes.", "base": base, "blocks": [0, 1], "tuning": None}  # fmt: skip
  assert record["factors"] == {PEAK: [1e-3, 3e-3], WIDTH: [16, 32]} and record["budget"] == {"equal": "steps", "amount": 2}
  assert record["metrics"] == [{"name": "valid.loss", "better": "lower"}, {"name": "valid.accuracy", "better": "higher"}]
  assert record["decides"] == {"metric": "valid.loss", "baseline": "peak=0.003 width=16"}
  assert [arm["levels"] for arm in record["arms"]] == ARMS == [arm["overrides"] for arm in record["arms"]]
  assert all(arm["tokens"] == 128 and arm["flops"] > 0 and arm["parameters"] > 0 for arm in record["arms"])
  for run in record["runs"]:
    assert {"address", "arm", "block", "overrides", "command", "config_hash"} <= run.keys() and run["address"] in run["command"]
