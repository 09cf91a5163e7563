"""Sweeps: which arms a study has. A sweep is a plain list of arms, an arm a flat dict of overrides, `{"model.width": 64, "optimizer.schedule.peak": 1e-3}`.

  grid({"model.width": [64, 128], "optimizer.schedule.peak": [1e-3, 3e-3]})                    4 arms, the last key fastest
  product(grid({"objective": ["causal_lm", "masked_lm"]}), zipped({"model.width": [64, 128], "steps": [800, 200]}))
  [arm for arm in sweep if arm["model.width"] < 128], sweep[::2], len(sweep)                    a list is filtered, split and counted as a list
  print(table(sweep))

Seeds are no part of an arm: they are the blocks of a study, in each of which every arm runs once. Nothing but the standard library is needed here,
and what is drawn at random hangs on `seed` alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random as randomness
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from research.core.errors import UserError

Arm = dict[str, Any]
Sweep = list[Arm]
Key = TypeVar("Key")


# --- lists -------------------------------------------------------------------------------------------------------------------


def grid(levels: Mapping[str, Sequence[Any]] | None = None, **more: Sequence[Any]) -> Sweep:
  """Every combination of the levels (a full factorial), the last key fastest; keys without a dot may be written as arguments."""
  levels = _levels(levels, more)
  return unique([dict(zip(levels, values)) for values in itertools.product(*levels.values())])


def zipped(levels: Mapping[str, Sequence[Any]] | None = None, **more: Sequence[Any]) -> Sweep:
  """The first levels of all keys, the second ones, …: keys that change together."""
  levels = _levels(levels, more)
  counts = {key: len(values) for key, values in levels.items()}
  if len(set(counts.values())) > 1:
    raise UserError("zipped keys need equally many levels; here: " + ", ".join(f"'{key}' {count}" for key, count in counts.items()) + ".")
  return unique([dict(zip(levels, values)) for values in zip(*levels.values())])


def chain(*sweeps: Sweep) -> Sweep:
  """One sweep after the other."""
  return unique([dict(arm) for sweep in sweeps for arm in sweep])


def product(*sweeps: Sweep) -> Sweep:
  """Every arm of the first sweep joined with every one of the second, …, the last sweep fastest."""
  arms = []
  for parts in itertools.product(*sweeps):
    arm: Arm = {}
    for part in parts:
      if both := arm.keys() & part.keys():
        raise UserError(f"product: the key '{min(both)}' is set by two of the sweeps; leave it in one.")
      arm |= part
    arms.append(arm)
  return unique(arms)


def one_at_a_time(baseline: Mapping[str, Any], levels: Mapping[str, Sequence[Any]]) -> Sweep:
  """An ablation: the baseline, then the baseline with one key changed to each of its other levels in turn.

  It tells what each change does at the baseline, and nothing of how changes act together: that takes a factorial.
  """
  return unique([dict(baseline), *({**baseline, key: value} for key, values in _levels(levels, {}).items() for value in values)])


def unique(sweep: Sweep) -> Sweep:
  """The sweep itself; two arms that are the same are an error that names the arm."""
  seen: dict[Any, int] = {}
  for place, arm in enumerate(sweep):
    first = seen.setdefault(_frozen(arm), place)
    if first != place:
      text = ", ".join(f"{key}={value!r}" for key, value in arm.items()) or "no override at all"
      raise UserError(f"arms {first} and {place} of the sweep are the same ({text}): leave one out.")
  return sweep


def table(sweep: Sweep) -> str:
  """A line an arm, a column a key, for printing."""
  keys = list(dict.fromkeys(key for arm in sweep for key in arm))
  rows = [["", *keys], *([str(place), *(str(arm.get(key, "")) for key in keys)] for place, arm in enumerate(sweep))]
  widths = [max(map(len, column)) for column in zip(*rows)]
  return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _levels(levels: Mapping[str, Sequence[Any]] | None, more: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
  found = {}
  if not isinstance(levels or {}, Mapping):
    raise UserError(f"levels are a mapping from config key to a list of values; got {levels!r}.")
  for key, values in {**(levels or {}), **more}.items():
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
      raise UserError(f"the levels of '{key}' must be a list, written [{values!r}, …]; got {values!r}.")
    found[key] = plain(values)
    if not found[key]:
      raise UserError(f"'{key}' has no level: name at least one.")
  return found


def plain(values: Iterable[Any]) -> list[Any]:
  """A list of Python's own values, also of an array's."""
  return [value.item() if hasattr(value, "dtype") and hasattr(value, "item") else value for value in values]


def _frozen(value: Any) -> Any:
  """Something that can be looked up and is equal for equal values."""
  if isinstance(value, Mapping):
    return frozenset((key, _frozen(item)) for key, item in value.items())
  return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


# --- random points -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Uniform:
  low: float
  high: float

  def __post_init__(self):
    _bounds(self)

  def at(self, share: float) -> float:
    """The value below which `share` of the distribution lies, to four digits, so that it can be read and typed."""
    return float(f"{self.low + share * (self.high - self.low):.4g}")


@dataclasses.dataclass(frozen=True)
class LogUniform:
  low: float  # above 0
  high: float

  def __post_init__(self):
    _bounds(self)
    if self.low <= 0:
      raise UserError(f"LogUniform({self.low}, {self.high}): the bounds must be above 0.")

  def at(self, share: float) -> float:
    return float(f"{self.low * (self.high / self.low) ** share:.4g}")


Space = Mapping[str, Uniform | LogUniform | Sequence[Any]]  # a list is a choice among its values, each as likely


def _bounds(distribution: Uniform | LogUniform) -> None:
  low, high = distribution.low, distribution.high
  if not (all(isinstance(bound, (int, float)) for bound in (low, high)) and -math.inf < low < high < math.inf):
    raise UserError(f"{type(distribution).__name__}({low!r}, {high!r}): the bounds are two numbers, the lower one first.")


def check_space(space: Any) -> None:
  """Raises UserError where it is no space: the key is named."""
  if not isinstance(space, Mapping) or not space:
    raise UserError(f"a space is a mapping from config key to Uniform(low, high), LogUniform(low, high) or a list of values; got {space!r}.")
  for key, values in space.items():
    if not isinstance(values, (Uniform, LogUniform)) and (isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or not values):
      raise UserError(f"the space of '{key}' is Uniform(low, high), LogUniform(low, high) or a list of values; got {values!r}.")


def outside(arm: Arm, space: Space) -> str | None:
  """The key whose value in the arm is none of the space's; None where there is none."""
  holds = lambda value, values: values.low <= value <= values.high if isinstance(values, (Uniform, LogUniform)) else value in values
  return next((key for key, values in space.items() if key in arm and not holds(arm[key], values)), None)


