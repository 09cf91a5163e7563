"""The pictures of a report: differences, learning curves, effects of factors, score against FLOPs.

Colours are those of Okabe and Ito, which people who see few colours can tell apart; lines are named where they end. The same numbers give the same
bytes: no date, no settings of the user's, the font that comes with matplotlib.
"""

from __future__ import annotations

import contextlib
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from research.studies.analysis import Interval

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00")
GREY = "#9A9A9A"
MOST = 7  # lines that an eye can follow; of more, all but a few are grey


class Curve(NamedTuple):
  name: str
  blocks: Mapping[int, tuple[np.ndarray, np.ndarray]]  # block -> x and y
  marked: bool = False  # keeps its colour and name where there are too many for all of them


class Point(NamedTuple):
  name: str
  x: float
  score: Interval  # mean, lowest and highest


@contextlib.contextmanager
def _figure(path: str, width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> Iterator[Any]:
  """Axes [rows, columns] of a new picture, which is saved at the end."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  with matplotlib.rc_context():
    matplotlib.rcdefaults()
    matplotlib.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options)
    try:
      yield axes
      figure.savefig(path, dpi=130, metadata={"Software": None})
    finally:
      plt.close(figure)


def differences(path: str, rows: Sequence[tuple[str, Interval, bool]], label: str, better: str) -> None:
  """Each arm's difference from the baseline with its interval; (name, difference, whether it is told from zero)."""
  names = [_wrapped(name, 44) for name, _, _ in rows]
  with _figure(path, 7, 1.2 + 0.2 * len(rows) + 0.13 * sum(name.count("\n") + 1 for name in names)) as axes:
    ax = axes[0, 0]
    for place, (_, interval, told) in enumerate(rows):
      good = (interval.value < 0) == (better == "lower")
      colour = GREY if not told else COLOURS[2] if good else COLOURS[1]
      if math.isfinite(interval.low):
        ax.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
      ax.plot([interval.value], [place], marker="o" if told else "s", markersize=6, color=colour, markerfacecolor=colour if told else "white", linestyle="none")
    ax.axvline(0, color="#444444", linewidth=0.8)
    ax.set_yticks(range(len(rows)), names, fontsize=8)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="x", alpha=0.25)
    ax.set_xlabel(f"{label} less the baseline's\n({'left' if better == 'lower' else 'right'} is better)")


def curves(path: str, panels: Mapping[str, Sequence[Curve]], xlabel: str, ylabel: str) -> None:
  """The mean over blocks of each arm, and a band from the lowest to the highest of them. A panel for each group of curves that may be compared."""
  short = max(len(line.name) for lines in panels.values() for line in lines) <= 20
  columns = 2 if len(panels) > 1 and short else 1
  rows = math.ceil(len(panels) / columns)
  with _figure(path, 7 if columns == 1 else 9.5, 4.2 if rows == 1 else 3.4 * rows, rows, columns) as axes:
    for ax in axes.flat[len(panels) :]:
      ax.set_visible(False)
    for i, (ax, (title, lines)) in enumerate(zip(axes.flat, panels.items())):
      _panel_of_curves(ax, lines)
      if len(panels) > 1:
        ax.set_title(title, fontsize=9, loc="left")
      if i >= len(panels) - columns:
        ax.set_xlabel(xlabel)
      if i % columns == 0:
        ax.set_ylabel(ylabel)
      _large_numbers(ax)


def _panel_of_curves(ax: Any, lines: Sequence[Curve]) -> None:
  many, ends, colours = len(lines) > MOST, [], iter(COLOURS)
  bands = dict(zip((line.name for line in lines), without_blocks([line.blocks for line in lines])))
  for line in sorted(lines, key=lambda line: line.marked):
    x, low, mean, high = band(bands[line.name])
    colour = GREY if many and not line.marked else next(colours)
    if len(bands[line.name]) > 1 and colour != GREY:
      ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    ax.plot(x, mean, color=colour, linewidth=0.8 if colour == GREY else 1.8, marker="o" if len(x) < 12 and colour != GREY else None, markersize=3)
    if colour != GREY:
      ends.append((float(mean[-1]), line.name, colour))
  ax.set_ylim(*view([band(blocks) for blocks in bands.values()]))
  label_ends(ax, ends, [(f"{sum(not line.marked for line in lines)} other arms", GREY)] if many else [])
  ax.grid(alpha=0.25)


def without_blocks(lines: Sequence[Mapping[int, tuple[np.ndarray, np.ndarray]]]) -> list[list[tuple[np.ndarray, np.ndarray]]]:
  """The curves of each arm without what a block does to all arms alike, as differences within blocks are without it: the curve of a block, in the mean over arms,
  is taken from each and that of all blocks put in its place. Where no two blocks are common to all arms, the curves as they are."""
  common = sorted(set.intersection(*(set(line) for line in lines))) if len(lines) > 1 else []
  if len(common) < 2:
    return [list(line.values()) for line in lines]
  grid = lines[0][common[0]][0]
  centre = np.stack([np.mean([np.interp(grid, *line[block]) for line in lines], axis=0) for block in common])
  return [[(line[block][0], line[block][1] - np.interp(line[block][0], grid, own)) for block, own in zip(common, centre - centre.mean(0))] for line in lines]


