"""Reports of folders as a sweep leaves them: finished, half finished, damaged. No model is trained."""

import base64
import csv
import html.parser
import json
import math
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from research import report
from research.core.errors import UserError
from research.studies import design, document, figures, findings, results, writing
from tests.studies import fake

GRID = design.grid({"optimizer.schedule.peak": [1e-3, 3e-3, 1e-2], "model.width": [64, 128]})
METRICS = [{"name": "valid.loss", "better": "lower"}, {"name": "valid.accuracy", "better": "higher"}]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A finished study of 3 × 2 arms in three blocks, written up: its folder."""
  folder = tmp_path_factory.mktemp("whole")
  fake.study(folder, GRID, metrics=METRICS)
  writing.write(str(folder))
  return folder


def text(folder):
  return (folder / "report.md").read_text(encoding="utf-8")


def chapter(folder, title):
  return re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^## |\Z)", text(folder), re.M | re.S)[1].strip()


def rows(folder, title, table=0):
  """The cells of a chapter's table."""
  found = [block for block in re.split(r"\n\n", chapter(folder, title)) if block.startswith("|")][table]
  return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found.splitlines() if not line.startswith("| ---")]


def number(cell):
  return float(cell.replace("−", "-"))


# --- a finished study --------------------------------------------------------------------------------------------------------


def test_chapters_stand_in_their_order(whole):
  titles = re.findall(r"^#+ (.*)$", text(whole), re.M)
  assert titles == ["widths", "Arms", "What each arm costs", "valid.accuracy", "Effects of factors", "Learning curves", "Score against FLOPs", "How many seeds", "Runs", "How the configs differ",
                    "Commands", "Hashes"]  # fmt: skip
  assert "Does a wider model want a smaller step?" in text(whole) and "Yes: its best peak falls." in text(whole)


def test_the_table_of_arms_is_what_scipy_finds(whole):
  scores = np.array([[fake.score(arm, block) for block in range(3)] for arm in GRID])
  table = rows(whole, "Arms")
  assert [row[0] for row in table[1:]] == [f"`{fake.name_of(arm)}`" for arm in GRID] and table[1][4] == "baseline"
  p = [stats.ttest_rel(row, scores[0]).pvalue for row in scores[1:]]
  for row, own, raw in zip(table[2:], scores[1:], p):
    low, high = stats.ttest_1samp(own - scores[0], 0).confidence_interval()
    assert [number(cell) for cell in (*row[1:5], *row[5].split(" … "))] == pytest.approx([3, own.mean(), own.std(ddof=1), (own - scores[0]).mean(), low, high], abs=6e-5)
    assert float(row[6].lstrip("< ")) == pytest.approx(raw, rel=0.06)
  assert "Holm, over 5 comparisons" in chapter(whole, "Arms")


def test_the_answer_is_one_sentence_with_its_interval(whole):
  answer = re.search(r"\*\*Answer\.\*\* (.*)", text(whole))[1]
  table = {row[0]: row for row in rows(whole, "Arms")[1:]}
  best = min(table, key=lambda arm: number(table[arm][2]))
  assert f"the best, {best}, differs by {table[best][4]} ({table[best][5]})" in answer and "5 arms" in answer and "Preliminary" not in answer
  verdicts = [float(row[7].lstrip("< ")) < 0.05 for row in table.values() if row[4] != "baseline"]
  assert f"{len(verdicts) - sum(verdicts)} is not to be told from it" in answer


def test_one_of_several_is_found_after_correction_only(tmp_path):
  differences = {0: [0, 0, 0, 0], 1: [1.0, 2.1, 1.2, 0.5], 2: [1, -1, 1, -1], 3: [2, 1, -2, -1]}
  assert 0.02 < stats.ttest_1samp(differences[1], 0).pvalue < 0.05
  fake.study(tmp_path, [{"a": a} for a in differences], blocks=range(4), score=lambda arm, block: 5.0 - differences[arm["a"]][block])
  assert "3 are not to be told from it" in writing.write(str(tmp_path)) and "the largest improvement, `a=1`, differs by −1.2" in text(tmp_path)
  fake.study(tmp_path, [{"a": 0}, {"a": 1}], blocks=range(4), score=lambda arm, block: 5.0 - differences[arm["a"]][block])
  assert "a=1 is better than a=0: valid.loss differs by −1.20" in writing.write(str(tmp_path))


