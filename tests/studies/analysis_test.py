"""Statistics: equal to scipy and statsmodels where these have them, and at their nominal rate on simulated studies."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from research.evals import bootstrap
from research.studies import analysis, design

RNG = np.random.default_rng(0)


def covered(interval):
  """The share of intervals around what was drawn about zero that hold zero."""
  return np.mean((interval.low <= 0) & (interval.high >= 0))


# --- against the references --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_interval_and_test_are_scipys(n):
  x = RNG.normal(0.5, 1, n)
  reference = stats.ttest_1samp(x, 0)
  found = analysis.t_interval(x)
  np.testing.assert_allclose(found, [x.mean(), *reference.confidence_interval(0.95)], rtol=1e-12)
  assert analysis.t_test(x) == pytest.approx(reference.pvalue, rel=1e-12)
  assert analysis.t_test(x) == pytest.approx(stats.ttest_rel(x + 7, np.full(n, 7.0)).pvalue, rel=1e-9)
  assert (analysis.t_test(x) < 0.05) == (found.low * found.high > 0), "interval and test say the same"


@pytest.mark.parametrize("n", [3, 6, 9])
def test_the_permutation_test_counts_all_sign_flips(n):
  x = RNG.normal(0.4, 1, n)
  means = [abs(np.mean(x * signs)) for signs in itertools.product((-1, 1), repeat=n)]
  assert analysis.permutation_test(x) == pytest.approx(np.mean(np.array(means) >= abs(x.mean()) - 1e-12))
  assert analysis.permutation_test(np.abs(x) + 1) == pytest.approx(2 / 2**n)


def test_the_permutation_test_is_drawn_the_same_way_twice():
  x = RNG.normal(0.3, 1, 20)
  assert analysis.permutation_test(x) == analysis.permutation_test(x)
  assert analysis.permutation_test(x) == pytest.approx(analysis.t_test(x), abs=0.02)


def test_hedges_correction():
  x = np.array([0.2, 0.5, 0.1, 0.9, 0.4])
  d = x.mean() / x.std(ddof=1)
  assert analysis.hedges(x) == pytest.approx(d * (1 - 3 / (4 * 4 - 1)), rel=3e-3), "the usual approximation of J(4)"
  assert analysis.hedges(x) == pytest.approx(d * math.gamma(2) / (math.sqrt(2) * math.gamma(1.5)), rel=1e-12)
  draws = RNG.normal(0.8, 1, (5000, 5))
  assert np.mean([analysis.hedges(row) for row in draws]) == pytest.approx(0.8, abs=0.04) and np.mean(draws.mean(1) / draws.std(1, ddof=1)) > 0.93, "without bias, unlike d"


def test_corrections_are_statsmodels():
  multitest = pytest.importorskip("statsmodels.stats.multitest")
  for count in (1, 2, 7, 30):
    p = RNG.uniform(size=count) ** 3
    np.testing.assert_allclose(analysis.holm(p), multitest.multipletests(p, method="holm")[1], rtol=1e-12)
    np.testing.assert_allclose(analysis.benjamini_hochberg(p), multitest.multipletests(p, method="fdr_bh")[1], rtol=1e-12)


def test_corrections_by_hand():
  p = [0.01, 0.04, math.nan, 0.03, 0.005]
  np.testing.assert_allclose(analysis.holm(p), [0.03, 0.06, math.nan, 0.06, 0.02])
  np.testing.assert_allclose(analysis.benjamini_hochberg(p), stats.false_discovery_control([0.01, 0.04, 0.03, 0.005])[[0, 1, 1, 2, 3]] * [1, 1, math.nan, 1, 1])
  assert analysis.holm([0.6, 0.7]).tolist() == [1.0, 1.0] and len(analysis.holm([])) == 0


def test_power_is_statsmodels():
  peer = pytest.importorskip("statsmodels.stats.power").TTestPower()
  for n, effect in itertools.product((2, 3, 5, 12), (0.1, 0.5, 1.5)):
    assert analysis.power(n, effect) == pytest.approx(peer.power(effect, n, 0.05), abs=1e-9)
  for effect in (0.05, 0.2, 0.5, 1.0, 2.0):
    assert analysis.seeds_needed(effect, 1.0) == math.ceil(peer.solve_power(effect, power=0.8, alpha=0.05))


def test_power_is_what_simulation_finds():
  x = RNG.normal(1.2, 1, (20000, 6))
  found = np.mean(stats.ttest_1samp(x, 0, axis=1).pvalue < 0.05)
  assert analysis.power(6, 1.2) == pytest.approx(found, abs=0.012)


def test_seeds_needed_is_the_least_number():
  assert [analysis.seeds_needed(size, 1.0) for size in (2.0, 1.0, 0.5, 0.1)] == [5, 10, 34, 787], "Cohen 1988, table 2.4, by noncentral t"
  for size in (0.3, 1.0, 3.0):
    n = analysis.seeds_needed(-size, 0.5)
    assert analysis.power(n, size / 0.5) >= 0.8 > analysis.power(n - 1, size / 0.5)
    assert analysis.smallest_seen(n, 0.5) <= size < analysis.smallest_seen(n - 1, 0.5)
  assert analysis.seeds_needed(0.0, 1.0) is None and analysis.seeds_needed(1e-9, 1.0) is None and analysis.seeds_needed(1.0, 0.0) == 2
  assert math.isnan(analysis.smallest_seen(1, 1.0)) and analysis.power(100, 1e12) == 1.0
  powers = [analysis.power(2, effect) for effect in np.geomspace(0.01, 1e6, 200)]
  assert np.all(np.diff(powers) > -1e-6) and powers[-1] == pytest.approx(1), "also where scipy's far tail is nan"


def test_effects_are_those_of_least_squares():
  """A full factorial of two and three levels, with interactions: the means of cells are those of ordinary least squares."""
  levels = {"a": [0, 1], "b": ["x", "y", "z"]}
  arms = design.grid(levels)
  scores = RNG.normal(size=(6, 4))
  columns = [np.ones(6), [arm["a"] for arm in arms], *([arm["b"] == b for arm in arms] for b in "yz")]
  plain = np.linalg.lstsq(np.array(columns, float).T, scores.mean(1), rcond=None)[0]
  found = analysis.effects(analysis.contrasts(arms, levels), scores)
  assert [(e.factors, e.levels) for e in found] == [(("a",), (1,)), (("b",), ("y",)), (("b",), ("z",)), (("a", "b"), (1, "y")), (("a", "b"), (1, "z"))]
  np.testing.assert_allclose([e.interval.value for e in found[:3]], plain[1:], atol=1e-12)
  cell = {(arm["a"], arm["b"]): scores[i] for i, arm in enumerate(arms)}
  by_hand = ((cell[1, "z"] - cell[0, "z"]) - (cell[1, "x"] - cell[0, "x"])) / 2
  np.testing.assert_allclose(found[-1].interval, analysis.t_interval(by_hand))
  assert found[-1].p == pytest.approx(analysis.t_test(by_hand))
  np.testing.assert_allclose([e.corrected for e in found], analysis.holm([e.p for e in found]))


def test_effects_of_a_fraction_are_found_and_aliases_are_equal():
  levels = {key: [-1, 1] for key in "abcd"}
  arms = design.fractional(levels, "d=-abc")
  blocks = np.array([10.0, 20.0, 30.0])
  true = lambda arm: 3 * arm["a"] - 2 * arm["b"] + 0.5 * arm["a"] * arm["b"]
  found = {e.factors: e.interval.value for e in analysis.effects(analysis.contrasts(arms, levels), np.array([true(arm) + blocks for arm in arms]))}
  np.testing.assert_allclose([found["a",], found["b",], found["c",], found["d",], found["a", "b"]], [6, -4, 0, 0, 1], atol=1e-12)
  aliases = design.confounding(arms, levels).aliases
  assert aliases["ab"] == ("-cd",) and found["c", "d"] == pytest.approx(-found["a", "b"])


def test_levels_are_shown_without_what_blocks_share():
  arms, scores = design.grid(a=[0, 1, 2]), np.array([[1.0], [2.0], [4.0]]) + np.array([0.0, 50.0, -20.0]) + RNG.normal(0, 0.01, (3, 3))
  found = analysis.level_means(arms, "a", [0, 1, 2], scores)
  np.testing.assert_allclose([i.value for i in found], scores.mean(1))
  assert all(i.high - i.low < 0.2 and i.low < i.value < i.high for i in found)


# --- on simulated studies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_t_intervals_cover_the_truth_at_their_nominal_rate(n):
  x = RNG.normal(size=(4000, n))
  for level in (0.8, 0.95):
    assert covered(analysis.t_interval(x, level)) == pytest.approx(level, abs=3.5 * math.sqrt(level * (1 - level) / 4000))


@pytest.mark.parametrize("n", [6, 10, 20])
def test_bootstrap_intervals_cover_what_percentiles_and_bca_do_not(n):
  x = RNG.normal(size=(2000, n))
  ours = covered(analysis.bootstrap_interval(x))
  counts = np.stack([np.bincount(rows, minlength=n) for rows in bootstrap.draws(n, 2000)])
  plain = covered(analysis.Interval(None, *bootstrap.interval(x @ counts.T / n)))
  assert 0.92 < ours < 0.965 and plain < ours - 0.01
  bca = stats.bootstrap((x[:600],), np.mean, axis=1, method="BCa", n_resamples=499, rng=0).confidence_interval
  assert covered(analysis.Interval(None, *bca)) < ours - 0.005, "its corrections do not mend the narrowness"
  one = analysis.bootstrap_interval(x[0])
  np.testing.assert_allclose(one, [bound[0] for bound in analysis.bootstrap_interval(x)], rtol=1e-12)
  assert all(np.isnan(analysis.bootstrap_interval(x[0, :5])[1:]))


def test_a_whole_study_finds_no_more_than_it_should():
  """1,000 studies of six arms without any difference, in five blocks that differ much: Holm's correction finds something in 5 % of them, no correction in many more."""
  scores = RNG.normal(size=(1000, 6, 5)) + 10 * RNG.normal(size=(1000, 1, 5))
  differences = scores[:, 1:] - scores[:, :1]
  p = stats.ttest_1samp(differences, 0, axis=-1).pvalue
  found = np.mean([analysis.holm(row).min() < 0.05 for row in p])
  assert found < 0.07 < np.mean(p.min(1) < 0.05)
  assert np.mean([row.min() < 0.05 for row in p]) > 2 * found
  compared = analysis.compare(scores[0], 0)
  np.testing.assert_allclose([c.p for c in compared[1:]], p[0])
  np.testing.assert_allclose([c.corrected for c in compared[1:]], analysis.holm(p[0]))


