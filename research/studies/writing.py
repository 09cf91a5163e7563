"""Writes a study up: `report.md`, `report.html`, `results.csv`, `table.tex` and `figures/` from what the sweep left, and `environment.md` with what a second
run of the very same study would change.

Everything but `environment.md` is a function of the folder's contents: the same folder gives the same bytes (with the same matplotlib).
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import os
import platform
from collections.abc import Sequence
from importlib import metadata

import numpy as np

from research.core import config as configs
from research.studies import document, figures, findings
from research.studies.document import Block, Code, Figure, Fold, Heading, Items, Table, Text, amount, fixed, shown
from research.studies.findings import Scores
from research.studies.results import Results, Run, read
from research.training import monitor

PLACES = 3  # on validation, from which a curve is one
PICTURES = ("differences", "main_effects", "interactions", "curves", "pareto")
SPENT = {"steps": "step", "tokens": "tokens", "flops": "flops"}  # budget -> where summary.json has it
UNITS = {"steps": "steps", "tokens": "tokens", "flops": "FLOPs"}


def write(folder: str) -> str:
  """Writes the files into `folder` and returns what a person at the terminal should know: the state, the answer, the names of the files."""
  results = read(folder)
  scores = [findings.scores_of(results, metric["name"], metric["better"]) for metric in results.study["metrics"]]
  scores.sort(key=lambda s: s.metric != results.study["decides"]["metric"])
  deciding = scores[0]
  os.makedirs(os.path.join(folder, "figures"), exist_ok=True)
  for name in PICTURES:  # none may be left of another state of the study
    if os.path.exists(path := findings.picture(results, name)):
      os.remove(path)
  table = findings.arms_table(results, deciding)
  blocks = [
      Heading(results.study["name"], 1), *_question(results, deciding),
      Heading("Arms"), table, *findings.differences(results, deciding), *_costs(results),
      *(part for other in scores[1:] for part in (Heading(other.metric, 3), findings.arms_table(results, other))), *_tuning(results), *_chosen(results, deciding), *findings.factors(results, deciding),
      *_curves(results, deciding), *findings.pareto(results, deciding), *findings.seeds(results, deciding), *_runs(results), *_records(results)]  # fmt: skip
  texts = {
      "report.md": document.to_markdown(blocks), "report.html": document.to_html(blocks, results.study["name"], folder), "results.csv": _csv(results, scores),
      "table.tex": document.to_latex(table), "environment.md": document.to_markdown(_environment(results))}  # fmt: skip
  for name, text in texts.items():
    with open(os.path.join(folder, name), "w", encoding="utf-8", newline="\n") as file:
      file.write(text)
  drawn = sum(os.path.exists(findings.picture(results, name)) for name in PICTURES)
  return (f"{results.study['name']}: {_states(results)}\n{findings.answer(results, deciding).replace('`', '')}\n"
          f"wrote {', '.join(texts)} and {drawn} figure{'s' * (drawn != 1)} in {folder}")  # fmt: skip


# --- question, costs, tuning -------------------------------------------------------------------------------------------------


def _states(results: Results) -> str:
  done = sum(run.state == "done" for run in results.runs)
  others = {state: sum(run.state == state for run in results.runs) for state in ("dropped", "diverged", "failed", "unscored", "unfinished", "missing")}
  return f"{done} of {len(results.runs)} runs are done" + "".join(f", {count} {state}" for state, count in others.items() if count)


def _question(results: Results, scores: Scores) -> list[Block]:
  study, arms = results.study, results.arms
  found = [Text(f"**Question.** {study['question']}")]
  if study["hypothesis"]:
    found.append(Text(f"**Hypothesis.** {study['hypothesis']}"))
  against = f"each other arm against `{arms[results.baseline]}`, paired by block" if len(arms) > 1 else "its mean alone, for there is one arm"
  blocks = f"{len(results.blocks)} blocks (seeds {', '.join(map(str, results.blocks))})"
  found.append(Text(f"**What decides.** `{scores.metric}`, {scores.better} is better; {against}; {len(arms)} arms in {blocks}."))
  found.append(Text(f"**Answer.** {findings.answer(results, scores)}"))
  if not all(run.settled for run in results.runs):
    found.append(Text(f"**State.** {_states(results)}; what is not done is named under Runs."))
  return found


def _costs(results: Results) -> list[Block]:
  after = [results.arm(arm).get("after") for arm in results.arms]
  rows = []
  for arm, before in zip(results.arms, after):
    cells = [f"`{arm}`", *(amount(results.cost(arm, name)) for name in ("parameters", "step", "tokens", "targets", "flops"))]
    rows.append([*cells, *([f"`{before}`" if before else "", amount(results.total_flops(arm))] if any(after) else [])])
  head = ["arm", "parameters", "steps", "tokens", "targets", "FLOPs", *(["starts from", "FLOPs in all"] if any(after) else [])]
  note = "Of one run: means over the runs that have ended, or what is planned. Targets: tokens and labels that the loss is taken of, by the mean over logged steps."
  return [Heading("What each arm costs", 3), Table(head, rows, 1, note), Items([_budget(results), *_same_data(results)])]


def _budget(results: Results) -> str:
  equal, goal = results.study["budget"]["equal"], results.study["budget"]["amount"]
  found = [cost for arm in results.arms if math.isfinite(cost := results.cost(arm, SPENT[equal]))]
  others = [UNITS[name] for name in SPENT if name != equal]
  if not found:
    return f"Equal by design: {UNITS[equal]}, {amount(goal)} a run."
  spread = max(found) / min(found) - 1
  text = f"{UNITS[equal]}, {amount(goal)} a run" + (f" (from {amount(min(found))} to {amount(max(found))}, a spread of {100 * spread:.1f} %)" if spread else "")
  if spread > findings.EQUAL:
    return f"**The budget was not kept**: meant to be equal were {text}. The arms do not compare at equal {UNITS[equal]}."
  return f"Equal in all arms: {text}; {others[0]} and {others[1]} are as the table says."


def _same_data(results: Results) -> list[str]:
  """Whether the arms of a block read the same rows in the same order."""
  blocks = [[run for run in results.runs if run.block == block and run.config] for block in results.blocks]
  if not any(len(runs) > 1 for runs in blocks):
    return []
  several = lambda of: any(len({of(run) for run in runs}) > 1 for runs in blocks)
  order = "**Within a block `data.seed` differs between arms**" if several(lambda run: run.config["data"].get("seed")) else "Within a block all arms draw their rows by the same `data.seed`"
  differ = several(lambda run: run.summary.get("data_hash") or run.plan.get("data_hash"))
  return [order + ("; the data differ between arms: see their hashes." if differ else ", of the same data (one hash).")]


def _tuning(results: Results) -> list[Block]:
  tuning = results.study["tuning"]
  if not tuning:
    return []
  values, blocks = list(tuning["values"]), [Heading("Tuning"), Text(f"{tuning['rule'].rstrip('.')}.")]
  tried = {(run.arm, repr(run.plan.get("value"))): [] for run in results.tuning}
  for run in results.tuning:
    tried[run.arm, repr(run.plan.get("value"))].append(run)
  rows, edges = [], []
  for arm in results.arms:
    chosen = tuning["chosen"].get(arm)
    rows.append([f"`{arm}`", "–" if chosen is None else shown(chosen), *(_mean(tried.get((arm, repr(value)), []), tuning["metric"]) for value in values)])
    if chosen is not None and len(values) > 1 and all(isinstance(value, (int, float)) for value in values) and chosen in (min(values), max(values)):
      edges.append(f"`{arm}`")
  blocks.append(Table(["arm", f"chosen {tuning['key']}", *map(shown, values)], rows, 1, f"Under each value: mean {tuning['metric']} over the blocks of tuning ({', '.join(map(str, tuning['blocks']))})."))
  if tuning.get("halving"):
    blocks.append(Text("A score with a step is that of a value which halving ended there, by the scores that all had at that step; one without is of the end, and may be worse than it was then."))
  if edges:
    blocks.append(Text(f"The value chosen for {', '.join(edges)} is the outermost that was tried: a better one may lie beyond."))
  return blocks


def _mean(runs: Sequence[Run], metric: str) -> str:
  """Of runs that differ in their block alone, with the step where halving ended them."""
  if not runs or not all(run.settled for run in runs):
    return "–"
  early = f" at step {runs[0].summary['step']:,}" if runs[0].state in ("dropped", "chosen") else ""
  return fixed(float(np.mean([run.found(metric) for run in runs])), 4) + early


def _chosen(results: Results, scores: Scores) -> list[Block]:
  """What was not run to its end, or was suggested by scores of this study, and what follows from that."""
  blocks: list[Block] = []
  if halving := results.study.get("halving"):
    rows = [[f"`{arm}`", _mean(results.of(arm), scores.metric)] for arm in results.arms if any(run.state == "dropped" for run in results.of(arm))]
    rule = (f"Successive halving in {halving['rungs']} rungs: at the end of each but the last, the best 1/{halving['eta']} of the arms by mean {scores.metric} went on, and the "
            "baseline in any case. An arm that was dropped is not compared above, and one that would have won late was lost.")  # fmt: skip
    blocks += [Heading("Dropped on the way", 3), Text(rule), *([Table(["arm", f"mean {scores.metric}"], rows, 1, "")] if rows else [])]
  if search := results.study.get("search"):
    space = ", ".join(f"{key} in {values}" for key, values in search["space"].items())
    blocks += [Heading("Search", 3), Text(f"{search['rounds']} rounds of {search['count']} arms were suggested by Optuna's TPE from the scores of those before ({space}). The best of many is "
                                          "best by luck too: compare it with the baseline in a study of its own, with other seeds.")]  # fmt: skip
  return blocks


# --- curves ------------------------------------------------------------------------------------------------------------------


def _curves(results: Results, scores: Scores) -> list[Block]:
  head, _, rest = scores.metric.partition(".")
  key, budget = (rest if head == "valid" and rest else "loss"), results.study["budget"]["equal"]
  lines, where, why = _lines(results, key, budget, "valid"), "validation", ""
  longest = max((len(x) for curves in lines.values() for _, found in curves for x, _ in found.values()), default=0)
  if longest < PLACES and (trained := _lines(results, key, budget, "train")):
    lines, where, why = trained, "training", f" Validation was scored at {longest or 'no'} place{'' if longest == 1 else 's'} only (`evaluate.every`)."
  if not lines:
    return [Heading("Learning curves"), Text(f"No run has logged `{key}` yet.")]
  panels = {kind: [figures.Curve(arm, found, arm in _marked(results, scores, [arm for arm, _ in curves])) for arm, found in curves] for kind, curves in lines.items()}
  figures.curves(findings.picture(results, "curves"), panels, UNITS[budget], f"{where} {key.replace('_', ' ')}")
  return [Heading("Learning curves"), Figure("figures/curves.png", f"{where.capitalize()} `{key}` against {UNITS[budget]}: mean over blocks, band from the lowest to the highest block, without what a "
          "block does to all arms alike." + why + (" Objectives have panels of their own: their losses do not compare." if len(lines) > 1 else ""))]  # fmt: skip


def _lines(results: Results, key: str, budget: str, split: str) -> dict[str, list[tuple[str, dict[int, tuple[np.ndarray, np.ndarray]]]]]:
  """Objective -> (arm, block -> (what has been spent, metric)) of all arms that have logged the metric on a split."""
  lines: dict[str, list[tuple[str, dict]]] = {}
  for arm in results.arms:
    each = results.cost(arm, SPENT[budget]) / results.cost(arm, "step")
    found, kind = {}, ""
    for run in [run for run in results.of(arm) if run.ended] or results.of(arm):
      points = [(line["step"] * each, line[key]) for line in (monitor.read_metrics(os.path.join(results.folder, run.folder)) if run.folder else [])
                if line["split"] == split and math.isfinite(line.get(key, math.nan))]  # fmt: skip
      kind = kind or run.config.get("objective", {}).get("name", "")
      if points and math.isfinite(each):
        found[run.block] = tuple(np.array(column, float) for column in zip(*points))
    if found:
      lines.setdefault(kind.rpartition(".")[2], []).append((arm, found))
  return lines


def _marked(results: Results, scores: Scores, arms: Sequence[str]) -> set[str]:
  """Where there are too many arms for a picture: the baseline, the three best and the worst."""
  baseline = results.study["decides"]["baseline"]
  less = {baseline: 0.0, **{arm: c.difference.value for arm, c in zip(results.arms, scores.compared) if c is not None}}  # within blocks, for an arm may lack some
  order = sorted((arm for arm in arms if arm in less), key=less.get, reverse=scores.better == "higher")
  return {baseline, *order[:3], *order[-1:]}


# --- runs and records --------------------------------------------------------------------------------------------------------


def _runs(results: Results) -> list[Block]:
  kinds = [("", results.runs), ("tuning", results.tuning)]
  rows = [[f"`{run.arm}`", f"{run.block}" + (f" (tuning, {shown(run.plan.get('value'))})" if kind else ""), run.state, f"`{run.folder}`" if run.folder else "–", run.note]
          for kind, runs in kinds for run in runs if run.state != "done"]  # fmt: skip
  alarms = [f"`{run.arm}`, block {run.block} (`{run.folder}`): {text}" for _, runs in kinds for run in runs for text in run.summary.get("alarms", {}).values()]
  skipped = [f"`{run.arm}`, block {run.block} (`{run.folder}`): {run.summary['skipped']} updates were skipped" for _, runs in kinds for run in runs if run.summary.get("skipped")]
  blocks: list[Block] = [Heading("Runs")]
  blocks.append(Table(["arm", "block", "state", "folder", ""], rows, 5, f"{_states(results)}. None of these is among the scores that are compared.") if rows else Text(f"All {len(results.runs)} runs are done."))
  if alarms or skipped:
    blocks += [Text("Some runs gave an alarm:"), Items([*alarms, *skipped])]
  return blocks


def _records(results: Results) -> list[Block]:
  runs = [run for run in (*results.runs, *results.tuning) if run.folder]
  row = lambda run: [f"`{run.folder}`", f"`{run.arm}`", str(run.block), *(f"`{run.summary.get(key) or run.plan.get(key) or '–'}`" for key in ("config_hash", "data_hash", "code")),
                     str(run.summary.get("version", "–"))]  # fmt: skip
  table = Table(["run", "arm", "block", "config", "data", "code", "version"], [row(run) for run in runs], 7)
  return [Fold("How the configs differ", _diffs(results)), Fold("Commands", [Code("\n".join(run.plan["command"] for run in runs) or "–")]), Fold("Hashes", [table])]


def _diffs(results: Results) -> list[Block]:
  """What each arm's config has otherwise than the baseline's, in the first block in which both have started."""
  baseline = results.study["decides"]["baseline"]
  first = {run.block: run.config for run in results.of(baseline) if run.config}
  blocks: list[Block] = [Text(f"From `{baseline}` to each other arm, within one block; base of all: `{results.study['base']}`.")]
  for arm in results.arms:
    if arm == baseline:
      continue
    pair = next(((first[run.block], run.config) for run in results.of(arm) if run.config and run.block in first), None)
    lines = configs.diff(*pair) if pair else [f"{key}: {value}" for key, value in results.arm(arm)["overrides"].items()]
    blocks += [Text(f"`{arm}`" + ("" if pair else " (not started with the baseline; its overrides)")), Code("\n".join(lines) or "nothing differs")]
  return blocks


def _csv(results: Results, scores: Sequence[Scores]) -> str:
  """A line for each run; empty where nothing is known."""
  levels = [*results.study["factors"]]
  numbers = ("step", "tokens", "flops", "parameters")
  file = io.StringIO()
  out = csv.writer(file, lineterminator="\n")
  out.writerow(["arm", "block", "role", "tried", "state", *levels, *(s.metric for s in scores), *numbers, "config_hash", "data_hash", "code", "version", "folder"])
  for run in itertools.chain(results.runs, results.tuning):
    values = [repr(score) if math.isfinite(score := run.score(s.metric)) else "" for s in scores]
    known = [run.summary.get(key) or run.plan.get(key) or "" for key in ("config_hash", "data_hash", "code", "version")]
    tuned = "value" in run.plan
    out.writerow([run.arm, run.block, "tuning" if tuned else "comparison", shown(run.plan["value"]) if tuned else "", run.state,
                  *(shown(results.arm(run.arm)["levels"].get(key, "")) for key in levels), *values, *(run.summary.get(key, "") for key in numbers), *known, run.folder])  # fmt: skip
  return file.getvalue()


def _environment(results: Results) -> list[Block]:
  """What hangs on the machine and the day."""
  runs = list({run.folder: run for run in (*results.runs, *results.tuning) if run.summary}.values())  # a run of the comparison may be one of tuning too
  head = ["run", "arm", "block", "device", "mesh", "wall seconds", "first step after", "tokens/s", "MFU", "goodput", "energy, kJ"]
  number = lambda value, form: "–" if value is None else format(value, form)
  rows = []
  for run in runs:
    s = run.summary
    device, mesh = s.get("device", {}), " ".join(f"{axis}={size}" for axis, size in s.get("mesh", {}).items() if size > 1) or "one device"
    rows.append([f"`{run.folder}`", f"`{run.arm}`", str(run.block), f"{device.get('count', '–')} × {device.get('kind', '–')}", mesh, number(s.get("wall_seconds"), ",.1f"),
                 number(s.get("first_step_seconds"), ".1f"), number(s.get("tokens_per_second"), ",.0f"), number(s.get("mfu"), ".1%"), number(s.get("goodput"), ".1%"),
                 " ".join(f"{kind} {joules / 1000:,.1f}" for kind, joules in (s.get("energy_joules") or {}).items()) or "–"])  # fmt: skip
  total = sum(run.summary.get("wall_seconds") or 0.0 for run in runs)
  made = ", ".join([f"Python {platform.python_version()}", *(f"{name} {metadata.version(name)}" for name in ("numpy", "scipy", "matplotlib"))])
  return [Heading(f"{results.study['name']}: times and machines", 1), Text(f"The wall times of {len(runs)} runs add up to {total:,.0f} s, those of runs at one time counted each. This page is no part of what a second writing of the report reproduces."),
          Table(head, rows, 5, "Runs at one time, in one program or on one device, share its speed: tokens/s and MFU are each one's own. Energy: by the machine's own counters, of CPU packages and GPUs with all that ran on them; – where none can be read."), Text(f"Report written with {made} on {platform.system()} {platform.machine()}.")]  # fmt: skip