def test_costs_and_what_was_equal(whole):
  table = rows(whole, "What each arm costs")
  assert table[1] == ["`peak=0.001 width=64`", "64 k", "100", "6,400", "4,800", "2.458 G"] and table[2][5] == "4.915 G"
  said = chapter(whole, "What each arm costs")
  assert "Equal in all arms: steps, 100 a run; tokens and FLOPs are as the table says." in said
  assert "Within a block all arms draw their rows by the same `data.seed`, of the same data (one hash)." in said


def test_effects_of_factors_are_those_of_the_cells(whole):
  means = np.array([[np.mean([fake.score(arm, block) for block in range(3)]) for arm in GRID]]).reshape(3, 2)
  found = {row[0]: number(row[1]) for row in rows(whole, "Effects of factors")[1:]}
  assert found["`model.width`: 64 → 128"] == pytest.approx((means[:, 1] - means[:, 0]).mean(), abs=6e-5)
  assert found["`optimizer.schedule.peak`: 0.001 → 0.01"] == pytest.approx((means[2] - means[0]).mean(), abs=6e-5)
  assert len(found) == 5 and not any("cannot be told" in cell for cell in rows(whole, "Effects of factors")[0])


def test_three_seeds_say_what_they_cannot_tell(whole):
  said = chapter(whole, "How many seeds")
  assert all(part in said for part in ("0.52 and 6.28", "p below 0.25", "no bootstrap interval", "6 blocks are the least"))
  assert "bootstrap" not in " ".join(rows(whole, "Arms")[0])
  needed = [int(cell.replace(",", "")) for cell in rows(whole, "How many seeds", 1)[1][1:]]
  assert needed == sorted(needed, reverse=True) and needed[0] > 10 > needed[-1]


def test_runs_configs_commands_and_hashes_are_named(whole):
  assert "All 18 runs are done." in chapter(whole, "Runs")
  assert "changed.model.width: 64 -> 128" in chapter(whole, "How the configs differ") and "seed" not in chapter(whole, "How the configs differ")
  assert chapter(whole, "Commands").count("python -m research.train") == 18
  assert ["`runs/0100`", "`peak=0.001 width=128`", "0", "`k0`", "`d0`", "`e0`", "0.1.0"] in rows(whole, "Hashes")


def test_the_csv_has_a_line_for_each_run_and_every_digit(whole):
  with open(whole / "results.csv", newline="", encoding="utf-8") as file:
    lines = list(csv.DictReader(file))
  assert len(lines) == 18 and {line["state"] for line in lines} == {"done"}
  for line in lines:
    arm = next(arm for arm in GRID if fake.name_of(arm) == line["arm"])
    assert float(line["valid.loss"]) == fake.score(arm, int(line["block"])) and float(line["model.width"]) == arm["model.width"] and line["folder"].startswith("runs/")


class Page(html.parser.HTMLParser):
  def __init__(self, markup):
    super().__init__()
    self.open, self.images, self.links = [], [], []
    self.feed(markup)

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    if tag not in ("meta", "img"):
      self.open.append(tag)
    if tag == "img":
      self.images.append(attributes)
    self.links += [value for name, value in attributes.items() if name in ("src", "href") and tag != "img"]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def test_the_page_needs_no_other_file(whole):
  markup = (whole / "report.html").read_text(encoding="utf-8")
  page = Page(markup)
  assert page.open == [] and page.links == [] and "url(" not in markup and "@import" not in markup
  drawn = {path.read_bytes() for path in (whole / "figures").glob("*.png")}
  assert len(page.images) == 5 and {base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in page.images} == drawn
  assert all(image["alt"] for image in page.images) and 'name="viewport"' in markup
  assert set(re.findall(r"\(figures/(\w+)\.png\)", text(whole))) == {path.stem for path in (whole / "figures").iterdir()} == set(writing.PICTURES)
  assert markup.count("<code>peak=0.003 width=128</code>") > 3 and "`" not in markup


def test_the_latex_table_has_every_arm(whole):
  lines = (whole / "table.tex").read_text(encoding="utf-8").splitlines()
  body = [line for line in lines if line.endswith(r"\\")]
  assert len(body) == 7 and len({line.count(" & ") for line in body}) == 1 and r"95 \% interval" in body[0] and r"$-$0.0" in body[2]
  assert [lines.count(line) for line in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}")] == [1, 1, 1, 1]


