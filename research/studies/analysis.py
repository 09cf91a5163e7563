"""What the scores of a study tell: intervals, paired tests, effect sizes, corrections, power, effects of factors.

An experiment's unit is a block (a seed): within it all arms see the same data in the same order, so arms are compared by their differences within
blocks, and chance is what makes these differences vary from block to block. Deviations are of samples (divided by n − 1), tests two-sided. Arrays keep
blocks on the last axis.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special, stats

from research.evals import bootstrap

LEVEL = 0.95  # of all intervals
POWER = 0.8
ENOUGH = 6  # blocks from which on an interval or test without a normal distribution can reach LEVEL: see `limits`


class Interval(NamedTuple):
  """A value and the bounds of its interval, nan where there are too few blocks for one; arrays where the values were."""

  value: Any
  low: Any
  high: Any


# --- intervals ---------------------------------------------------------------------------------------------------------------


def t_interval(values: np.ndarray, level: float = LEVEL) -> Interval:
  """Student's interval of the mean of values [..., n]: mean ± t · deviation / √n, right at any n where the values are normal. One value has none."""
  values = np.asarray(values, float)
  n, mean = values.shape[-1], values.mean(-1)
  half = stats.t.ppf((1 + level) / 2, n - 1) * values.std(-1, ddof=1) / math.sqrt(n) if n > 1 else np.full(mean.shape, np.nan)
  return Interval(mean, mean - half, mean + half)


def bootstrap_interval(values: np.ndarray, level: float = LEVEL, resamples: int = 2000, seed: int = 0) -> Interval:
  """Expanded percentile interval of the mean of values [..., n] (Hesterberg 2015, "What Teachers Should Know About the Bootstrap").

  A percentile interval of few values is too narrow: it takes normal for t quantiles, and √(n − 1) for √n. The expanded one asks for the level that makes both
  good, 1 − 2 Φ(−t √(n / (n − 1))). BCa, the usual refinement, corrects for bias, which a mean has not, and skewness, which a handful of values cannot show; it
  leaves the narrowness. Below ENOUGH values the whole range of the data is not wide enough, and there is no interval (nan).
  """
  values = np.asarray(values, float)
  n, mean = values.shape[-1], values.mean(-1)
  if n < ENOUGH:
    return Interval(mean, np.full(mean.shape, np.nan), np.full(mean.shape, np.nan))
  drawn = bootstrap.draws(n, resamples, seed)
  counts = np.stack([np.bincount(rows, minlength=n) for rows in drawn])  # [resamples, n]
  expanded = 1 - 2 * stats.norm.sf(stats.t.ppf((1 + level) / 2, n - 1) * math.sqrt(n / (n - 1)))
  return Interval(mean, *bootstrap.interval(values @ counts.T / n, expanded))


def deviation_bounds(n: int, level: float = LEVEL) -> tuple[float, float]:
  """By what a deviation found from n normal values must be multiplied to get the bounds of its interval (chi squared)."""
  low, high = stats.chi2.ppf([(1 + level) / 2, (1 - level) / 2], n - 1)
  return math.sqrt((n - 1) / low), math.sqrt((n - 1) / high)


def constant(values: np.ndarray) -> bool:
  """Whether values do not vary but for rounding."""
  return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


# --- tests -------------------------------------------------------------------------------------------------------------------


def t_test(differences: np.ndarray) -> float:
  """p of Student's paired test that the mean of differences [n] is zero; nan below two. Differences that do not vary give 0, or 1 if they are zero."""
  differences = np.asarray(differences, float)
  if len(differences) < 2:
    return math.nan
  if constant(differences):
    return float(np.abs(differences).max() == 0)
  return float(stats.ttest_1samp(differences, 0.0).pvalue)


def permutation_test(differences: np.ndarray, seed: int = 0) -> float:
  """p of the sign-flip test of differences [n]: among all 2^n ways to exchange the two arms within blocks, the share with a mean at least so far from zero; nan below two.

  Exact up to n = 14, from 16,384 draws beyond. It assumes no distribution, and cannot give less than 2 / 2^n.
  """
  differences = np.asarray(differences, float)
  if len(differences) < 2:
    return math.nan
  mean = lambda x, axis: np.mean(x, axis=axis)
  # What only rounding separates from the observed mean counts as equal to it, as scipy has it.
  return float(stats.permutation_test((differences,), mean, permutation_type="samples", n_resamples=2**14, rng=seed).pvalue)


