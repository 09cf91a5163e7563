"""Sweeps: what each builder makes, what a fraction cannot tell apart, and which mistakes are told."""

import itertools
import math
import subprocess
import sys

import pytest

from research.core.errors import UserError
from research.studies import design
from research.studies.design import (
  LogUniform,
  Uniform,
  chain,
  fractional,
  grid,
  halving,
  latin_hypercube,
  one_at_a_time,
  product,
  random,
  rungs,
  zipped,
)

SPACE = {"peak": LogUniform(1e-4, 1e-2), "width": [64, 128, 256], "dropout": Uniform(0.0, 0.2)}


def test_builders_make_plain_lists():
  assert grid({"model.width": [64, 128]}, steps=[1, 2]) == [
    {"model.width": 64, "steps": 1}, {"model.width": 64, "steps": 2}, {"model.width": 128, "steps": 1}, {"model.width": 128, "steps": 2}]  # fmt: skip
  assert zipped(a=[1, 2], b=[3, 4]) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
  assert chain(grid(a=[1]), grid(a=[2], b=[0])) == [{"a": 1}, {"a": 2, "b": 0}]
  assert product(zipped(a=[1, 2], b=[3, 4]), grid(c=[5, 6]))[1] == {"a": 1, "b": 3, "c": 6}
  assert one_at_a_time({"a": 0, "b": "x"}, {"a": [1, 2], "c": [True]}) == [
    {"a": 0, "b": "x"}, {"a": 1, "b": "x"}, {"a": 2, "b": "x"}, {"a": 0, "b": "x", "c": True}]  # fmt: skip
  assert len(product(grid(a=range(3)), grid(b=range(4)), grid(c=range(5)))) == 60
  assert grid() == [{}]


def test_a_table_of_a_sweep_has_a_line_an_arm():
  lines = design.table(chain(grid(a=[1, 20]), grid(b=["x"]))).splitlines()
  assert [line.split() for line in lines] == [["a", "b"], ["0", "1"], ["1", "20"], ["2", "x"]]


@pytest.mark.parametrize(
  "make, parts",
  [
    (lambda: grid(a=[1, 1]), ["arms 0 and 1", "a=1"]),
    (lambda: chain(grid(a=[1, 2], b=[(3, 4)]), grid(b=[[3, 4]], a=[2])), ["arms 1 and 2", "b=[3, 4], a=2"]),
    (lambda: one_at_a_time({"a": 1}, {"a": [1]}), ["arms 0 and 1"]),
    (lambda: zipped(a=[1, 2], b=[1]), ["'a' 2", "'b' 1"]),
    (lambda: product(grid(a=[1]), grid(a=[2])), ["'a'", "two of the sweeps"]),
    (lambda: grid(a="xy"), ["'a'", "list"]),
    (lambda: grid(a=3), ["'a'", "list"]),
    (lambda: grid(a=[]), ["'a'", "no level"]),
    (lambda: random(4, {"a": [1, 2, 3]}), ["3 arms"]),
    (lambda: latin_hypercube(4, {"a": [1, 2]}), ["are the same"]),
    (lambda: LogUniform(0, 1), ["above 0"]),
    (lambda: LogUniform(1e-2, 1e-4), ["LogUniform(0.01, 0.0001)", "the lower one first"]),
    (lambda: Uniform("0", 1), ["Uniform('0', 1)", "two numbers"]),
    (lambda: random(2, {"a": []}), ["space of 'a'"]),
    (lambda: latin_hypercube(2, {"a": 3}), ["space of 'a'", "3"]),
    (lambda: random(2, [1]), ["a space is a mapping"]),
    (lambda: grid([("a", [1])]), ["levels are a mapping"]),
    (lambda: fractional({"x": [0, 1], "y": [0, 1]}, "b=a"), ["'b' would be the same"]),
    (lambda: fractional({k: [0, 1] for k in "wxyz"}, "c=ab", "d=-ba"), ["'c' would be the same"]),
    (lambda: fractional({"x": [0, 1], "y": [0, 1, 2]}, "b=a"), ["'y' has 3 levels"]),
    (lambda: fractional({"x": [0, 1], "y": [0, 1], "z": [0, 1]}, "d=ab"), ["'d=ab'", "a, b, c"]),
    (lambda: fractional({"x": [0, 1], "y": [0, 1], "z": [0, 1]}, "c"), ["'c'"]),
    (lambda: fractional({k: [0, 1] for k in "wxyz"}, "c=ab", "d=ac"), ["'c'", "cannot be part of another"]),
  ],
)
def test_mistakes_are_told_in_a_sentence(make, parts):
  with pytest.raises(UserError) as error:
    make()
  assert all(part in str(error.value) for part in parts) and str(error.value).endswith("."), error.value