def test_the_same_folder_gives_the_same_bytes(whole, tmp_path):
  """A copy of another name, written up by the command in another process with another order of sets; it needs no JAX."""
  copy = tmp_path / "second copy"
  shutil.copytree(whole, copy, ignore=shutil.ignore_patterns("report.*", "*.png", "*.csv", "*.tex", "environment.md"))
  code = "import sys; from research import report; report.main(sys.argv[1:]); print('jax' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code, f"{copy}/"], env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True)
  assert done.stderr == "" and done.stdout.splitlines()[-1] == "False" and "18 of 18 runs are done" in done.stdout and "the best, peak=0.003 width=128" in done.stdout
  files = [{str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "environment.md"} for folder in (whole, copy)]
  assert {"report.md", "report.html", "results.csv", "table.tex", "figures/curves.png"} < files[0].keys() == files[1].keys()
  for name, found in files[0].items():
    assert found == files[1][name], name


def test_times_and_machines_stand_apart(tmp_path):
  """What a second running of the study changes, changes environment.md alone."""
  whole = tmp_path / "whole"
  fake.study(whole, GRID[::2])
  writing.write(str(whole))
  shutil.copytree(whole, tmp_path / "again")
  for path in (tmp_path / "again").rglob("summary.json"):
    summary = json.loads(path.read_text())
    path.write_text(json.dumps({**summary, "wall_seconds": 1e5, "tokens_per_second": 7.0, "device": {"kind": "TPU v5", "count": 4}, "mfu": 0.5}))
  writing.write(str(tmp_path / "again"))
  for name in ("report.md", "report.html", "results.csv", "table.tex", "environment.md"):
    assert ((tmp_path / "again" / name).read_bytes() == (whole / name).read_bytes()) == (name != "environment.md"), name
  page = (tmp_path / "again" / "environment.md").read_text(encoding="utf-8")
  assert "4 × TPU v5" in page and "add up to 900,000 s" in page and "50.0%" in page and "Python 3." in page


# --- studies of other kinds --------------------------------------------------------------------------------------------------


def test_a_fraction_says_what_is_confounded_and_objectives_have_panels(tmp_path):
  levels = {"ffn": ["gelu", "swiglu"], "model.norm": ["rms", "layer"], "objective": ["causal_lm", "masked_lm"], "position": ["rotary", "alibi"]}
  fake.study(tmp_path, design.fractional(levels, "d=abc"), blocks=range(7), kind=lambda arm: "objectives." + arm["objective"], factors=levels)
  writing.write(str(tmp_path))
  said = chapter(tmp_path, "Effects of factors")
  assert "resolution IV, defining relation I = abcd (a = ffn, b = model.norm, c = objective, d = position)" in said and "ab = cd; ac = bd; ad = bc" in said
  table = rows(tmp_path, "Effects of factors")
  assert len(table) == 1 + 4 + 3 and [row[1] for row in table[1:]] == ["–", "–", "–", "–", "cd", "bd", "bc"]
  assert number(table[2][2]) == pytest.approx(-0.02, abs=0.004) and table[2][5] == "< 0.0001" and all(float(row[5]) > 0.05 for row in (table[1], *table[3:]))
  head = rows(tmp_path, "Arms")[0]
  assert "bootstrap" in head and "p sign flips" in head, "seven blocks are enough"
  flips = [float(row[head.index("p sign flips")]) for row in rows(tmp_path, "Arms")[2:]]
  assert min(flips) == pytest.approx(2 / 2**7, abs=1e-3)
  assert "panels of their own" in chapter(tmp_path, "Learning curves") and "same FLOPs" in chapter(tmp_path, "Score against FLOPs")
  assert not (tmp_path / "figures" / "pareto.png").exists()