def hedges(differences: np.ndarray) -> float:
  """Hedges' g of paired differences [n]: Cohen's d, mean / deviation of the differences, times J(n − 1) = Γ(m/2) / (√(m/2) Γ((m−1)/2)), m = n − 1, which takes
  away d's bias in small samples (Hedges 1981, eq. 6e). nan below three differences or where they do not vary."""
  differences = np.asarray(differences, float)
  m = len(differences) - 1
  if m < 2 or constant(differences):
    return math.nan
  correction = math.exp(special.gammaln(m / 2) - special.gammaln((m - 1) / 2)) / math.sqrt(m / 2)
  return float(correction * differences.mean() / differences.std(ddof=1))


def holm(p: Sequence[float]) -> np.ndarray:
  """p values corrected for being several (Holm 1979): the chance of any false finding among them is kept. nan stays nan and does not count."""
  p = np.asarray(p, float)
  order, found = np.argsort(p, kind="stable"), np.isfinite(p).sum()  # nan is sorted last
  corrected = np.full(p.shape, np.nan)
  corrected[order[:found]] = np.minimum(np.maximum.accumulate(p[order[:found]] * np.arange(found, 0, -1)), 1.0)
  return corrected


def benjamini_hochberg(p: Sequence[float]) -> np.ndarray:
  """p values corrected so that the share of false findings among the findings is kept (Benjamini and Hochberg 1995). nan stays nan and does not count."""
  p = np.asarray(p, float)
  corrected, found = np.full(p.shape, np.nan), np.isfinite(p)
  corrected[found] = stats.false_discovery_control(p[found])
  return corrected


# --- power -------------------------------------------------------------------------------------------------------------------


def power(n: int, effect: float, level: float = LEVEL) -> float:
  """Chance that the paired t test of n blocks finds a true difference of `effect` deviations of the differences (noncentral t)."""
  critical, shift = stats.t.ppf((1 + level) / 2, n - 1), min(abs(effect), 1e6) * math.sqrt(n)
  wrong_side = stats.nct.cdf(-critical, n - 1, shift)  # scipy gives nan here and there where it is below 1e-8
  return float(stats.nct.sf(critical, n - 1, shift) + np.nan_to_num(wrong_side))


def seeds_needed(difference: float, deviation: float, wanted: float = POWER, level: float = LEVEL, most: int = 100_000) -> int | None:
  """The least number of blocks with which a true `difference` is found with chance `wanted`, given the deviation of the differences; None above `most`."""
  if difference == 0 or not (math.isfinite(difference) and math.isfinite(deviation)):
    return None
  if deviation == 0:
    return 2
  effect, low, high = abs(difference) / deviation, 1, 2
  while power(high, effect, level) < wanted:
    if high >= most:
      return None
    low, high = high, 2 * high
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (low, middle) if power(middle, effect, level) >= wanted else (middle, high)
  return high


def smallest_seen(n: int, deviation: float, wanted: float = POWER, level: float = LEVEL) -> float:
  """The true difference that n blocks find with chance `wanted`, given the deviation of the differences; nan below two blocks."""
  return _smallest_effect(n, wanted, level) * deviation if n > 1 else math.nan


@functools.cache
def _smallest_effect(n: int, wanted: float, level: float) -> float:
  high = 1.0
  while power(n, high, level) < wanted:
    high *= 2
  return float(optimize.brentq(lambda effect: power(n, effect, level) - wanted, 0.0, high, xtol=1e-12))


def limits(n: int) -> list[str]:
  """What n blocks cannot tell, in sentences."""
  if n < 2:
    return ["With one block nothing tells a difference from chance: there is no interval and no test. Run at least three blocks."]
  low, high = deviation_bounds(n)
  said = []
  if n < 10:
    said.append(f"A deviation found from {n} blocks is itself uncertain: the true one lies between {low:.2f} and {high:.3g} times it (95 %).")
  if n < ENOUGH:
    said.append(f"All intervals and p values rest on the differences being normally distributed, which {n} blocks cannot show: without that assumption no test of {n} blocks gives p below "
                f"{2 / 2**n:.4g} (sign flips), and even the whole range of {n} values covers the centre with only {100 - 200 / 2**n:.3g} %, so there is no bootstrap interval. "
                f"{ENOUGH} blocks are the least.")  # fmt: skip
  if n < 3:
    said.append("An effect size needs at least three blocks.")
  return said