def test_random_arms_hang_on_the_seed_alone():
  arms = random(200, SPACE, seed=3)
  assert arms == random(200, SPACE, seed=3) != random(200, SPACE, seed=4) and arms[:50] == random(50, SPACE, seed=3)
  assert all(1e-4 <= arm["peak"] <= 1e-2 and 0 <= arm["dropout"] <= 0.2 for arm in arms)
  assert 70 <= sum(arm["peak"] < 1e-3 for arm in arms) <= 130, "half of a log-uniform draw lies below the geometric mean"
  assert all(40 <= sum(arm["width"] == width for arm in arms) <= 95 for width in SPACE["width"])
  assert random(3, {"a": [1, 2, 3]}) != [] and sorted(arm["a"] for arm in random(3, {"a": [1, 2, 3]})) == [1, 2, 3]


@pytest.mark.parametrize("seed", range(5))
def test_each_key_of_a_latin_hypercube_falls_once_into_each_part(seed):
  count = 12
  arms = latin_hypercube(count, SPACE, seed)
  assert arms == latin_hypercube(count, SPACE, seed)
  assert sorted(int(arm["dropout"] / 0.2 * count) for arm in arms) == list(range(count))
  assert sorted(int(math.log(arm["peak"] / 1e-4, 100) * count) for arm in arms) == list(range(count))
  assert [sum(arm["width"] == width for arm in arms) for width in SPACE["width"]] == [4, 4, 4]


# --- fractions ---------------------------------------------------------------------------------------------------------------


def two_level(count):
  return {f"factor.{i}": ["low", "high"] for i in range(count)}


@pytest.mark.parametrize(
  "count, generators, words, resolution",
  [  # Box, Hunter and Hunter, Statistics for Experimenters, table 6.22
    (3, ["c=ab"], {"abc"}, 3),
    (4, ["d=abc"], {"abcd"}, 4),
    (5, ["e=abcd"], {"abcde"}, 5),
    (5, ["d=ab", "e=ac"], {"abd", "ace", "bcde"}, 3),
    (6, ["e=abc", "f=bcd"], {"abce", "bcdf", "adef"}, 4),
    (7, ["d=ab", "e=ac", "f=bc", "g=abc"], {"abd", "ace", "bcf", "abcg", "bcde", "acdf", "cdg", "abef", "beg", "afg", "def", "adeg", "bdfg", "cefg", "abcdefg"}, 3),
    (4, ["d=-abc"], {"-abcd"}, 4),
  ],
)
def test_fractions_have_the_alias_structure_of_the_books(count, generators, words, resolution):
  levels = two_level(count)
  sweep = fractional(levels, *generators)
  found = design.confounding(sweep, levels)
  assert len(sweep) == 2 ** (count - len(generators)) and design.balanced(sweep)
  assert set(found.words) == words and found.resolution == resolution
  numeral = {3: "III", 4: "IV", 5: "V"}[resolution]
  assert f"resolution {numeral}," in str(found)
  if resolution > 4:
    assert "clear of each other" in str(found) and not any(found.aliases.values())


def test_aliases_are_columns_of_signs_that_are_equal_or_opposite():
  levels = two_level(6)
  sweep = fractional(levels, "e=-abc", "f=bcd")
  found = design.confounding(sweep, levels)
  sign = lambda word: [math.prod(1 if arm[key] == "high" else -1 for key, letter in found.letters.items() if letter in word) for arm in sweep]
  effects = list(found.aliases)
  assert len(effects) == 6 + 15
  for one, other in itertools.permutations(effects, 2):
    dot = sum(a * b for a, b in zip(sign(one), sign(other)))
    assert (other in found.aliases[one]) == (dot == len(sweep)) and ("-" + other in found.aliases[one]) == (dot == -len(sweep))