def test_where_validation_was_scored_too_seldom_for_a_curve_those_of_training_are_drawn(tmp_path):
  fake.study(tmp_path, design.grid({"model.width": [64, 128]}), blocks=range(2))
  writing.write(str(tmp_path))
  assert "Validation `loss` against steps" in chapter(tmp_path, "Learning curves") and "Training" not in chapter(tmp_path, "Learning curves")
  for path in tmp_path.glob("runs/*/metrics.jsonl"):
    lines = [line for line in path.read_text().splitlines() if '"valid"' not in line or '"step": 100,' in line]
    path.write_text("\n".join(lines) + "\n")
  writing.write(str(tmp_path))
  assert "Training `loss` against steps" in (said := chapter(tmp_path, "Learning curves")) and "scored at 1 place only (`evaluate.every`)" in said
  for path in tmp_path.glob("runs/*/metrics.jsonl"):
    path.write_text(path.read_text().splitlines()[-1] + "\n")
  writing.write(str(tmp_path))
  assert "Validation `loss` against steps" in chapter(tmp_path, "Learning curves"), "training tells nothing"


def test_tuning_is_told_with_its_rule_its_scores_and_its_edges(tmp_path):
  sweep, peaks = design.grid({"model.width": [64, 128]}), [1e-3, 3e-3, 1e-2]
  tuned = [fake.planned(place, {"name": fake.name_of(arm), "overrides": arm}, 9, value=peak, address=f"t{place}{i}") for place, arm in enumerate(sweep) for i, peak in enumerate(peaks)]
  plain = fake.study(tmp_path, sweep, tuning={
    "key": "optimizer.schedule.peak", "values": peaks, "metric": "valid.loss", "blocks": [9], "rule": "the peak with the lowest valid.loss in block 9",
    "chosen": {"width=64": 3e-3, "width=128": 1e-2}, "runs": tuned})  # fmt: skip
  for i, run in enumerate(tuned[:5]):
    fake.run(tmp_path / "runs" / run["address"], plain["arms"][i // 3], 9, 2 + i / 100)
  writing.write(str(tmp_path))
  said = chapter(tmp_path, "Tuning")
  assert "the peak with the lowest valid.loss in block 9." in said and "chosen for `width=128` is the outermost" in said
  assert rows(tmp_path, "Tuning")[1:] == [["`width=64`", "0.003", "2.0000", "2.0100", "2.0200"], ["`width=128`", "0.01", "2.0300", "2.0400", "–"]]
  assert ["`width=128`", "9 (tuning, 0.01)", "missing", "`runs/t12`", "not started"] in rows(tmp_path, "Runs")
  assert (tmp_path / "results.csv").read_text().count(",tuning,") == 6


def test_a_run_of_the_comparison_that_was_one_of_tuning_is_counted_once(tmp_path):
  study = fake.study(tmp_path, design.grid({"model.width": [64, 128]}), blocks=range(2))
  writing.write(str(tmp_path))
  once = (tmp_path / "environment.md").read_bytes()
  tuned = [{**run, "value": 1e-3} for run in study["runs"] if run["block"] == 0]
  study["tuning"] = {"key": "optimizer.schedule.peak", "values": [1e-3], "metric": "valid.loss", "blocks": [0], "rule": "the only one", "chosen": {"width=64": 1e-3, "width=128": 1e-3}, "runs": tuned}
  fake.write(tmp_path / "study.json", study)
  writing.write(str(tmp_path))
  assert (tmp_path / "environment.md").read_bytes() == once and (tmp_path / "results.csv").read_text().count(",tuning,") == 2


def test_scores_of_evaluations_and_arms_that_start_from_another(tmp_path):
  sweep = [{"model.width": 64}, {"model.width": 128}]
  metric = {"name": "evaluations.minimal_pairs.overall", "better": "higher"}
  plain = fake.study(tmp_path, sweep, blocks=range(3), metrics=[metric], decides={"metric": metric["name"], "baseline": "width=64"})
  plain["arms"][1]["after"] = "width=64"
  fake.write(tmp_path / "study.json", plain)
  for place, block in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)):
    scores = {"overall": {"value": 50.0 + 10 * place + block, "low": 1.0, "high": 99.0}, "other": {"value": 0.0}}
    fake.write(tmp_path / "runs" / f"{place:02x}{block:02x}" / "evaluations.json", {"minimal_pairs of a/b.c.jsonl": {"scores": scores, "settings": {}}})
  said = writing.write(str(tmp_path))
  assert "5 of 6 runs are done, 1 unscored" in said and "evaluations.minimal_pairs.overall differs by +10" in said
  assert ["`width=128`", "2", "unscored", "`runs/0102`", "evaluations.minimal_pairs.overall is not there"] in rows(tmp_path, "Runs")
  table = rows(tmp_path, "What each arm costs")
  assert table[0][-2:] == ["starts from", "FLOPs in all"] and table[2][-2:] == ["`width=64`", "7.373 G"]
  assert "exactly the same in every block" in chapter(tmp_path, "How many seeds")
  assert "`loss`" in chapter(tmp_path, "Learning curves")
  plain["arms"][1]["evals"] = ["similarity --data=x.csv"]  # an arm that is not asked for it lacks nothing
  fake.write(tmp_path / "study.json", plain)
  for block in (0, 1):
    (tmp_path / "runs" / f"01{block:02x}" / "evaluations.json").unlink()
  assert "all 6 runs are done" in writing.write(str(tmp_path)).lower().replace("6 of 6", "all 6")
  assert rows(tmp_path, "Arms")[2][:3] == ["`width=128`", "0", "–"]