# --- two arms, many arms -----------------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
  """An arm less the baseline, paired by block."""

  n: int  # blocks in which both have a score
  difference: Interval  # t
  bootstrap: Interval
  deviation: float  # of the differences
  p: float  # paired t
  p_permutation: float
  corrected: float  # p after Holm's correction over all arms that were compared
  effect: float  # Hedges' g
  smallest: float  # true difference that so many blocks find with chance POWER


def compare(scores: np.ndarray, baseline: int) -> list[Comparison | None]:
  """Every arm of scores [arms, blocks] against the baseline's row, which has None, as has an arm without a common block; nan is a score that is missing."""
  scores, found = np.asarray(scores, float), []
  for arm in range(len(scores)):
    differences = scores[arm] - scores[baseline]
    differences = differences[np.isfinite(differences)]
    if arm == baseline or not len(differences):
      found.append(None)
      continue
    deviation = math.nan if len(differences) < 2 else 0.0 if constant(differences) else float(differences.std(ddof=1))
    found.append(Comparison(
        len(differences), t_interval(differences), bootstrap_interval(differences), deviation, t_test(differences), permutation_test(differences), math.nan,
        hedges(differences), smallest_seen(len(differences), deviation)))  # fmt: skip
  corrected = holm([math.nan if c is None else c.p for c in found])
  return [None if c is None else c._replace(corrected=float(p)) for c, p in zip(found, corrected)]


# --- factors -----------------------------------------------------------------------------------------------------------------


class Effect(NamedTuple):
  factors: tuple[str, ...]  # one: a main effect; two: an interaction
  levels: tuple[Any, ...]  # the level of each that is compared with the first one
  contrast: np.ndarray  # [arms]: what the scores of a block are multiplied with
  interval: Interval | None = None
  p: float = math.nan
  corrected: float = math.nan


def contrasts(arms: Sequence[Mapping[str, Any]], levels: Mapping[str, Sequence[Any]], order: int = 2) -> list[Effect]:
  """The main effects and, up to `order`, interactions of a balanced design, as contrasts over its arms.

  Main effect of a level: mean over the arms with it, less the mean over those with the first level. Interaction of two: half the difference between the effect of
  the one at the other's level and at the other's first level (Box, Hunter and Hunter, ch. 5), so that at two levels each all effects are on one scale.
  """
  has = {(key, place): np.array([arm[key] == level for arm in arms], float) for key, values in levels.items() for place, level in enumerate(values)}
  mean = lambda rows: rows / rows.sum()
  found = []
  for key, values in levels.items():
    for place in range(1, len(values)):
      found.append(Effect((key,), (values[place],), mean(has[key, place]) - mean(has[key, 0])))
  for one, other in itertools.combinations(levels, 2) if order > 1 else ():
    for a, b in itertools.product(range(1, len(levels[one])), range(1, len(levels[other]))):
      cell = lambda i, j: mean(has[one, i] * has[other, j])
      found.append(Effect((one, other), (levels[one][a], levels[other][b]), (cell(a, b) - cell(a, 0) - cell(0, b) + cell(0, 0)) / 2))
  return found


def effects(planned: Sequence[Effect], scores: np.ndarray) -> list[Effect]:
  """The planned effects estimated from scores [arms, blocks] without nan: each block gives one value of the contrast; p is that of their t test, Holm's over all."""
  values = np.stack([effect.contrast for effect in planned]) @ np.asarray(scores, float)
  p = [t_test(row) for row in values]
  return [effect._replace(interval=t_interval(row), p=one, corrected=float(other)) for effect, row, one, other in zip(planned, values, p, holm(p))]


def without_blocks(scores: np.ndarray) -> np.ndarray:
  """Scores [arms, blocks] without what a block does to all arms alike (Cousineau 2005): its mean over arms less that over all. None may be nan."""
  return scores - scores.mean(0) + scores.mean()


def level_means(arms: Sequence[Mapping[str, Any]], factor: str, levels: Sequence[Any], scores: np.ndarray) -> list[Interval]:
  """The mean of scores [arms, blocks] at each level, with the interval of what is left `without_blocks`."""
  left = without_blocks(np.asarray(scores, float))
  return [t_interval(left[np.array([arm[factor] == level for arm in arms])].mean(0)) for level in levels]