def band(blocks: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """x, lowest, mean and highest over blocks, at the first block's places as far as all of them go; straight lines in between."""
  start, end = max(x[0] for x, _ in blocks), min(x[-1] for x, _ in blocks)
  grid = blocks[0][0]
  grid = grid[(grid >= start) & (grid <= end)]
  if not len(grid):
    grid = np.array([start])
  values = np.stack([np.interp(grid, x, y) for x, y in blocks])
  return grid, values.min(0), values.mean(0), values.max(0)


def view(bands: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> tuple[float, float]:
  """What of the scores to show. Where most of them fall, steeply at the start: what is below the highest place of these after a fifth of the way, which cuts off an
  arm that diverges; else all, as where no curve has three places there."""
  start, end = min(x[0] for x, *_ in bands), max(x[-1] for x, *_ in bands)
  falling = [found for found in bands if found[2][0] >= found[2][-1]]
  fall = 2 * len(falling) >= len(bands)
  fifth = start + 0.2 * (end - start)
  first = fifth if fall and max((x >= fifth).sum() for x, *_ in falling) > 2 else start
  later = [(low[late], high[late]) for x, low, _, high in (falling if fall else bands) if (late := x >= first).any()]
  bottom = min(float(low.min()) for low, _ in later)
  top = max(float(high[0] if fall else high.max()) for _, high in later)
  edge = 0.05 * (top - bottom) or 0.05
  return bottom - edge, top + edge


def label_ends(ax: Any, ends: Sequence[tuple[float, str, str]], more: Sequence[tuple[str, str]] = ()) -> None:
  """Names beside the right ends of lines, moved apart where they would overlap, in order from top to bottom."""
  low, high = ax.get_ylim()
  names = [_wrapped(name, 30) for _, name, _ in ends]
  height = ax.figure.get_size_inches()[1] / ax.get_subplotspec().get_gridspec().nrows
  gap = 0.18 / height * max((name.count("\n") + 1 for name in names), default=1)
  ordered = sorted(zip(ends, names), key=lambda pair: -pair[0][0])
  wanted = [min(1.0, max(0.0, (end[0] - low) / (high - low))) for end, _ in ordered]
  for ((_, _, colour), name), at, place in zip(ordered, wanted, spread(wanted, gap)):
    ax.annotate(name, (1.0, at), (1.03, place), xycoords="axes fraction", color=colour, va="center", fontsize=8, annotation_clip=False,
                arrowprops=dict(arrowstyle="-", color=colour, linewidth=0.5, shrinkA=0, shrinkB=0))  # fmt: skip
  for i, (text, colour) in enumerate(more):
    ax.annotate(text, (0.98, 0.96 - gap * i), xycoords="axes fraction", color=colour, ha="right", va="center", fontsize=8)


def spread(wanted: Sequence[float], gap: float) -> list[float]:
  """Places from top to bottom (descending), as near to the wanted ones as a distance of `gap` allows: neighbours that are too near become a group about their middle."""
  groups: list[list[float]] = []  # middle, count
  for at in wanted:
    groups.append([at, 1])
    while len(groups) > 1 and groups[-2][0] - groups[-1][0] < gap * (groups[-2][1] + groups[-1][1]) / 2:
      middle, count = groups.pop()
      before = groups[-1]
      before[0] = (before[0] * before[1] + middle * count) / (before[1] + count)
      before[1] += count
  return [middle + gap * ((count - 1) / 2 - i) for middle, count in groups for i in range(int(count))]


def main_effects(path: str, factors: Mapping[str, Sequence[tuple[str, Interval]]], label: str) -> None:
  """A panel a factor on one scale: the mean score at each level, with intervals; a dotted line at the mean of all."""
  columns = min(4, len(factors))
  rows = math.ceil(len(factors) / columns)
  with _figure(path, max(4.0, 2.4 * columns), 2.9 * rows, rows, columns, sharey=True) as axes:
    for ax in axes.flat[len(factors) :]:
      ax.set_visible(False)
    for i, (ax, (name, levels)) in enumerate(zip(axes.flat, factors.items())):
      x, values = np.arange(len(levels)), np.array([interval for _, interval in levels])
      ax.axhline(values[:, 0].mean(), color="grey", linestyle=":", linewidth=1)
      ax.plot(x, values[:, 0], color=COLOURS[0], marker="o", markersize=4, linewidth=1.5)
      if np.isfinite(values).all():
        ax.vlines(x, values[:, 1], values[:, 2], color=COLOURS[0], linewidth=1.2)
      _level_ticks(ax, [level for level, _ in levels])
      ax.set_xlim(-0.5, len(levels) - 0.5)
      ax.set_title(_short(name, 26), fontsize=9)
      ax.grid(axis="y", alpha=0.25)
      if i % columns == 0:
        ax.set_ylabel(label)


def interactions(path: str, pairs: Sequence[tuple[str, str, Sequence[str], Sequence[str], np.ndarray]], label: str) -> None:
  """A panel a pair of factors: the mean score [levels of the one, levels of the other] against the one, a line for each level of the other. Parallel: no interaction."""
  columns = min(2, len(pairs))
  rows = math.ceil(len(pairs) / columns)
  with _figure(path, 4.6 * columns, 3.0 * rows, rows, columns, sharey=True) as axes:
    for ax in axes.flat[len(pairs) :]:
      ax.set_visible(False)
    for i, (ax, (one, other, levels, lines, means)) in enumerate(zip(axes.flat, pairs)):
      x, colours = np.arange(len(levels)), [COLOURS[j % len(COLOURS)] for j in range(len(lines))]
      for j, colour in enumerate(colours):
        ax.plot(x, means[:, j], color=colour, marker="os^Dv"[j % 5], markersize=4, linewidth=1.5)
      _level_ticks(ax, levels)
      ax.set_xlim(-0.3, len(levels) - 0.9)
      ax.set_xlabel(_short(one, 40))
      ax.set_title(f"lines: {_short(other, 40)}", fontsize=8, loc="right")
      ax.grid(axis="y", alpha=0.25)
      if i % columns == 0:
        ax.set_ylabel(label)
    for ax, (_, _, _, lines, means) in zip(axes.flat, pairs):  # the common scale is known only now
      label_ends(ax, [(float(means[-1, j]), line, COLOURS[j % len(COLOURS)]) for j, line in enumerate(lines)])


def pareto(path: str, points: Sequence[Point], xlabel: str, ylabel: str, better: str) -> None:
  """Scores against what they cost; the step line joins the arms that no other beats in both, and these are named."""
  from matplotlib import patheffects

  sign = 1 if better == "lower" else -1
  value = lambda p: sign * p.score.value
  front = sorted((p for p in points if not any(value(q) <= value(p) and q.x <= p.x and (value(q), q.x) != (value(p), p.x) for q in points)), key=lambda p: p.x)
  with _figure(path, 7, 4.2) as axes:
    ax, best = axes[0, 0], {p.name for p in front}
    if max(p.x for p in points) > 3 * min(p.x for p in points):
      ax.set_xscale("log")
    ax.plot([p.x for p in front], [p.score.value for p in front], color=COLOURS[0], linewidth=1, drawstyle="steps-post", zorder=1)
    for p in sorted(points, key=lambda p: p.name in best):
      colour = COLOURS[0] if p.name in best else GREY
      ax.vlines([p.x], p.score.low, p.score.high, color=colour, linewidth=1.2)
      ax.plot([p.x], [p.score.value], marker="o", markersize=5, color=colour, linestyle="none")
    ax.margins(x=0.12, y=0.1)
    low, high = ax.get_ylim()
    columns: dict[float, list[Point]] = {}
    for p in sorted(points, key=lambda p: -p.score.value):
      if len(points) <= 10 or p.name in best:
        columns.setdefault(p.x, []).append(p)
    for column in columns.values():  # names of arms that cost the same stand below each other, those of the front beside the line
      wanted = [(p.score.value - low) / (high - low) for p in column]
      for p, at, place in zip(column, wanted, spread(wanted, 0.05)):
        ax.annotate(_short(p.name, 40), (p.x, p.score.value), (7, (place - at) * 0.8 * 4.2 * 72 - (7 * sign if p.name in best else 0)), textcoords="offset points", va="center", fontsize=8, zorder=3,
                    color="#222222" if p.name in best else "#666666", path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")])  # fmt: skip
    ax.grid(alpha=0.25)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel + f"  ({better} is better)")
    _large_numbers(ax)


def _level_ticks(ax: Any, levels: Sequence[str]) -> None:
  wide = sum(len(_short(level, 14)) + 2 for level in levels) > 28
  ax.set_xticks(range(len(levels)), [_short(level, 14) for level in levels], fontsize=8, **(dict(rotation=30, ha="right", rotation_mode="anchor") if wide else {}))


def _large_numbers(ax: Any) -> None:
  """Ticks of x as 2 M, 5 G."""
  from matplotlib import ticker

  if ax.get_xscale() == "log":
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
  ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=" "))


def _short(text: Any, most: int) -> str:
  text = str(text)
  return (text if len(text) <= most else text[: most - 1] + "…").replace("$", r"\$")


def _wrapped(text: str, width: int) -> str:
  """On two lines at most."""
  return "\n".join(line.replace("$", r"\$") for line in textwrap.wrap(str(text), width, max_lines=2, placeholder=" …")) or str(text)