def test_a_budget_that_was_not_kept_and_data_that_differ_are_told(tmp_path):
  plain = fake.study(tmp_path, [{"model.width": 64}, {"model.width": 128}], blocks=[0], budget={"equal": "flops", "amount": 3e9})
  config = json.loads((tmp_path / "runs" / "0100" / "config.json").read_text())
  fake.write(tmp_path / "runs" / "0100" / "config.json", {**config, "data": {"seed": 5}})
  plain["runs"][1]["data_hash"] = "d1"
  fake.write(tmp_path / "study.json", plain)
  summary = json.loads((tmp_path / "runs" / "0100" / "summary.json").read_text())
  fake.write(tmp_path / "runs" / "0100" / "summary.json", {**summary, "data_hash": "d1", "alarms": {"stuck": "nothing is learned"}, "skipped": 3})
  writing.write(str(tmp_path))
  said = chapter(tmp_path, "What each arm costs")
  assert "**The budget was not kept**" in said and "spread of 100.0 %" in said and "**Within a block `data.seed` differs" in said and "the data differ between arms" in said
  assert "one block, where nothing tells a difference from chance" in text(tmp_path)
  assert "(`runs/0100`): nothing is learned" in chapter(tmp_path, "Runs") and "3 updates were skipped" in chapter(tmp_path, "Runs")


def test_an_ablation_has_no_effects_of_factors_and_one_arm_no_comparison(tmp_path):
  fake.study(tmp_path / "ablation", design.one_at_a_time({"a": 0, "b": 0}, {"a": [1], "b": [1]}), blocks=[0, 1])
  writing.write(str(tmp_path / "ablation"))
  assert "no balanced design" in chapter(tmp_path / "ablation", "Effects of factors")
  fake.study(tmp_path / "one", [{"a": 0}])
  assert "nothing to compare it with" in writing.write(str(tmp_path / "one"))


# --- studies that are not finished -------------------------------------------------------------------------------------------


def test_nothing_has_run_yet(tmp_path):
  fake.study(tmp_path, GRID, skip=[(place, block) for place in range(6) for block in range(3)])
  said = writing.write(str(tmp_path))
  assert "0 of 18 runs are done, 18 missing" in said and "Nothing can be said yet" in said and "0 figures" in said
  assert len(rows(tmp_path, "Runs")) == 19 and "4.915 G" in chapter(tmp_path, "What each arm costs") and Page((tmp_path / "report.html").read_text()).images == []
  assert "0 of 18 runs are done" in writing.write(str(tmp_path))


