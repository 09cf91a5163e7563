"""Configs: every mistake is one sentence that names the key, and what was recorded comes back the same."""

from __future__ import annotations

import json
import sys
import textwrap

import pytest

from research.core import config as configs
from research.core.config import use
from research.core.errors import UserError
from research.core.overrides import load, resolve

OUTSIDE = """
  from __future__ import annotations
  import dataclasses
  from typing import Literal
  from research.core.config import Component
  from research.parallel import mesh

  @dataclasses.dataclass(frozen=True)
  class Config:
    rate: float = 0.5
    count: int = 3
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1, 2)
    part: Component | None = None
    other: Component | None = mesh.Config()
    needed: str = "x"

    def __post_init__(self):
      if self.rate < 0:
        raise ValueError(f"rate must not be negative; got {self.rate}")

  def make(cfg, extra):
    return cfg.rate, extra
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
  """The name of a component that lies outside the package."""
  folder = tmp_path_factory.mktemp("outside")
  (folder / "my_study").mkdir()
  (folder / "my_study" / "component.py").write_text(textwrap.dedent(OUTSIDE))
  sys.path.insert(0, str(folder))
  yield "my_study.component"
  sys.path.remove(str(folder))


def base():
  return use("training.experiment")


def resolved(*overrides, of=None):
  return resolve(of if of is not None else base(), [f"--config.{item}" for item in overrides])


def refused(*parts):
  """An error of one sentence on one line that holds all `parts`."""

  class Check:
    def __enter__(self):
      self._raises = pytest.raises(UserError)
      self._info = self._raises.__enter__()

    def __exit__(self, *error):
      done = self._raises.__exit__(*error)
      text = str(self._info.value)
      assert "\n" not in text and len(text) < 400, text
      for part in parts:
        assert part in text, f"'{part}' is not in: {text}"
      return done

  return Check()


# --- use ---------------------------------------------------------------------------------------------------------------------


def test_use_fills_in_every_default_of_every_depth():
  config = use("training.experiment", steps=7)
  assert config.steps == 7 and config.batch_size == 16
  assert config.optimizer.schedule.name == "optim.schedule" and config.data.sources.text.valid_fraction == 0.1
  cfg = configs.typed(config)
  assert cfg.optimizer.schedule.peak == config.optimizer.schedule.peak


def test_use_refuses_an_unknown_key_and_an_unknown_component():
  with refused("objectives.masked_lm", "mask_rat", "Did you mean 'mask_rate'?"):
    use("objectives.masked_lm", mask_rat=0.1)
  with refused("objectives.maskd_lm", "Did you mean 'objectives.masked_lm'?"):
    use("objectives.maskd_lm")
  with refused("no.such.thing"):
    use("no.such.thing")


def test_a_component_that_lacks_a_package_says_which(tmp_path, monkeypatch):
  (tmp_path / "needs_package.py").write_text("import a_package_that_is_absent\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  with refused("needs_package", "a_package_that_is_absent", "not installed"):
    use("needs_package")


def test_members_lists_components_only():
  assert {"causal_lm", "masked_lm"} <= set(configs.members("objectives"))
  assert not {"base", "cross_entropy"} & set(configs.members("objectives"))


# --- overrides ---------------------------------------------------------------------------------------------------------------


def test_values_are_read_as_python_and_coerced():
  config = resolved(
    "steps=20", "optimizer.schedule.peak=1", "optimizer.clip=none", "log.tensorboard=false", "data.seed=3.0", "init_from=runs/a", "model.remat=none"
  )
  cfg = configs.typed(config)
  assert (cfg.steps, cfg.optimizer.clip, cfg.log.tensorboard, cfg.init_from) == (20, None, False, "runs/a")
  assert isinstance(cfg.optimizer.schedule.peak, float) and cfg.optimizer.schedule.peak == 1.0
  assert isinstance(cfg.data.seed, int) and cfg.data.seed == 3
  assert cfg.model.remat == "none"  # a word among the key's values


@pytest.mark.parametrize("given", ["['a.txt', 'b.txt']", "('a.txt', 'b.txt')", "'a.txt', 'b.txt'"])
def test_lists_become_tuples(given):
  assert configs.typed(resolved(f"data.sources.text.paths={given}")).data.sources["text"].paths == ("a.txt", "b.txt")


def test_one_string_is_a_tuple_of_one_but_a_number_is_not():
  assert configs.typed(resolved("data.sources.text.paths=a.txt")).data.sources["text"].paths == ("a.txt",)
  with refused("data.sources.text.words", "tuple, written (1, 2)"):
    resolved("data.sources.text=synthetic", "data.sources.text.words=3")


@pytest.mark.parametrize(
  "override, parts",
  [
    ("stps=3", ["'stps'", "Did you mean 'steps'?"]),
    ("optimizer.schedule.peek=3", ["'optimizer.schedule.peek'", "Did you mean 'optimizer.schedule.peak'?"]),
    ("peak=0.1", ["'peak'", "Did you mean 'optimizer.schedule.peak'?"]),
    ("steps.deeper=1", ["'steps.deeper'"]),
    ("steps=many", ["'steps'", "int", "'many'"]),
    ("steps=2.5", ["'steps'", "int", "2.5"]),
    ("steps=true", ["'steps'", "int", "True"]),
    ("steps", ["--config.steps=VALUE"]),
    ("steps=0", ["steps must be at least 1"]),
    ("log.tensorboard=1", ["'log.tensorboard'", "bool"]),
    ("init_from=5", ["'init_from'", "str or none", "5"]),
    ("optimizer.algorithm=adamax", ["'optimizer.algorithm'", "'adamax'", "'adamw'", "'muon'"]),
    ("objective=maskd_lm", ["Did you mean 'objectives.masked_lm'?"]),
    ("objective=none", ["'objective'", "component"]),
    ("mesh=4", ["'mesh'", "component", "4"]),
    ("model=optim.optimizer", ["'model'", "'optim.optimizer'", "transformer"]),
    ("objective.name=masked_lm", ["--config.objective=NAME"]),
    ("data.length=1", ["data", "length must be at least 2"]),
  ],
)
def test_a_wrong_override_is_one_sentence(override, parts):
  with refused(*parts):
    resolved(override)


def test_a_mapping_from_dotted_keys_serves_too():
  config = resolve(base(), {"objective": "masked_lm", "objective.mask_rate": 0.3, "steps": 5})
  assert (config.objective.name, config.objective.mask_rate, config.steps) == ("objectives.masked_lm", 0.3, 5)


@pytest.mark.parametrize("order", [1, -1])
def test_a_component_is_swapped_and_its_deeper_keys_apply_in_any_order(order):
  config = resolved(*["objective=masked_lm", "objective.mask_rate=0.3", "model.position=learned", "model.position.length=9"][::order])
  assert config.objective.name == "objectives.masked_lm" and config.objective.mask_rate == 0.3
  assert config.objective.keep_rate == 0.1 and "head_bias" in config.objective  # the new component's own keys, at their defaults
  assert (config.model.position.name, config.model.position.length) == ("model.position.learned", 9)
  assert "base" not in config.model.position


@pytest.mark.parametrize("order", [1, -1])
def test_an_outer_swap_comes_before_an_inner_one(order):
  config = resolved(*["model=transformer", "model.position=learned"][::order], of=use("training.experiment"))
  assert config.model.position.name == "model.position.learned"


def test_a_swap_forgets_the_old_components_keys():
  config = resolved("objective=causal_lm", of=use("training.experiment", objective=use("objectives.masked_lm", mask_rate=0.9)))
  assert "mask_rate" not in config.objective
  with refused("'objective.mask_rate'"):
    resolved("objective=causal_lm", "objective.mask_rate=0.9", of=use("training.experiment", objective=use("objectives.masked_lm")))


def test_overrides_leave_the_config_they_are_applied_to():
  first = base()
  resolved("objective=masked_lm", "steps=3", of=first)
  assert first.steps == 1000 and first.objective.name == "objectives.causal_lm"


def test_a_mapping_gains_an_entry_by_flag():
  config = resolved("data.sources.more.documents=5", "data.sources.more=synthetic", "data.weights.text=1", "data.weights.more=3")
  cfg = configs.typed(config).data
  assert set(cfg.sources) == {"text", "more"} and cfg.sources["more"].documents == 5
  assert dict(cfg.weights) == {"text": 1.0, "more": 3.0} and isinstance(cfg.weights["text"], float)
  with refused("data.sources.text", "component"):
    resolved("data.sources.text=none")


def test_a_component_outside_the_package(outside):
  config = resolved("objective=my_study.component", "objective.rate=1", "objective.sizes=[4]", of=use("training.experiment"))
  cfg = configs.typed(config).objective
  assert (cfg.rate, cfg.sizes, cfg.kind) == (1.0, (4,), "a")
  assert configs.component_name(cfg) == outside and configs.make(cfg, "extra") == (1.0, "extra")
  with refused("objective", "rate must not be negative"):
    resolved("objective=my_study.component", "objective.rate=-1")


def test_an_optional_component_is_filled_and_emptied_by_flag(outside):
  config = resolved("part=parallel.mesh", "part.fsdp=2", "other=none", of=use(outside))
  assert config.part.name == "parallel.mesh" and config.part.fsdp == 2 and config.other is None
  assert resolved("part=none", of=config).part is None
  with refused("'other'", "component"):
    resolved("other=3", of=use(outside))


# --- config files ------------------------------------------------------------------------------------------------------------


def write(folder, body, name="recipe.py"):
  path = folder / name
  path.write_text(
    "from research.core.config import use\n\ndef get_config(%s):\n" % ("size" if "size" in body else "")
    + textwrap.indent(body, "  ")
    + "\n"
  )
  return str(path)


@pytest.mark.parametrize(
  "line, parts",
  [
    ("config.optimizer.peek = 1", ["line 5", "no key 'peek'", "algorithm"]),
    ("config.optimzer.b1 = 1", ["line 5", "no key 'optimzer'", "Did you mean 'optimizer'?"]),
    ("config['optimzer'] = 1", ["line 5", "no key 'optimzer'", "Did you mean 'optimizer'?"]),
    ("config.steps = 'many'", ["'steps'", "int"]),
    ("config.objective = use('objectives.masked_lm', mask_rat=1)", ["mask_rat", "mask_rate"]),
    ("config = None", ["recipe.py", "returns no config"]),
  ],
)
def test_a_mistake_in_a_config_file_is_one_sentence(tmp_path, line, parts):
  with refused(*parts):
    load(write(tmp_path, f"config = use('training.experiment')\n{line}\nreturn config"))


def test_arguments_of_a_config_file(tmp_path):
  plain = write(tmp_path, "return use('training.experiment')", "plain.py")
  sized = write(tmp_path, "return use('training.experiment', steps=int(size))", "sized.py")
  assert load(f"{sized}:12").steps == 12
  with refused("plain.py", "takes no argument"):
    load(f"{plain}:12")
  with refused("sized.py", "needs an argument"):
    load(sized)
  with refused("plian.py", "Did you mean", "plain.py"):
    load(str(tmp_path / "plian.py"))


def test_a_config_file_builds_on_its_neighbour(tmp_path):
  (tmp_path / "recipes_of_test").mkdir()
  write(tmp_path / "recipes_of_test", "return use('training.experiment', steps=77)", "first.py")
  path = tmp_path / "recipes_of_test" / "second.py"
  path.write_text(
    "from recipes_of_test import first\n\ndef get_config():\n  config = first.get_config()\n  config.seed = 5\n  return config\n"
  )
  try:
    config = load(str(path))
    assert (config.steps, config.seed) == (77, 5)
  finally:
    sys.path.remove(str(tmp_path))


# --- the record --------------------------------------------------------------------------------------------------------------


def test_record_and_read_are_inverse(tmp_path):
  config = resolved("objective=masked_lm", "data.sources.more=synthetic", "optimizer.schedule.peak=1", "data.sources.text.paths=('é',)")
  (tmp_path / "config.json").write_text(configs.record(config), encoding="utf-8")
  for back in (configs.read(str(tmp_path / "config.json")), load(str(tmp_path))):
    assert configs.typed(back) == configs.typed(config)
    assert configs.digest(back) == configs.digest(config) and configs.diff(back, config) == []
  assert load(str(tmp_path), ["steps=9"]).steps == 9


def test_digest_and_diff_name_what_changed():
  one, two = resolved(), resolved("optimizer.b1=0.5", "objective=masked_lm")
  assert configs.digest(one) != configs.digest(two) and configs.digest(one) == configs.digest(resolved("optimizer.b1=0.9"))
  lines = configs.diff(one, two)
  assert "optimizer.b1: 0.9 -> 0.5" in lines and "objective.mask_rate: (absent) -> 0.15" in lines
  assert not any(line.startswith(("steps", "model")) for line in lines)


@pytest.mark.parametrize(
  "change, parts",
  [
    (lambda plain: plain["model"].update(widht=3), ["'model.widht'", "Did you mean 'width'?"]),
    (lambda plain: plain["objective"].update(name="objectives.gone"), ["objectives.gone"]),
    (lambda plain: plain.clear(), ["not a config record"]),
  ],
)
def test_a_damaged_record_names_the_file_and_the_key(tmp_path, change, parts):
  plain = json.loads(configs.record(resolved()))
  change(plain)
  path = tmp_path / "config.json"
  path.write_text(json.dumps(plain))
  with refused("config.json", *parts):
    configs.read(str(path))


def test_a_key_that_is_younger_than_the_record_has_its_default(tmp_path):
  plain = json.loads(configs.record(resolved("steps=7")))
  del plain["checkpoint"]["keep"], plain["model"]["attention"]["window"]
  (tmp_path / "config.json").write_text(json.dumps(plain))
  assert configs.diff(configs.read(str(tmp_path / "config.json")), resolved("steps=7")) == []


def test_a_record_that_is_cut_off_or_absent(tmp_path):
  (tmp_path / "config.json").write_text(configs.record(resolved())[:100])
  with refused("config.json", "not a config record"):
    configs.read(str(tmp_path / "config.json"))
  with refused("absent.json", "workdir"):
    configs.read(str(tmp_path / "absent.json"))
