"""A study: one question, the arms that answer it, seeds as blocks, and one budget that is equal for all.

It is a file, `experiments/<name>/study.py`, that defines `get_study()`:

  from research.studies.study import Study

  def get_study():
    return Study(
        question="Does the model want a larger step when it is narrow?",
        base="configs/shakespeare.py",
        arms=[{"optimizer.schedule.peak": peak, "model.width": width} for peak in (1e-3, 3e-3) for width in (64, 128)],
        steps=200,
    )

An arm is what it changes in the base, a flat mapping from dotted key to value; a component is swapped by its name, as by flag. Beside config keys it may have

  name    how it is called (default: its keys that differ between arms, and their values)
  after   the name of an arm above it: each of its runs starts from the weights (`init_from`) of that arm's run of the same block. `FOLDER:ARM` names an arm of
          another study, which has been swept in that folder
  evals   its evaluations, instead of the study's

Block b sets seed = b and data.seed = b in every arm: the arms of a block read the same rows in the same order (where their data are the same), so
that their differences can be taken in pairs.

Runs can be spared: with `tuning` each arm first finds its own value of one key, with `halving` the worse arms (or values) are dropped on the way, with `search` the arms of
each round are suggested by the scores of those before. Nothing here reads data or counts operations: that is `runs`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from research.core.config import NAME, is_config, leaves, members
from research.core.errors import UserError, nearest
from research.core.overrides import called, flag, load, split
from research.studies import design
from research.studies.design import Space
from research.studies.document import shown
from research.studies.results import evaluation_of

if TYPE_CHECKING:
  from ml_collections import ConfigDict

BUDGETS = ("steps", "tokens", "flops")
BETTER = ("lower", "higher")
TUNED_IN = 1000  # the block of tuning, unless a study says otherwise: none that more seeds would come to
WARMUP = "optimizer.schedule.warmup"
EVAL_FLAGS = ("data", "pairs", "step", "batch_size")  # of research.evaluate, for one evaluation
SOURCES = ("step", "train", "valid", "best", "parameters", "tokens", "flops", "tokens_per_second", "mfu", "wall_seconds", "skipped", "goodput", "seconds", "energy_joules",
           "evaluations")  # fmt: skip  where a metric may be found: in summary.json, or in evaluations.json


@dataclasses.dataclass(frozen=True)
class Halving:
  """Successive halving (Jamieson and Talwalkar 2016): all begin, and at the end of each rung but the last the best of 1/eta go on. A rung is eta times as long as the one before."""

  rungs: int = 3
  eta: int = 2

  def __post_init__(self):
    if not all(isinstance(number, int) and number >= 2 for number in (self.rungs, self.eta)):
      raise UserError(f"halving has at least 2 rungs, of which each keeps a half or less; got rungs={self.rungs}, eta={self.eta}.")


@dataclasses.dataclass(frozen=True)
class Search:
  """The study's arms are a first round; `rounds` more of `count` arms each are suggested by the scores of all before (design.suggest: Optuna's TPE)."""

  space: Space  # key -> Uniform, LogUniform or a list of values, as for design.random
  rounds: int = 3
  count: int = 8

  def __post_init__(self):
    design.check_space(self.space)
    if not all(isinstance(number, int) and number >= 1 for number in (self.rounds, self.count)):
      raise UserError(f"a search has at least one round, and one arm a round; got rounds={self.rounds!r}, count={self.count!r}.")


@dataclasses.dataclass(frozen=True)
class Tuning:
  """One key is tuned in each arm by itself, before the comparison: of `values` the one with the best mean of `metric` over `blocks`."""

  values: Sequence[Any]
  key: str = "optimizer.schedule.peak"
  metric: str = ""  # default: the metric that decides
  better: str = ""  # lower or higher, where the metric is none of the study's
  blocks: Sequence[int] = ()  # seeds of the tuning runs; default: one that is none of the comparison's, which it must not favour
  halving: Halving | None = None  # of the values of each arm; the last one left need not go on

  def __post_init__(self):
    if isinstance(self.values, (str, bytes, Mapping)) or not isinstance(self.values, Iterable):
      raise UserError(f"tuning.values={self.values!r}: write the values of {self.key} as a list.")
    object.__setattr__(self, "values", tuple(design.plain(self.values)))
    if not self.values or len({repr(value) for value in self.values}) < len(self.values):
      raise UserError(f"tuning.values={self.values}: name each value of {self.key} once.")
    if not all(isinstance(value, (bool, int, float, str)) for value in self.values):
      raise UserError(f"tuning.values={self.values}: {self.key} is tuned among numbers or names; what else it can be (None, a list) is an arm of its own.")
    if isinstance(self.blocks, str) or not isinstance(self.blocks, Sequence) or not all(isinstance(block, int) for block in self.blocks):
      raise UserError(f"tuning.blocks={self.blocks!r}: write the seeds of the tuning runs as a list of whole numbers.")


@dataclasses.dataclass(frozen=True)
class Study:
  question: str
  base: str  # config file, with :argument where it takes one
  arms: Sequence[Mapping[str, Any]]
  hypothesis: str = ""  # what is expected, written before it is run
  common: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # overrides of all arms
  seeds: int | Sequence[int] = 3  # the blocks; a number n stands for 0 … n − 1
  steps: int | None = None  # the budget of a run: updates,
  tokens: float | None = None  # or tokens that the model reads, padding included,
  flops: float | None = None  # or operations of the model, as training counts them (core/flops)
  metrics: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"valid.loss": "lower"})  # which way is better; the first decides
  baseline: str = ""  # the arm that the others are compared with (default: the first)
  tuning: Tuning | None = None
  halving: Halving | None = None  # of the arms, by the metric that decides; the baseline is never dropped
  search: Search | None = None
  evals: Sequence[str] = ()  # of every finished run, as flags of research.evaluate: "minimal_pairs --data=FILE --pairs=100"
  name: str = ""  # default: that of its folder

  def __post_init__(self):
    for key, kind in (("tuning", Tuning), ("halving", Halving), ("search", Search)):
      if not isinstance(getattr(self, key), (kind, type(None))):
        raise UserError(f"{key}={getattr(self, key)!r}: write {key}={kind.__name__}(…), of research.studies.study.")
    for key in ("question", "hypothesis", "base", "baseline", "name"):
      if not isinstance(getattr(self, key), str):
        raise UserError(f"{key}={getattr(self, key)!r} of the study: write a text.")
    listed = isinstance(self.arms, Sequence) and all(isinstance(arm, Mapping) for arm in self.arms)
    if not (listed and isinstance(self.metrics, Mapping) and isinstance(self.common, Mapping)):
      raise UserError("a study's arms are a list of mappings from config key to value; common is one such mapping, metrics one from metric to 'lower' or 'higher'.")
    budgets = [key for key in BUDGETS if getattr(self, key) is not None]
    if len(budgets) != 1:
      raise UserError(f"a study's budget is equal in one thing: give one of {', '.join(BUDGETS)}" + (f", not {' and '.join(budgets)}." if budgets else "."))
    if not isinstance(amount := getattr(self, self.equal), (int, float)) or not 1 <= amount < math.inf or self.equal == "steps" and amount != int(amount):
      raise UserError(f"{self.equal}={amount!r}: a run's budget is a{' whole' * (self.equal == 'steps')} number, and at least 1.")
    if not isinstance(self.seeds, int) and not (isinstance(self.seeds, Sequence) and all(isinstance(seed, int) for seed in self.seeds)):
      raise UserError(f"seeds={self.seeds!r}: write a number of blocks, or the seed of each.")
    if not self.blocks or len(set(self.blocks)) < len(self.blocks):
      raise UserError(f"seeds={self.seeds}: give each block a seed of its own, and at least one.")
    if not self.arms:
      raise UserError("a study has at least one arm.")
    if not self.metrics:
      raise UserError("a study needs a metric, such as metrics={'valid.loss': 'lower'}.")
    tuned = [self.tuning.metric] if self.tuning and self.tuning.metric else []
    for metric in (*self.metrics, *tuned):
      if not isinstance(metric, str):
        raise UserError(f"metric {metric!r}: write its name, such as 'valid.loss'.")
      if metric.partition(".")[0] not in SOURCES:
        raise UserError(f"metric '{metric}' is neither in summary.json nor, as evaluations.NAME.…, in evaluations.json.{nearest(metric.partition('.')[0], SOURCES)}")
    for metric, better in self.metrics.items():
      if better not in BETTER:
        raise UserError(f"metric '{metric}' is better '{better}': write 'lower' or 'higher'.")
    if tuned and self.tuning.metric not in self.metrics and self.tuning.better not in BETTER:
      raise UserError(f"tuning goes by '{self.tuning.metric}', which is none of the metrics: say better='lower' or 'higher' beside it.")
    for metric in (*([self.tuning_metric] if self.tuning and self.tuning.halving else []), *([self.metric] if self.halving else [])):
      if not metric.startswith("valid."):
        raise UserError(f"halving goes by '{metric}', which a run on its way has not: it needs a metric of validation, such as valid.loss.")
    if self.search and (self.halving or any("after" in arm for arm in self.arms)):
      raise UserError("a search takes neither halving nor arms with 'after': its arms all start alike, and each is trained to its end.")
    if self.search and self.tuning:
      raise UserError("a search takes no tuning: put the key that is tuned into its space.")
    if self.halving and any("after" in arm for arm in self.arms):
      raise UserError("halving takes no arms with 'after': the run that one starts from must come to its end.")

  @property
  def equal(self) -> str:
    """What is equal in all runs: steps, tokens or flops."""
    return next(key for key in BUDGETS if getattr(self, key) is not None)

  @property
  def amount(self) -> int:
    return int(getattr(self, self.equal))

  @property
  def blocks(self) -> tuple[int, ...]:
    return tuple(range(self.seeds)) if isinstance(self.seeds, int) else tuple(self.seeds)

  @property
  def metric(self) -> str:
    """The one that decides."""
    return next(iter(self.metrics))

  @property
  def tuning_blocks(self) -> tuple[int, ...]:
    return tuple(self.tuning.blocks) or (TUNED_IN if TUNED_IN not in self.blocks else max(self.blocks) + 1,)

  @property
  def tuning_metric(self) -> str:
    return self.tuning.metric or self.metric

  @property
  def tuning_better(self) -> str:
    return self.metrics.get(self.tuning_metric) or self.tuning.better

  @property
  def tuning_rule(self) -> str:
    """The one sentence by which all arms are tuned."""
    blocks, values = self.tuning_blocks, ", ".join(shown(value) for value in self.tuning.values)
    apart = "apart from those of the comparison" if not set(blocks) & set(self.blocks) else "which the comparison uses too"
    where = f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {', '.join(map(str, blocks))}"
    rule = f"{self.tuning.key} of each arm is the one of {values} with the {self.tuning_better.replace('er', 'est')} mean {self.tuning_metric} over {where}, {apart}"
    halving = self.tuning.halving
    return rule + (f"; by successive halving in {halving.rungs} rungs, at whose ends the best 1/{halving.eta} of them go on" if halving else "")


class Arm(NamedTuple):
  name: str
  overrides: dict[str, Any]
  after: str | None  # the arm of this study whose weights it starts from
  other: tuple[str, str] | None  # the folder of another study, and its arm
  evals: tuple[str, ...]


def load_study(path: str, overrides: Iterable[str] = ()) -> Study:
  """The study of a file, its name that of the folder.

  Args:
    path: `experiments/x/study.py`, or `experiments/x/study.py:argument`, which is handed to `get_study(argument)`.
    overrides: `--config.key=value` flags, taken into the overrides of all arms; what an arm says itself holds.

  Raises:
    UserError: no such file, a mistake in it, or a key that an arm's config lacks (the nearest right one is named).
  """
  study = called(path, "study")
  if not isinstance(study, Study):
    raise UserError(f"get_study() of study file '{path.partition(':')[0]}' returns no study: end it with return Study(…).")
  file = os.path.abspath(path.partition(":")[0])
  stem = os.path.splitext(os.path.basename(file))[0]
  name = study.name or (os.path.basename(os.path.dirname(file)) if stem == "study" else stem)
  study = dataclasses.replace(study, name=name, common={**study.common, **dict(map(split, overrides))})
  check(study)
  return study


def arms_of(study: Study) -> list[Arm]:
  """The arms, each with its name.

  Raises:
    UserError: two arms of one name, or an `after` that names no arm above.
  """
  found: list[Arm] = []
  plain = [{key: value for key, value in arm.items() if key not in ("name", "after", "evals")} for arm in study.arms]
  differing = [key for key in dict.fromkeys(key for arm in plain for key in arm) if len({repr(arm.get(key, ...)) for arm in plain}) > 1]
  short = _short(differing)
  for arm, overrides in zip(study.arms, plain):
    name = arm.get("name") or " ".join(f"{short[key]}={shown(overrides[key])}" for key in differing if key in overrides) or "baseline"
    names = [other.name for other in found]
    if name in names:
      raise UserError(f"two arms are called '{name}': they must differ, or each have a 'name'.")
    if not isinstance(name, str) or re.search(r"[`\x00-\x1f]", name):
      raise UserError(f"the arm's name {name!r} is not one line of text without ` in it: give it another.")
    after, other = arm.get("after"), None
    if not isinstance(after, (str, type(None))):
      raise UserError(f"arm '{name}' starts after {after!r}: write the name of an arm above it.")
    if after not in (None, *names) and ":" in after:
      splits = [(after[: at.start()], after[at.end() :]) for at in re.finditer(":", after)]  # either may have colons
      folder, its = next((split for split in splits if os.path.isfile(os.path.join(split[0], "study.json"))), splits[-1])
      if not os.path.isfile(os.path.join(folder, "study.json")):
        raise UserError(f"arm '{name}' starts after '{after}', but '{folder}' is no folder of a study: sweep that one first.")
      after, other = None, (folder, its)
    if after not in (None, *names):
      raise UserError(f"arm '{name}' starts after '{arm['after']}', which is no arm above it.{nearest(arm['after'], names)}")
    evals = arm.get("evals", study.evals)
    if not (isinstance(evals, str) or isinstance(evals, Sequence) and all(isinstance(words, str) for words in evals)):
      raise UserError(f"evals={evals!r} of arm '{name}': write a list of flags of research.evaluate, such as ['minimal_pairs --data=FILE'].")
    found.append(Arm(name, overrides, after, other, (evals,) if isinstance(evals, str) else tuple(evals)))
  return found


def _short(keys: Sequence[str]) -> dict[str, str]:
  """Each key's last words, as many as tell it from the others."""
  last = lambda key, count: ".".join(key.split(".")[-count:])
  counts = range(1, 1 + max((key.count(".") + 1 for key in keys), default=0))
  return {key: next(last(key, n) for n in counts if sum(last(other, n) == last(key, n) for other in keys) == 1) for key in keys}


