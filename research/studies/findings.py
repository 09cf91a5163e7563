"""What the scores of a study say, as chapters of its report: the answer, the table of arms, effects of factors, score against FLOPs, how many seeds."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from research.studies import analysis, design, figures
from research.studies.analysis import Comparison, Interval
from research.studies.document import Block, Figure, Heading, Items, Table, Text, amount, fixed, probability, range_of, shown
from research.studies.results import Results

ALPHA = 1 - analysis.LEVEL
CHANCE = f"{100 * analysis.POWER:.0f} %"
EQUAL = 0.02  # relative spread up to which a cost counts as equal: whole steps cannot meet it exactly


class Scores(NamedTuple):
  """One metric of all runs."""

  metric: str
  better: str
  values: np.ndarray  # [arms, blocks], nan where there is none
  compared: list[Comparison | None]  # each arm with the baseline
  digits: int  # after the point, so that deviations show two


def scores_of(results: Results, metric: str, better: str) -> Scores:
  values = results.scores(metric)
  compared, finite = analysis.compare(values, results.baseline), [row[np.isfinite(row)] for row in values]
  deviations = ([c.deviation for c in compared if c is not None and c.deviation > 0] or [abs(c.difference.value) / 10 for c in compared if c is not None and c.deviation == 0 and c.difference.value]
                or [row.std(ddof=1) for row in finite if len(row) > 1 and np.ptp(row) > 0])  # fmt: skip
  size = np.median(deviations) if deviations else np.abs(np.concatenate(finite)).max(initial=0.0) / 100 or 1.0
  return Scores(metric, better, values, compared, int(np.clip(1 - math.floor(math.log10(size)), 0, 6)))


def picture(results: Results, name: str) -> str:
  return os.path.join(results.folder, "figures", name + ".png")


# --- the answer --------------------------------------------------------------------------------------------------------------


def answer(results: Results, scores: Scores) -> str:
  """What was found about the deciding metric, in one sentence."""
  baseline, done = results.study["decides"]["baseline"], sum(run.settled for run in results.runs)
  found = {arm: c for arm, c in zip(results.arms, scores.compared) if c is not None}
  own = scores.values[results.baseline]
  if not (found or len(results.arms) == 1 and np.isfinite(own).any()):
    return f"Nothing can be said yet, with {done} of {len(results.runs)} runs done" + (f": no block has a score of `{baseline}` and of another arm." if len(results.arms) > 1 else ".")
  start = "" if done == len(results.runs) else f"Preliminary, with {done} of {len(results.runs)} runs done: "
  if not found:
    return f"{start}{scores.metric} of `{baseline}` is {_interval(analysis.t_interval(own[np.isfinite(own)]), scores.digits)}, and there is nothing to compare it with."
  if len(found) == 1:
    return start + _of_two(*next(iter(found.items())), baseline, scores)
  told = {arm for arm, c in found.items() if c.corrected < ALPHA}
  good = {arm for arm, c in found.items() if (c.difference.value < 0) == (scores.better == "lower")}
  be = lambda count: f"{count} {'is' if count == 1 else 'are'}"
  counts = [f"{be(count)} {word}" for count, word in ((len(told & good), "better"), (len(told - good), "worse"), (len(found) - len(told), "not to be told from it")) if count]
  text = f"of {len(found)} arms compared with `{baseline}` in {scores.metric}, {', '.join(counts)} (paired t, Holm's correction, 5 %)"
  size = lambda arm: abs(found[arm].difference.value)
  shown_arm = max(sorted(told & good or good or found, key=results.arms.index), key=size)
  what = "the best" if shown_arm in told & good else "the largest improvement" if shown_arm in good else "the largest setback"
  text += f"; {what}, `{shown_arm}`, differs by {_interval(found[shown_arm].difference, scores.digits, True)} ({_test(found[shown_arm], corrected=True)})."
  return start + text if start else text[0].upper() + text[1:]


def _of_two(arm: str, c: Comparison, baseline: str, scores: Scores) -> str:
  difference = f"{scores.metric} differs by {_interval(c.difference, scores.digits, True)}"
  if c.n == 1:
    return f"`{arm}` cannot be told from `{baseline}`: {difference}, in one block, where nothing tells a difference from chance."
  if c.p < ALPHA:
    return f"`{arm}` is {'better' if (c.difference.value < 0) == (scores.better == 'lower') else 'worse'} than `{baseline}`: {difference} ({_test(c)})."
  return f"`{arm}` cannot be told from `{baseline}`: {difference} ({_test(c)}); so many blocks find a true difference of {fixed(c.smallest, scores.digits)} with chance {CHANCE}."


def _test(c: Comparison, corrected: bool = False) -> str:
  if c.n == 1:
    return "one block"
  p = probability(c.corrected if corrected else c.p)
  same = "; it is the same in each, so that no test can judge it: see whether the seeds have any effect" if c.deviation == 0 else ""
  return f"95 % t interval of the paired difference over {c.n} blocks, p {p if p.startswith('<') else '= ' + p}{' corrected' if corrected else ''}{same}"


def _interval(interval: Interval, digits: int, sign: bool = False) -> str:
  bounds = f" ({range_of(interval.low, interval.high, digits)})" if math.isfinite(interval.low) else ""
  return fixed(interval.value, digits, sign) + bounds


# --- arms --------------------------------------------------------------------------------------------------------------------


def arms_table(results: Results, scores: Scores) -> Table:
  enough = any(c is not None and c.n >= analysis.ENOUGH for c in scores.compared)
  head = ["arm", "n", f"mean {scores.metric}", "deviation", "difference", "95 % interval", *(["bootstrap"] if enough else []), "p", "p corrected", *(["p sign flips"] if enough else []), "effect size"]
  rows = []
  for arm, row, c in zip(results.arms, scores.values, scores.compared):
    found = row[np.isfinite(row)]
    deviation = found.std(ddof=1) if len(found) > 1 else math.nan
    cells = [f"`{arm}`", str(len(found)) + (f" ({c.n} paired)" if c is not None and c.n < len(found) else ""), fixed(found.mean() if len(found) else math.nan, scores.digits), fixed(deviation, scores.digits)]
    if c is None:
      cells += ["baseline" if arm == results.study["decides"]["baseline"] and len(results.arms) > 1 else "–", *[""] * (len(head) - 5)]
    else:
      cells += [fixed(c.difference.value, scores.digits, True), range_of(c.difference.low, c.difference.high, scores.digits)]
      cells += [range_of(c.bootstrap.low, c.bootstrap.high, scores.digits)] if enough else []
      cells += [probability(c.p), probability(c.corrected), *([probability(c.p_permutation)] if enough else []), fixed(c.effect, 2, True)]
    rows.append(cells)
  count = sum(c is not None and math.isfinite(c.p) for c in scores.compared)
  fewer = any(c is not None and c.n < np.isfinite(row).sum() for row, c in zip(scores.values, scores.compared))
  note = (f"n: blocks with a score{', and those of them in which the baseline has one too, by which it is compared' if fewer else ''}. Difference: the arm less `{results.study['decides']['baseline']}`, paired by block, with Student's 95 % interval (of one comparison)"
          + (", the expanded percentile bootstrap's" if enough else "") + f". p: paired t test; corrected: Holm, over {count} comparison{'s' * (count != 1)}"
          + ("; sign flips: exact permutation test" if enough else "") + ". Effect size: Hedges' g of the paired differences.")  # fmt: skip
  return Table(head, rows, 1, note)


def differences(results: Results, scores: Scores) -> list[Block]:
  rows = [(arm, c.difference, bool(c.corrected < ALPHA)) for arm, c in zip(results.arms, scores.compared) if c is not None]
  if not rows:
    return []
  figures.differences(picture(results, "differences"), rows, scores.metric, scores.better)
  return [Figure("figures/differences.png", f"`{scores.metric}` of each arm less that of `{results.study['decides']['baseline']}`, with 95 % t intervals. Filled: told from zero after Holm's correction "
                 "(green better, red worse).")]  # fmt: skip


# --- factors -----------------------------------------------------------------------------------------------------------------


def factors(results: Results, scores: Scores) -> list[Block]:
  """Main effects and interactions of two, where the design has more than one factor and is balanced."""
  levels = {key: values for key, values in results.study["factors"].items() if len(values) > 1}
  arms, whole = [arm["levels"] for arm in results.study["arms"]], np.isfinite(scores.values).all(0)
  title = Heading("Effects of factors")
  if len(levels) < 2:
    return []
  if not (set(levels) == set(design.factors(arms)) and design.balanced(arms)):
    return [title, Text("The arms are no balanced design (not every two factors have all pairs of their levels equally often), so no factor's effect can be taken over the others: compare arms.")]
  if not whole.any():
    return [title, Text("There is no block yet in which every arm has a score.")]
  values, confounded = scores.values[:, whole], design.confounding(arms, levels)
  full = len(arms) == math.prod(map(len, levels.values()))
  planned, aliases = _distinct(analysis.contrasts(arms, levels, 2 if full or confounded else 1), confounded)
  found = analysis.effects(planned, values)
  said = str(confounded) if confounded else "" if full else "A fraction with more than two levels: interactions of two are not clear of main effects, and are not estimated."
  means = {key: [(shown(level), mean) for level, mean in zip(some, analysis.level_means(arms, key, some, values))] for key, some in levels.items()}
  figures.main_effects(picture(results, "main_effects"), means, scores.metric)
  note = (f"In `{scores.metric}`, over the {whole.sum()} of {len(results.blocks)} blocks that have all arms. Main effect: mean at the level less mean at the first one, over all levels of the other "
          f"factors. Interaction: half the difference between the effects of the one at the other's two levels. p: t test over blocks; corrected: Holm, over {len(found)} effects.")  # fmt: skip
  return [title, *([Text(said)] if said else []), _effects_table(found, aliases, levels, confounded.letters if confounded and confounded.words else {}, scores.digits, note),
          Figure("figures/main_effects.png", f"Mean `{scores.metric}` at each level; bars: 95 % t interval, without what a block does to all arms alike. Dotted: mean of all."),
          *_interactions(results, found, arms, levels, values, scores.metric)]  # fmt: skip


def _effects_table(found: Sequence[analysis.Effect], aliases: Sequence[str], levels: Mapping[str, Sequence[Any]], letters: Mapping[str, str], digits: int, note: str) -> Table:
  """`letters` of the factors, where effects are confounded and the aliases speak of them."""
  rows = []
  for effect, alias in zip(found, aliases):
    words = []
    for key, to in zip(effect.factors, effect.levels):
      change = f": {shown(levels[key][0])} → {shown(to)}" if len(effect.factors) == 1 or len(levels[key]) > 2 else ""
      words.append(f"`{key}`" + (f" ({letters[key]})" if letters else "") + change)
    interval = effect.interval
    rows.append([" × ".join(words), *([alias] if letters else []), fixed(interval.value, digits, True), range_of(interval.low, interval.high, digits), probability(effect.p), probability(effect.corrected)])
  return Table(["effect", *(["cannot be told from"] if letters else []), "estimate", "95 % interval", "p", "p corrected"], rows, 2 if letters else 1, note)


def _interactions(results: Results, found: Sequence[analysis.Effect], arms: Sequence[Mapping[str, Any]], levels: Mapping[str, Sequence[Any]], values: np.ndarray, metric: str) -> list[Block]:
  strongest = sorted((effect for effect in found if len(effect.factors) == 2), key=lambda effect: effect.p)
  pairs = list(dict.fromkeys(tuple(sorted(effect.factors, key=lambda key: -len(levels[key]))) for effect in strongest))
  if not pairs:
    return []
  cell = lambda one, a, other, b: values[[arm[one] == a and arm[other] == b for arm in arms]].mean()
  panels = [(one, other, list(map(shown, levels[one])), list(map(shown, levels[other])), np.array([[cell(one, a, other, b) for b in levels[other]] for a in levels[one]]))
            for one, other in pairs[:6]]  # fmt: skip
  figures.interactions(picture(results, "interactions"), panels, metric)
  return [Figure("figures/interactions.png", f"Mean `{metric}` by two factors" + (", of the six pairs with the smallest p" if len(pairs) > 6 else "") + ". Parallel lines: no interaction.")]


def _distinct(planned: Sequence[analysis.Effect], confounded: design.Confounding | None) -> tuple[list[analysis.Effect], list[str]]:
  """One of each group of effects that cannot be told apart, main effects first, and the letters of the others."""
  if confounded is None:
    return list(planned), [""] * len(planned)
  kept, aliases, seen = [], [], set()
  for effect in planned:
    word = "".join(sorted(confounded.letters[key] for key in effect.factors))
    if word not in seen:
      kept.append(effect)
      aliases.append(", ".join(confounded.aliases[word]) or "–")
      seen |= {word, *(other.lstrip("-") for other in confounded.aliases[word])}
  return kept, aliases


# --- cost and power ----------------------------------------------------------------------------------------------------------


def pareto(results: Results, scores: Scores) -> list[Block]:
  scored, spent = np.isfinite(scores.values), [results.total_flops(arm) for arm in results.arms]
  rows = [i for i, cost in enumerate(spent) if scored[i].any() and math.isfinite(cost) and cost > 0]
  if len(rows) < 2:
    return []
  common = scored[rows].all(0)
  values = analysis.without_blocks(scores.values[rows][:, common]) if common.any() else scores.values[rows]
  points = [figures.Point(results.arms[i], spent[i], Interval(np.nanmean(row), np.nanmin(row), np.nanmax(row))) for i, row in zip(rows, values)]
  costs = [point.x for point in points]
  if max(costs) / min(costs) - 1 <= EQUAL:
    return [Heading("Score against FLOPs"), Text(f"All arms cost the same FLOPs, {amount(max(costs))} a run to within {100 * EQUAL:.0f} %, so the table of arms is the whole of it.")]
  figures.pareto(picture(results, "pareto"), points, "FLOPs of a run", scores.metric, scores.better)
  which = ("the range over blocks, without what a block does to all arms alike" + ("" if common.all() else f", over the {common.sum()} of {len(results.blocks)} blocks that all arms here have")
           if common.any() else "the range over blocks; **no block has all arms, so these are means of different blocks and do not compare**")  # fmt: skip
  return [Heading("Score against FLOPs"), Figure("figures/pareto.png", f"Mean `{scores.metric}` against the FLOPs of a run, with {which}. Blue: no other arm is at once better and cheaper.")]


def seeds(results: Results, scores: Scores) -> list[Block]:
  found = {arm: c for arm, c in zip(results.arms, scores.compared) if c is not None and c.n > 1}
  blocks: list[Block] = [Heading("How many seeds")]
  if not found:
    return [*blocks, Items(analysis.limits(1))] if len(results.arms) > 1 else []
  needed = lambda size, deviation: "> 100,000" if (count := analysis.seeds_needed(size, deviation)) is None else f"{count:,}"
  rows = [[f"`{arm}`", str(c.n), fixed(c.difference.value, scores.digits, True), fixed(c.deviation, scores.digits), fixed(c.smallest, scores.digits), needed(c.difference.value, c.deviation)]
          for arm, c in found.items()]  # fmt: skip
  blocks.append(Table(["arm", "n", "difference found", "its deviation", f"seen with n ({CHANCE})", "blocks for the one found"], rows, 1,
                      f"Deviation of the paired differences. Seen with n: the true difference that so many blocks find with chance {CHANCE} (paired t test at 5 %, noncentral t). "
                      "The last column takes the difference found and its deviation for the true ones, and no correction for several comparisons."))  # fmt: skip
  pooled = math.sqrt(np.mean([c.deviation**2 for c in found.values()]))
  if pooled > 0:
    sizes = [digit * 10.0**power for power in range(-12, 13) for digit in (1, 2, 5) if pooled / 4 <= digit * 10.0**power <= pooled * 4]
    blocks.append(Table([f"true difference in {scores.metric}", *(f"{size:g}" for size in sizes)], [[f"blocks to see it with chance {CHANCE}", *(needed(size, pooled) for size in sizes)]], 1,
                        f"At the deviation of differences over all comparisons, {fixed(pooled, scores.digits)} (root mean square)."))  # fmt: skip
  if same := [f"`{arm}`" for arm, c in found.items() if c.deviation == 0]:
    blocks.append(Text(f"The difference of {', '.join(same)} is exactly the same in every block: see whether the seeds have any effect."))
  if said := analysis.limits(min(c.n for c in found.values())):
    blocks += [Text("**What so few blocks cannot tell.**"), Items(said)]
  return blocks
