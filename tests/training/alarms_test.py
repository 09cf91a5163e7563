"""What a run says of its own numbers."""

import json
import math

from research.core.overrides import load
from research.training import loop
from research.training.alarms import NEAR, PATIENCE, Alarms
from tests import resume_under_kill as tiny


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