def test_every_run_that_is_not_done_is_named_with_what_happened(tmp_path):
  plain = fake.study(tmp_path, design.grid({"model.width": [64, 128]}), blocks=range(6), skip=[(1, 0)])
  runs, arm = tmp_path / "runs", plain["arms"][1]
  for block in (1, 2, 3, 4, 5):
    shutil.rmtree(runs / f"01{block:02x}")
  fake.run(runs / "0101", arm, 1, math.nan)
  fake.run(runs / "0102", arm, 2, 2.0, stop=40)
  (runs / "0102" / "log.txt").write_text("step 40/100\nerror: the disk is full | here.\n\n")
  fake.run(runs / "0103", arm, 3, 2.0, stop=60)
  (runs / "0103" / "log.txt").write_text("step 60/100 loss 2.1\n")
  fake.run(runs / "0104", arm, 4, 2.0)
  (runs / "0104" / "summary.json").write_text('{"step": 10')
  fake.run(runs / "0105", arm, 5, 2.0, stop=50)
  with open(runs / "0105" / "metrics.jsonl", "a", encoding="utf-8") as file:
    file.writelines(json.dumps({"step": step, "split": "train", "loss": 9.0, "skipped": step - 50}) + "\n" for step in range(51, 62))
  (runs / "0004" / "summary.json").write_text((runs / "0004" / "summary.json").read_text().replace('"d0"', '"d9"'))
  said = writing.write(str(tmp_path))
  assert "5 of 12 runs are done, 2 diverged, 3 failed, 1 unfinished, 1 missing" in said and "Nothing can be said yet" in said
  found = {row[3].strip("`"): row for row in rows(tmp_path, "Runs")[1:]}
  assert {folder: row[2] for folder, row in found.items()} == {
    "runs/0004": "failed", "runs/0100": "missing", "runs/0101": "diverged", "runs/0102": "failed", "runs/0103": "unfinished", "runs/0104": "failed",
    "runs/0105": "diverged"}  # fmt: skip
  notes = {folder: row[4] for folder, row in found.items()}
  assert notes["runs/0101"] == "valid.loss is nan" and notes["runs/0105"] == "the last 10 updates all skipped at step 61 of 100"
  assert notes["runs/0102"] == r"step 40 of 100; its log ends with `error: the disk is full \| here.`"
  assert notes["runs/0103"] == "step 60 of 100; its log ends with `step 60/100 loss 2.1`" and "'runs/0104/summary.json' is not readable" in notes["runs/0104"]
  assert "its data changed: hash d9, d0 in study.json" in notes["runs/0004"]
  assert [row[:2] for row in rows(tmp_path, "Arms")[1:]] == [["`width=64`", "5"], ["`width=128`", "0"]], "none of them counts"
  assert str(tmp_path) not in text(tmp_path)


def test_files_that_no_run_has_written_cost_that_run_alone(tmp_path):
  fake.study(tmp_path, GRID[:2], blocks=range(5))
  for place, (name, damaged) in enumerate([("metrics.jsonl", b"\xff\xfe\n"), ("metrics.jsonl", b"{}\n"), ("summary.json", b'{"a": 1}'), ("summary.json", b"[1]"), ("evaluations.json", b"[1]")]):
    (tmp_path / "runs" / f"01{place:02x}" / name).write_bytes(damaged)
  writing.write(str(tmp_path))
  assert [row[1] for row in rows(tmp_path, "Arms")[1:]] == ["5", "2"]
  assert {row[3]: row[2] for row in rows(tmp_path, "Runs")[1:]} == {f"`runs/010{place}`": "failed" for place in (2, 3, 4)}


def pareto_points(folder, monkeypatch):
  """What the picture of score against FLOPs shows: arm -> the three numbers."""
  draw, shown = figures.pareto, {}

  def pareto(path, points, *rest):
    shown.update({point.name: tuple(point.score) for point in points})
    draw(path, points, *rest)

  monkeypatch.setattr(figures, "pareto", pareto)
  writing.write(str(folder))
  return shown


def test_a_run_that_is_missing_moves_no_arm_by_what_its_block_does_to_all(tmp_path, monkeypatch):
  arms = [{"model.width": width} for width in (64, 96, 128)]
  fake.study(tmp_path, arms, score=lambda arm, block: 2 - 0.01 * arm["model.width"] / 64 + 10 * block, skip=[(1, 2)])
  found = pareto_points(tmp_path, monkeypatch)
  assert [found[f"width={width}"] for width in (64, 96, 128)] == pytest.approx([pytest.approx(value, abs=1e-9) for value in ((6.99,) * 3, (6.985,) * 3, (6.98,) * 3)])
  assert "over the 2 of 3 blocks that all arms here have" in chapter(tmp_path, "Score against FLOPs")
  table = rows(tmp_path, "Arms")
  assert [row[1] for row in table[1:]] == ["3", "2", "3"]
  fake.study(tmp_path / "apart", arms[:2], score=lambda arm, block: arm["model.width"] + block, blocks=(0, 1), skip=[(0, 0), (1, 1)])
  pareto_points(tmp_path / "apart", monkeypatch)
  assert "means of different blocks and do not compare" in chapter(tmp_path / "apart", "Score against FLOPs")


