"""What a run says of its own numbers."""

import json
import math

from research.core.overrides import load
from research.training import loop
from research.training.alarms import NEAR, PATIENCE, STREAK, Alarms, diverged
from tests import resume_under_kill as tiny


def lines(losses, skipped):
  return [{"step": 10 * i, "split": "train", "loss": loss, "skipped": count} for i, (loss, count) in enumerate(zip(losses, skipped), 1)]


def test_a_run_is_beyond_hope_by_its_last_loss_or_where_it_only_skips_updates():
  fine = [1.0] * (STREAK + 1)
  assert diverged([]) == "" and diverged(lines([math.nan, 1.0], [10, 10])) == "" and diverged(lines([1.0, math.nan], [0, 0])) == "loss not finite"
  every = [10 * i for i in range(STREAK + 1)]
  assert diverged(lines(fine, every)) == f"the last {10 * STREAK} updates all skipped"
  assert diverged(lines(fine, [*every[:-1], every[-1] - 1])) == "" and diverged(lines(fine[1:], every[1:])) == ""
  assert diverged([*lines(fine, every), {"step": 10 * STREAK + 10, "split": "valid", "loss": 2.0}]), "lines of validation do not count"


def test_each_alarm_once():
  alarms = Alarms("unigram", 5.0)
  assert alarms.train({"padding": 0.2, "targets": 100.0, "loss": 1.0}) == []
  (padding,) = alarms.train({"padding": 0.75, "targets": 100.0})
  assert padding.startswith("alarm: 75% of a batch's places are padding") and "data.layout=pack" in padding
  assert alarms.train({"padding": 0.8, "targets": 100.0}) == []
  (targets,) = alarms.train({"padding": 0.8, "targets": 3.0})
  assert "3 targets" in targets and set(alarms.said) == {"padding", "targets"}


def test_a_loss_that_stays_where_token_frequencies_are():
  alarms = Alarms("unigram", 5.0)
  assert alarms.valid(PATIENCE - 1, 5.0) == [] and alarms.valid(PATIENCE, 5.0 - NEAR - 0.01) == []
  (stuck,) = alarms.valid(PATIENCE, 4.99)
  assert "validation loss, 4.990" in stuck and "unigram, 5.000" in stuck
  assert alarms.valid(2 * PATIENCE, 5.1) == [] and Alarms(None, None).valid(PATIENCE, 9.0) == []


def test_a_run_says_and_records_them(tmp_path, one_device):
  lines = []
  config = load(tiny.write_config(str(tmp_path)), ["steps=2", "batch_size=1", "optimizer.schedule.warmup=1", "checkpoint.every=2", "evaluate.every=2"])
  summary = loop.train(config, str(tmp_path / "run"), lines.append)
  assert math.isfinite(summary["valid"]["loss"]) and "targets" in summary["alarms"]
  assert sum(line.startswith("alarm: a batch has") for line in lines) == 1
  assert json.loads((tmp_path / "run" / "summary.json").read_text())["alarms"] == summary["alarms"]