def _at(distribution: Uniform | LogUniform | Sequence[Any], share: float) -> Any:
  return distribution.at(share) if isinstance(distribution, (Uniform, LogUniform)) else distribution[int(share * len(distribution))]


def random(count: int, space: Space, seed: int = 0) -> Sweep:
  """`count` different arms, each key drawn by itself (Bergstra and Bengio 2012).

  Raises:
    UserError: the space does not hold so many arms.
  """
  check_space(space)
  draw, arms = randomness.Random(seed).random, {}  # of all that the module draws, `random` alone is promised to stay the same
  for _ in range(100 * count):
    if len(arms) < count:
      arm = {key: _at(distribution, draw()) for key, distribution in space.items()}
      arms.setdefault(_frozen(arm), arm)
  if len(arms) < count:
    raise UserError(f"random: among {100 * count} draws only {len(arms)} arms differ: ask for fewer, or write them as a grid.")
  return list(arms.values())


def latin_hypercube(count: int, space: Space, seed: int = 0) -> Sweep:
  """`count` arms, of which each key falls once into each `count`-th of its distribution (McKay, Beckman and Conover 1979).

  Of a list each value comes up equally often, ± 1. Raises as `unique` does where two arms coincide, which lists alone can lead to.
  """
  check_space(space)
  draw = randomness.Random(seed).random
  columns = []
  for distribution in space.values():
    strata = sorted(range(count), key=lambda _: draw())
    columns.append([_at(distribution, (stratum + draw()) / count) for stratum in strata])
  return unique([dict(zip(space, values)) for values in zip(*columns)])


def sampler_library() -> Any:
  """Optuna. Raises UserError where it is not installed."""
  try:
    import optuna
  except ModuleNotFoundError as error:
    raise UserError("a search needs the package optuna: pip install -e '.[search]'.") from error
  return optuna