def resolved(study: Study, arm: Arm, changes: Mapping[str, Any] = {}) -> tuple[dict[str, Any], "ConfigDict"]:  # noqa: B006  read only
  """All overrides of a run of `arm`, flat, and the config that the command with them has.

  Args:
    changes: what the study adds to its arm: seeds, steps, weights to start from.
  """
  overrides = {**study.common, **arm.overrides, **changes}
  return overrides, load(study.base, [flag(key, value) for key, value in overrides.items()])


def check(study: Study) -> None:
  """Resolves every arm, and refuses what the study sets itself, before anything runs. Raises UserError."""
  arms = arms_of(study)
  if study.search and not any(study.search.space.keys() <= arm.overrides.keys() for arm in arms):
    raise UserError(f"no arm of the first round has all keys of the search ({', '.join(study.search.space)}): begin with design.latin_hypercube(8, space).")
  if study.baseline and study.baseline not in [arm.name for arm in arms]:
    raise UserError(f"the baseline '{study.baseline}' is no arm.{nearest(study.baseline, [arm.name for arm in arms])}")
  own = {"seed": "seeds", "data.seed": "seeds", "steps": "the budget"}
  for arm in arms:
    mine = {**own, **({study.tuning.key: "tuning"} if study.tuning else {}), **({"init_from": "after"} if arm.after or arm.other else {})}
    for key in {**study.common, **arm.overrides}:
      if key in mine:
        raise UserError(f"'{key}' is set for arm '{arm.name}', but {mine[key]} of the study decides it: leave it out of arms, common and flags.")
    for value in study.tuning.values if study.tuning else (None,):
      resolved(study, arm, {study.tuning.key: value} if study.tuning else {})
    for words in arm.evals:
      evaluation(words)
    if study.search and (key := design.outside(arm.overrides, study.search.space)):
      raise UserError(f"'{key}' is {arm.overrides[key]!r} for arm '{arm.name}', which is none of the values that the search may take ({study.search.space[key]}).")
  for metric in (*study.metrics, *([study.tuning.metric] if study.tuning and study.tuning.metric else [])):
    if metric.startswith("evaluations.") and (name := evaluation_of(metric)) not in [evaluation(words)[0] for arm in arms for words in arm.evals]:
      raise UserError(f"metric '{metric}' would be found by none of the study's evaluations: name one in evals, such as evals=['{name}'] with its flags.")


