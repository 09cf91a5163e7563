"""The pace of training: steps that are through, and no time in which nothing was trained."""

import types

from research.training import throughput


def test_only_steps_that_are_through_count_and_pauses_do_not(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(throughput, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
  pace = throughput.Pace()
  assert pace.take() is None
  pace.start(1)
  pace.hold(1, {"loss": 2.0})
  assert pace.take() == (1, {"loss": 2.0}, None) and pace.take() is None  # nothing was timed yet
  pace.hold(5, {"loss": 1.0})
  now[0] += 10
  pace.pause(8.0)
  assert pace.take() == (5, {"loss": 1.0}, 2.0)
  pace.hold(6, {})
  now[0] += 4
  assert pace.take() == (6, {}, 0.25)