def test_the_bounds_of_a_deviation_cover_it():
  for n in (3, 6, 12):
    found = RNG.normal(size=(4000, n)).std(1, ddof=1)
    low, high = analysis.deviation_bounds(n)
    assert np.mean((found * low <= 1) & (found * high >= 1)) == pytest.approx(0.95, abs=0.012)


# --- little data -------------------------------------------------------------------------------------------------------------


def test_missing_scores_leave_pairs_out():
  scores = np.array([[1.0, 2.0, 3.0, math.nan], [1.1, math.nan, 3.3, 4.0], [math.nan, math.nan, math.nan, 1.0], [1.0, 2.5, math.nan, 0.0]])
  none, first, nothing, last = analysis.compare(scores, 0)
  assert none is None and nothing is None and first.n == 2 and last.n == 2
  assert first.difference.value == pytest.approx(0.2) and last.difference.value == pytest.approx(0.25)
  assert math.isnan(first.effect) and math.isnan(first.bootstrap.low) and first.p_permutation == 0.5


def test_one_block_has_no_interval_and_no_p():
  found = analysis.compare(np.array([[1.0], [2.0]]), 0)[1]
  assert found.difference.value == 1.0 and all(math.isnan(x) for x in (found.difference.low, found.p, found.corrected, found.effect, found.smallest))


def test_differences_that_do_not_vary():
  assert analysis.t_test(np.zeros(4)) == 1.0 and analysis.t_test(np.full(4, 0.25)) == 0.0 and math.isnan(analysis.hedges(np.full(4, 0.25)))
  found = analysis.compare(np.array([[1.0, 2.0, 3.0], [1.5, 2.5, 3.5]]), 0)[1]
  assert found.difference == (0.5, 0.5, 0.5) and found.deviation == 0


def test_few_blocks_say_what_they_cannot_tell():
  assert "nothing tells a difference from chance" in analysis.limits(1)[0]
  three = " ".join(analysis.limits(3))
  assert "0.52" in three and "6.28" in three and "p below 0.25" in three and "only 75 %" in three
  assert "effect size" in " ".join(analysis.limits(2)) and "effect size" not in three
  assert len(analysis.limits(6)) == 1 and analysis.limits(10) == []
  assert analysis.permutation_test(np.array([1.0, 2.0, 3.0])) == 0.25 and 2 / 2**analysis.ENOUGH < 0.05 < 2 / 2 ** (analysis.ENOUGH - 1)