def words_of(text: str, where: str) -> list[str]:
  """The words of a line, as a shell divides them. Raises UserError: a quote that is not closed."""
  try:
    return shlex.split(text)
  except ValueError as error:
    raise UserError(f"{where} '{text}': {str(error)[:1].lower()}{str(error)[1:]}; close its quotes.") from error


def evaluation(text: str) -> tuple[str, dict[str, str]]:
  """Name and flags of `minimal_pairs --data=FILE --pairs=100`.

  Raises:
    UserError: no such evaluation or flag.
  """
  name, *rest = words_of(text, "evals:") or [""]
  known = [*members("evals"), "loss"]
  if name not in known:
    raise UserError(f"evals: no evaluation '{name}'.{nearest(name, known)}")
  flags = {}
  for word in rest:
    match = re.fullmatch(r"--(\w+)=(.*)", word, re.DOTALL)
    if match is None or match[1] not in EVAL_FLAGS:
      raise UserError(f"evals: '{word}' after '{name}': write --NAME=VALUE.{nearest(word.partition('=')[0].lstrip('-'), EVAL_FLAGS)}")
    if match[1] != "data" and not match[2].isdigit():
      raise UserError(f"evals: '{word}' after '{name}': write a whole number.")
    flags[match[1]] = match[2]
  return name, flags


def factors(arms: Sequence[Arm], configs: Sequence["ConfigDict"]) -> tuple[dict[str, list[Any]], list[dict[str, Any]]]:
  """The keys that arms set and that differ between them, with their levels in the order in which they come; and each arm's levels.

  An arm that leaves a key alone has the level that its config has there: a component's name, or None where its config lacks the key.
  """
  table = {}
  for key in dict.fromkeys(key for arm in arms for key in arm.overrides):
    levels = [_level(config, key) for config in configs]
    if len({repr(level) for level in levels}) > 1:
      table[key] = levels
  unique = lambda levels: list({repr(level): level for level in levels}.values())
  return {key: unique(levels) for key, levels in table.items()}, [{key: levels[i] for key, levels in table.items()} for i in range(len(arms))]


def _level(config: "ConfigDict", key: str) -> Any:
  """What stands at `key`, as JSON has it: of a component the name of its file, None where there is no such key."""
  value: Any = config
  for part in key.split("."):
    value = value[part] if is_config(value) and part in value else None
  if is_config(value):
    return value[NAME].rpartition(".")[2] if NAME in value else dict(leaves(value))
  return list(value) if isinstance(value, tuple) else value