def suggest(count: int, space: Space, told: Sequence[tuple[Arm, float]], better: str = "lower", seed: int = 0) -> Sweep:
  """The next arms, at most `count` different ones, that Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) would try, after the scores of those `told`.

  Ask and tell as one function without a state: the same scores give the same arms, so a search is a chain of sweeps. Needs the package optuna (extra `search`).
  """
  check_space(space)
  optuna = sampler_library()
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  kinds = {}
  for key, values in space.items():
    is_range = isinstance(values, (Uniform, LogUniform))
    kinds[key] = optuna.distributions.FloatDistribution(values.low, values.high, log=isinstance(values, LogUniform)) if is_range else optuna.distributions.CategoricalDistribution(list(values))
  sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, len(told)), constant_liar=True)
  study = optuna.create_study(direction={"lower": "minimize", "higher": "maximize"}[better], sampler=sampler)
  for arm, score in told:
    state = optuna.trial.TrialState.COMPLETE if math.isfinite(score) else optuna.trial.TrialState.FAIL
    study.add_trial(optuna.trial.create_trial(params={key: arm[key] for key in space}, distributions=kinds, value=score if math.isfinite(score) else None, state=state))
  asked = [study.ask(kinds).params for _ in range(count)]
  rounded = [{key: float(f"{value:.4g}") if isinstance(space[key], (Uniform, LogUniform)) else value for key, value in arm.items()} for arm in asked]
  arms = [{key: arm[key] for key in space} for arm in rounded]
  return list({_frozen(arm): arm for arm in arms}.values())  # what is asked for at one time may come twice


# --- two-level fractions -----------------------------------------------------------------------------------------------------


def fractional(levels: Mapping[str, Sequence[Any]], *generators: str) -> Sweep:
  """A regular two-level fraction, 2^(factors − generators) arms (Box, Hunter and Hunter, Statistics for Experimenters, ch. 6).

  Factors have letters in their order: a, b, c, …. "d=abc" gives the fourth the product of the signs of the first three, "d=-abc" its opposite; the first
  level of a factor is −. What the fraction cannot tell apart, `confounding` says.

  Raises:
    UserError: a factor without exactly two levels, or a generator that cannot be read or makes two factors the same.
  """
  levels = _levels(levels, {})
  for key, values in levels.items():
    if len(values) != 2:
      raise UserError(f"fractional: '{key}' has {len(values)} levels; a two-level fraction needs two.")
  letters = {letter: key for letter, key in zip("abcdefghijklmnopqrstuvwxyz", levels)}
  made: dict[str, tuple[int, str]] = {}  # letter -> sign, letters that are multiplied
  for generator in generators:
    left, _, right = generator.replace(" ", "").lower().partition("=")
    sign, word = (-1 if right.startswith("-") else 1), right.lstrip("+-")
    if left not in letters or not word or left in made or not set(word) <= set(letters) or len(set(word)) < len(word):
      raise UserError(f"fractional: generator '{generator}' cannot be read: write one of the letters {', '.join(letters)} and a product of others, such as d=abc.")
    made[left] = sign, word
  alike = [letter for letter, (_, word) in made.items() if len(word) == 1 or [set(other) for _, other in made.values()].count(set(word)) > 1]
  if alike:
    raise UserError(f"fractional: factor '{alike[0]}' would be the same as another, or its opposite: give each generator a product of its own, of two letters or more.")
  if recursive := set("".join(word for _, word in made.values())) & made.keys():
    raise UserError(f"fractional: '{min(recursive)}' is made by a generator and cannot be part of another; write it out.")
  sweep = []
  for signs in itertools.product((-1, 1), repeat=len(letters) - len(made)):
    sign = dict(zip((letter for letter in letters if letter not in made), signs))
    sign |= {letter: start * math.prod(sign[other] for other in word) for letter, (start, word) in made.items()}
    sweep.append({key: levels[key][sign[letter] > 0] for letter, key in letters.items()})
  return unique(sweep)


class Confounding(NamedTuple):
  """What a regular two-level factorial can tell apart. Effects are written as letters of the factors, with '-' before one of opposite sign."""

  letters: dict[str, str]  # factor -> its letter
  words: tuple[str, ...]  # the defining relation: products of factors that are the same in all arms; none in a full factorial
  aliases: dict[str, tuple[str, ...]]  # main effect or two-factor interaction -> the others of these that it cannot be told from

  @property
  def resolution(self) -> int | None:
    """The length of the shortest word; None where nothing is confounded."""
    return min((len(word.lstrip("-")) for word in self.words), default=None)

  def __str__(self) -> str:
    if self.resolution is None:
      return "Full factorial: no effect is confounded with another."
    named = ", ".join(f"{letter} = {factor}" for factor, letter in self.letters.items())
    numeral = {1: "I", 2: "II", 3: "III", 4: "IV", 5: "V", 6: "VI", 7: "VII", 8: "VIII"}.get(self.resolution, str(self.resolution))
    groups: dict[frozenset[str], str] = {}
    for effect, others in self.aliases.items():
      if others:
        groups.setdefault(frozenset((effect, *(other.lstrip("-") for other in others))), " = ".join((effect, *others)))
    same = "; ".join(groups.values())
    return (f"Fraction of resolution {numeral}, defining relation I = {' = '.join(self.words)} ({named}). "
            + (f"Cannot be told apart, among main effects and interactions of two: {same}." if same else "Main effects and interactions of two are clear of each other."))  # fmt: skip


