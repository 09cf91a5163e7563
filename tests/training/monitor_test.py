"""metrics.jsonl: each line once, whatever happened to the run."""

import json
import os

import pytest

from research.training import monitor


def lines(workdir):
  return monitor.read_metrics(str(workdir))


@pytest.fixture
def written(tmp_path):
  board = monitor.Monitor(str(tmp_path), monitor.Config(tensorboard=False), 10, 0, lambda line: None)
  for step in range(1, 7):
    board.write(step, "train", {"loss": 1 / step, "skipped": 0})
    if step % 3 == 0:
      board.write(step, "valid", {"loss": 2 / step, "perplexity": 3.0})
  board.close()
  return tmp_path


def test_lines_are_objects_with_step_and_split(written):
  found = lines(written)
  assert len(found) == 8 and found[0] == {"step": 1, "split": "train", "loss": 1.0, "skipped": 0.0}
  assert [line["step"] for line in found if line["split"] == "valid"] == [3, 6]


@pytest.mark.parametrize("tail", ['{"step": 7, "split": "tr', '{"step": 7', "{", '{"step": 6, "split": "train", "loss": 0.1', "\0\0\0"])
def test_a_line_that_was_cut_off_is_left_out_and_overwritten(written, tail):
  with open(written / monitor.METRICS, "a") as file:
    file.write(tail)
  before = lines(written)
  assert len(before) == 8
  board = monitor.Monitor(str(written), monitor.Config(tensorboard=False), 10, 6, lambda line: None)
  board.write(7, "train", {"loss": 0.5})
  board.close()
  assert lines(written) == [*before, {"step": 7, "split": "train", "loss": 0.5}]
  assert len((written / monitor.METRICS).read_text().splitlines()) == 9


@pytest.mark.parametrize("step, left", [(0, 0), (3, 4), (5, 6), (6, 8), (100, 8)])
def test_lines_after_the_step_are_dropped(written, step, left):
  monitor.truncate_metrics(str(written), step)
  assert len(lines(written)) == left and all(line["step"] <= step for line in lines(written))
  assert os.listdir(written) == [monitor.METRICS]


def test_a_run_that_resumes_writes_no_line_twice(written):
  whole = lines(written)
  board = monitor.Monitor(str(written), monitor.Config(tensorboard=False), 10, 4, lambda line: None)
  for step in (5, 6):
    board.write(step, "train", {"loss": 1 / step, "skipped": 0})
  board.write(6, "valid", {"loss": 2 / 6, "perplexity": 3.0})
  board.close()
  assert lines(written) == whole


def test_numbers_that_are_not_finite_are_read_back(written):
  board = monitor.Monitor(str(written), monitor.Config(tensorboard=False), 10, 6, lambda line: None)
  board.write(7, "train", {"loss": float("nan")})
  board.close()
  assert lines(written)[-1]["loss"] != lines(written)[-1]["loss"]
  monitor.draw(str(written), str(written / "loss.png"), {"unigram": 1.0})
  assert (written / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_said(tmp_path):
  said = []
  board = monitor.Monitor(str(tmp_path), monitor.Config(tensorboard=True), 200, 0, said.append)
  board.write(20, "train", {"loss": 1.23456, "tokens_per_second": 12345.6, "skipped": 0, "gradient_norm/embed": 1})
  board.write(40, "valid", {"loss": 1.0, "skipped": 3})
  board.close()
  assert said[0] == "step  20/200  train  loss 1.2346  12,346 tokens/s"
  assert said[1].endswith("skipped 3")
  assert any("tfevents" in name for name in os.listdir(tmp_path / "tensorboard"))
  assert json.loads((tmp_path / monitor.METRICS).read_text().splitlines()[0])["gradient_norm/embed"] == 1.0