def test_arms_are_marked_by_what_they_differ_within_blocks(tmp_path):
  arms = [{"model.width": width} for width in (64, 96, 128, 160, 192, 224)]
  fake.study(tmp_path, arms, score=lambda arm, block: 2 - arm["model.width"] / 1000 + 10 * block, skip=[(5, 0)])  # the best one lacks the block in which all are good
  found = results.read(str(tmp_path))
  assert writing._marked(found, findings.scores_of(found, "valid.loss", "lower"), found.arms) == {f"width={width}" for width in (64, 160, 192, 224)}
  assert writing._marked(found, findings.scores_of(found, "valid.accuracy", "higher"), found.arms[:2]) == {"width=64", "width=96"}


def test_n_of_a_comparison_is_told_where_it_is_another(tmp_path):
  fake.study(tmp_path, GRID[:2], skip=[(0, 2)])
  writing.write(str(tmp_path))
  assert [row[1] for row in rows(tmp_path, "Arms")[1:]] == ["2", "3 (2 paired)"] and "by which it is compared" in chapter(tmp_path, "Arms")


def test_a_difference_that_is_the_same_in_every_block_is_shown_and_doubted(tmp_path):
  fake.study(tmp_path, GRID[:2], blocks=(0, 1), score=lambda arm, block: 0.5 + 0.125 * (arm["model.width"] == 64) + 8 * block)
  writing.write(str(tmp_path))
  answer = re.search(r"\*\*Answer\.\*\* (.*)", text(tmp_path))[1]
  assert "differs by −0.125 (−0.125 … −0.125)" in answer and "the same in each, so that no test can judge it" in answer


def test_a_report_leaves_no_picture_of_a_former_state(tmp_path):
  fake.study(tmp_path, GRID[:2], blocks=[0])
  writing.write(str(tmp_path))
  assert (tmp_path / "figures" / "pareto.png").exists()
  shutil.rmtree(tmp_path / "runs")
  writing.write(str(tmp_path))
  assert list((tmp_path / "figures").iterdir()) == []


# --- the command -------------------------------------------------------------------------------------------------------------


def test_mistakes(fails, run, tmp_path):
  fails(report, [], "name the folder")
  fails(report, [tmp_path / "absent"], "absent", "study.json", "research.sweep")
  fails(report, [tmp_path, "--config.steps=3"], "--config")
  fails(report, [tmp_path, "--tables=all"], "tables")
  (tmp_path / "study.json").write_text('{"name": "x"')
  fails(report, [tmp_path], "study.json", "not readable")
  (tmp_path / "study.json").write_text('{"name": "x"}')
  fails(report, [tmp_path], "lacks 'question'")
  fake.study(tmp_path, GRID[:2], decides={"metric": "valid.loss", "baseline": "other"})
  fails(report, [tmp_path], "'other'", "none of its arms")
  fake.study(tmp_path, GRID[:2], decides={"metric": "valid.los", "baseline": fake.name_of(GRID[0])})
  fails(report, [tmp_path], "'valid.los'", "none of its metrics")
  status, out, _ = run(report, "--help")
  assert status == 0 and "python -m research.report DIR" in out


# --- parts -------------------------------------------------------------------------------------------------------------------


def test_values_are_found_at_dotted_paths():
  tree = {"valid": {"loss": 1.5}, "pairs of a.b": {"scores": {"x": {"value": 2.0, "low": 1.0}}}, "pairs": {"scores": {"y": {"value": 3.0}}}}
  assert results.at(tree, "valid.loss") == 1.5 and results.at(tree, "pairs of a.b.x") == 2.0 and results.at(tree, "pairs of a.b.scores.x.low") == 1.0
  assert results.at(tree, "pairs.y") == 3.0 and results.at(tree, "pairs.x") == 2.0
  assert results.at(tree, "valid.accuracy") is None and results.at(tree, "valid.loss.value") is None and results.at({}, "a") is None