def test_what_is_no_regular_two_level_factorial_has_no_confounding():
  assert str(design.confounding(grid(a=[0, 1], b=[0, 1]))).startswith("Full factorial")
  assert design.confounding(grid(a=[0, 1, 2], b=[0, 1])) is None and design.balanced(grid(a=[0, 1, 2], b=[0, 1]))
  assert design.confounding(grid(a=[0, 1], b=[0, 1])[:3]) is None and not design.balanced(grid(a=[0, 1], b=[0, 1])[:3])
  ablation = one_at_a_time({"a": 0, "b": 0, "c": 0}, {"a": [1], "b": [1], "c": [1]})
  assert design.confounding(ablation) is None and not design.balanced(ablation)
  assert not design.balanced([]) and not design.balanced([{"a": 1}]), "nothing varies"


# --- stopping early, searching -----------------------------------------------------------------------------------------------


def test_halving_keeps_the_best_and_ends_with_one():
  runs = [f"run{i}" for i in range(16)]
  quality = {run: (7 * i) % 16 for i, run in enumerate(runs)}
  alive = runs
  for rung, left in enumerate([8, 4, 2, 1, 1]):
    alive = halving(runs, {run: quality[run] for run in alive}, rung)
    assert len(alive) == left and alive == [run for run in runs if quality[run] < left]
  assert halving(runs, quality, 0, eta=4, better="higher") == [run for run in runs if quality[run] >= 12]
  assert rungs(800, 4) == [100, 200, 400, 800] and rungs(900, 3, eta=3) == [100, 300, 900]


def test_halving_never_keeps_a_run_that_failed():
  assert halving("abcd", {"a": math.nan, "b": None, "c": 3.0, "d": 2.0}, 0) == ["c", "d"]
  assert halving("abcd", {"a": math.inf, "b": 1.0}, 0) == ["b"] and halving("abcd", {}, 0) == []
  assert halving("abcd", {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}, 0) == ["a", "b"], "of equal scores the earlier run wins"


def test_a_search_goes_where_scores_are_good_and_has_no_state():
  pytest.importorskip("optuna")
  score = lambda arm: abs(math.log10(arm["peak"]) + 3) + (arm["width"] != 128)
  told = [(arm, score(arm)) for arm in random(20, SPACE)]
  asked = design.suggest(8, SPACE, [*told, (random(1, SPACE, seed=9)[0], math.nan)])
  assert asked == design.suggest(8, SPACE, [*told, (random(1, SPACE, seed=9)[0], math.nan)]) and [*asked[0]] == [*SPACE]
  assert sum(map(score, asked)) / 8 < sum(s for _, s in told) / 20 - 0.2
  assert sum(map(score, design.suggest(8, SPACE, told, better="higher"))) / 8 > sum(map(score, asked)) / 8


def test_what_is_suggested_is_suggested_once():
  pytest.importorskip("optuna")
  space = {"shape": ["cosine", "linear"], "clip": [1.0, 0.5]}
  told = [({"shape": shape, "clip": 1.0}, score) for shape, score in (("cosine", 2.0), ("linear", 1.0))]
  found = design.suggest(16, space, told)
  assert 1 <= len(found) <= 4 and found == design.unique(found)


def test_what_lies_outside_a_space_is_named():
  space = {"a": LogUniform(1e-4, 1e-2), "b": ["x", "y"]}
  assert [design.outside(arm, space) for arm in ({"a": 1e-2, "b": "x"}, {"a": 1.0, "b": "x"}, {"a": 1e-3, "b": "z"}, {})] == [None, "a", "b", None]


def test_nothing_but_the_standard_library_is_imported():
  code = "import sys; import research.studies.design; print({m.split('.')[0] for m in sys.modules} & {'jax', 'numpy', 'scipy', 'ml_collections', 'absl'})"
  assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