def factors(sweep: Sweep) -> dict[str, list[Any]]:
  """The keys that every arm has and that vary, each with its levels in the order in which they come up."""
  found: dict[str, list[Any]] = {}
  for key in dict.fromkeys(key for arm in sweep for key in arm):
    levels: list[Any] = []
    for arm in sweep:
      if key in arm and arm[key] not in levels:
        levels.append(arm[key])
    if len(levels) > 1 and all(key in arm for arm in sweep):
      found[key] = levels
  return found


def balanced(sweep: Sweep) -> bool:
  """Whether any two factors have all pairs of their levels equally often (an orthogonal array of strength 2): the effect of one is then no effect of another."""
  levels = factors(sweep)
  pairs = list(itertools.combinations(levels, 2)) or [(key, key) for key in levels]
  for one, other in pairs:
    counts = [sum(arm[one] == a and arm[other] == b for arm in sweep) for a in levels[one] for b in levels[other] if one != other or a == b]
    if len(set(counts)) > 1:
      return False
  return bool(levels)


def confounding(sweep: Sweep, levels: Mapping[str, Sequence[Any]] | None = None) -> Confounding | None:
  """The alias structure of a two-level factorial, read off its arms; None where they are no regular one (each factor at two levels, 2^(k−p) arms).

  `levels` says which level of a factor is − (the first); the default is the order in which they come up.
  """
  levels = levels or factors(sweep)
  if not levels or any(len(values) != 2 for values in levels.values()) or len(levels) > 20:
    return None
  letters = dict(zip(levels, "abcdefghijklmnopqrstuvwxyz"))
  ones = (1 << len(sweep)) - 1
  # A column of signs is a number, a bit an arm, 1 for the second level; a product of columns is their exclusive or, complemented for an even number of factors.
  column = {letters[key]: sum((arm[key] == values[1]) << place for place, arm in enumerate(sweep)) for key, values in levels.items()}
  products = {"": ones}
  for letter, bits in column.items():
    products |= {word + letter: ones & ~(product ^ bits) for word, product in list(products.items())}
  words = tuple(sorted((("-" if bits == 0 else "") + word for word, bits in products.items() if word and bits in (0, ones)), key=lambda w: (len(w.lstrip("-")), w.lstrip("-"))))
  if len(sweep) * (len(words) + 1) != 2 ** len(levels):
    return None
  effects = [*column, *(a + b for a, b in itertools.combinations(column, 2))]
  same = lambda one, other: "" if products[one] == products[other] else "-" if products[one] == ones & ~products[other] else None
  aliases = {one: tuple(f"{same(one, other)}{other}" for other in effects if other != one and same(one, other) is not None) for one in effects}
  return Confounding(letters, words, aliases)


# --- stopping early ----------------------------------------------------------------------------------------------------------


def rungs(steps: int, count: int, eta: int = 2) -> list[int]:
  """The step at which each of `count` rungs of successive halving ends, the last at `steps`: each is `eta` times as long as the one before."""
  return [max(1, steps // eta ** (count - 1 - rung)) for rung in range(count)]


def halving(runs: Sequence[Key], scores: Mapping[Key, float | None], rung: int, eta: int = 2, better: str = "lower") -> list[Key]:
  """Which runs go on after a rung of successive halving (Jamieson and Talwalkar 2016): the best n / eta^(rung+1), at least one, in their order.

  Args:
    runs: all runs of the sweep, n of them, whether still going or not.
    scores: of those that came to the end of this rung; None or not finite: failed, and never kept.
    rung: from 0.
    better: lower or higher. Of equal scores the earlier run wins.
  """
  sign = {"lower": 1, "higher": -1}[better]
  reached = [run for run in runs if scores.get(run) is not None and math.isfinite(scores[run])]
  kept = set(sorted(reached, key=lambda run: sign * scores[run])[: max(1, len(runs) // eta ** (rung + 1))])
  return [run for run in runs if run in kept]