def test_numbers_are_written_as_a_person_reads_them():
  assert [document.fixed(x, 2, True) for x in (0.125, -0.126, -0.001, math.nan)] == ["+0.12", "−0.13", "0.00", "–"]
  assert document.fixed(-1.5, 1) == "−1.5" and document.range_of(-0.5, 2, 1) == "−0.5 … 2.0" and document.range_of(math.nan, math.nan, 1) == "–"
  assert [document.amount(x) for x in (0, 9999, 12345, 999999, 1.5e9, 2e25, math.nan, 0.5)] == ["0", "9,999", "12.35 k", "1 M", "1.5 G", "20 Y", "–", "0.5"]
  assert [document.probability(p) for p in (1e-9, 0.0123, 0.0496, 0.05, 0.0504, 0.04996, 1.0, math.nan)] == ["< 0.0001", "0.012", "0.0496", "0.05", "0.05", "0.04996", "1", "–"]


def test_text_is_shown_as_it_stands_in_every_format():
  table = document.Table(["a|b", "<i>"], [["`x|y & <z>`", "**50 %** of $5_0"]])
  assert document.to_markdown([table]).splitlines()[0] == "| a\\|b | <i> |"
  page = document.to_html([document.Text("**bold `co<de`** & <b>"), table], "<title>", "")
  assert "<p><strong>bold <code>co&lt;de</code></strong> &amp; &lt;b&gt;</p>" in page and "<code>x|y &amp; &lt;z&gt;</code>" in page and "&lt;title&gt;" in page
  assert Page(page).open == []
  assert r"x|y \& $<$z$>$ & 50 \% of \$5\_0 \\" in document.to_latex(table)


def test_labels_are_moved_apart_no_further_than_needed():
  assert figures.spread([0.9, 0.5, 0.1], 0.1) == [0.9, 0.5, 0.1] and figures.spread([], 0.1) == []
  places = figures.spread([0.52, 0.5, 0.5, 0.2, 0.19], 0.1)
  assert np.all(np.diff(places) < -0.1 + 1e-9) and np.mean(places[:3]) == pytest.approx(0.50667, abs=1e-4) and np.mean(places[3:]) == pytest.approx(0.195)


def test_bands_are_without_what_blocks_share():
  x = np.arange(5.0)
  block = [3.0, -1.0, 0.5]
  lines = [{b: (x, level + shift + 0 * x) for b, shift in enumerate(block)} for level in (1.0, 2.0)]
  for level, blocks in zip((1.0, 2.0), figures.without_blocks(lines)):
    _, low, mean, high = figures.band(blocks)
    np.testing.assert_allclose([low, mean, high], np.full((3, 5), level + np.mean(block)))
  lone = figures.without_blocks([lines[0], {7: lines[1][0]}])
  np.testing.assert_allclose(figures.band(lone[0])[3], 4.0)
  grid, low, mean, high = figures.band([(x, x), (np.array([1.0, 3.0]), np.array([0.0, 2.0]))])
  np.testing.assert_allclose([grid, low, mean, high], [[1, 2, 3], [0, 1, 2], [0.5, 1.5, 2.5], [1, 2, 3]])


def test_an_arm_that_diverges_does_not_flatten_the_others():
  x = np.arange(11.0)
  falls, diverges = (x, *[10 - 0.5 * x] * 3), (x, *[np.exp(3 * x)] * 3)
  low, high = figures.view([falls, falls, diverges])
  assert 4 < low < 5 and 9 < high < 10, "the first fifth is cut off, and what diverges"
  assert figures.view([diverges, (x, *[x] * 3), falls])[1] > 1e12, "of rising scores everything is shown"
  assert figures.view([(np.array([2.0]), *[np.array([3.0])] * 3)]) == (2.95, 3.05)
  assert figures.view([(x[:3], *[10 - x[:3]] * 3)])[1] > 10, "three places are no steep start"


def test_names_that_mean_something_to_matplotlib_are_drawn(tmp_path):
  interval = figures.Interval(0.1, math.nan, math.nan)
  figures.differences(str(tmp_path / "a.png"), [("cost=$5 and more_$x^2 " * 5, interval, False)], "loss", "lower")
  figures.pareto(str(tmp_path / "b.png"), [figures.Point("$", 1.0, figures.Interval(1, 1, 1)), figures.Point("b", 50.0, figures.Interval(1, 0, 2))], "FLOPs", "loss", "higher")
  figures.main_effects(str(tmp_path / "c.png"), {"a": [("x", interval), ("y", interval)]}, "loss")
  assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("a.png", "b.png", "c.png"))


def test_a_folder_without_a_study_is_an_error(tmp_path):
  with pytest.raises(UserError, match="holds no study.json"):
    results.read(str(tmp_path))
