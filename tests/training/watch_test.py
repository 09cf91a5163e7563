"""Where a run's time goes, hangs, and starting again; nothing here needs JAX."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from research.training import watch

ROOT = pathlib.Path(__file__).parent.parent.parent


def ended(tmp_path, looks, *calls):
  """The statuses with which a watch of three looks' patience ends its process, which does `calls` and then nothing for `looks` looks."""
  found = []
  clock = watch.Watch(str(tmp_path), hang_seconds=3.0, tick=1.0, end=found.append)
  for call in calls:
    call(clock)
    clock.look()
  for _ in range(looks):
    clock.look()
  return found


def test_training_that_stands_still_is_ended_and_nothing_else_is(tmp_path):
  train, beat = lambda clock: clock.enter("train"), lambda clock: clock.beat(7)
  assert ended(tmp_path, 3, train, beat) == [watch.HUNG]
  assert ended(tmp_path, 2, train, beat) == []
  assert ended(tmp_path, 2, train, *[beat] * 20) == []
  for part in ("set_up", "compile", "evaluate", "save"):
    assert ended(tmp_path, 50, train, beat, lambda clock, part=part: clock.enter(part)) == []
  assert ended(tmp_path, 2, train, *[lambda clock: clock.enter("evaluate")] * 9, train) == []
  assert ended(tmp_path, 3, train, *[lambda clock: clock.enter("evaluate")] * 9, train) == [watch.HUNG]


def test_no_patience_is_endless_patience(tmp_path):
  found = []
  clock = watch.Watch(str(tmp_path), hang_seconds=0, end=found.append)
  clock.enter("train")
  for _ in range(10_000 // watch.WRITE):
    clock.look()
  assert found == []


def test_a_process_that_hangs_tells_where_and_ends(tmp_path):
  """A real one: the main thread waits for what never comes, and cannot be interrupted."""
  script = f"""
    import threading
    from research.training.watch import Watch

    def waits_for_ever():
      threading.Event().wait()

    with Watch({str(tmp_path)!r}, 0.05, tick=0.01) as clock:
      clock.enter("train")
      clock.beat(41)
      waits_for_ever()
  """
  run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True)
  assert run.returncode == watch.HUNG
  told = (tmp_path / "hang.txt").read_text()
  for text in (told, run.stderr):
    assert "waits_for_ever" in text and "after step 41" in text and "log.hang_seconds" in text
  assert json.loads((tmp_path / watch.HEARTBEAT).read_text())["step"] == 41


def test_the_thread_looks_and_a_clean_end_leaves_no_heartbeat(tmp_path):
  stuck = threading.Event()
  with watch.Watch(str(tmp_path), 0.02, process=3, tick=0.01, end=lambda status: stuck.set()) as clock:
    clock.enter("train")
    assert stuck.wait(30)
  assert sorted(os.listdir(tmp_path)) == ["hang_3.txt"]
  with watch.Watch(str(tmp_path), 0) as clock:
    clock.look()
    assert watch.HEARTBEAT in os.listdir(tmp_path)
  assert sorted(os.listdir(tmp_path)) == ["hang_3.txt"]


def test_time_is_counted_by_part_and_what_a_kill_undid_is_lost(tmp_path, monkeypatch):
  now = [100.0]
  monkeypatch.setattr(watch.time, "perf_counter", lambda: now[0])

  def spend(clock, **parts):
    for part, seconds in parts.items():
      clock.enter(part)
      now[0] += seconds

  first = watch.Watch(str(tmp_path), 0)
  now[0] += 5
  spend(first, compile=2, train=10, evaluate=3)
  saved = first.seconds()
  assert saved == {"set_up": 5, "compile": 2, "train": 10, "evaluate": 3, "save": 0, "lost": 0}
  assert watch.goodput(saved) == pytest.approx(0.5)
  spend(first, save=1, train=6)
  first.look()  # the heartbeat; then it is killed, and so is the next before it saves
  second = watch.Watch(str(tmp_path), 0, saved)
  assert second.seconds() == {**saved, "lost": 7}
  now[0] += 4
  second.look()
  third = watch.Watch(str(tmp_path), 0, saved)
  assert third.seconds() == {**saved, "lost": 11}
  assert watch.goodput(third.seconds()) == pytest.approx(10 / 31)
  os.truncate(tmp_path / watch.HEARTBEAT, 10)
  assert watch.Watch(str(tmp_path), 0, saved).seconds() == saved


def child(tmp_path, *statuses):
  """A command that ends with one status after the other, and counts how often it was started; a negative one is a signal."""
  count = tmp_path / "starts"
  script = f"""
import os, pathlib, sys
count = pathlib.Path({str(count)!r})
n = int(count.read_text()) if count.exists() else 0
count.write_text(str(n + 1))
status = {statuses}[n]
os.kill(os.getpid(), -status) if status < 0 else sys.exit(status)
"""
  return [sys.executable, "-c", script], lambda: int(count.read_text())


@pytest.mark.parametrize(
    "statuses,restarts,starts,status",
    [
        ((1, watch.HUNG, -signal.SIGKILL, 0), 5, 4, 0),
        ((1, 1, 1), 2, 3, 1),
        ((-signal.SIGSEGV, -signal.SIGSEGV), 1, 2, 128 + signal.SIGSEGV),
        ((2, 0), 5, 1, 2),
        ((143, 0), 5, 1, 143),
        ((-signal.SIGTERM, 0), 5, 1, 143),
        ((0, 1), 5, 1, 0),
    ],
)
def test_what_is_started_again(tmp_path, statuses, restarts, starts, status):
  command, started = child(tmp_path, *statuses)
  said = []
  assert watch.supervise(command, restarts, said.append) == status
  assert started() == starts and len(said) == starts - 1


def test_sigterm_is_passed_on_and_nothing_is_started_again(tmp_path):
  """The supervisor is told to stop while its child works; the child saves and ends, with whatever status."""
  script = f"""
import pathlib, signal, sys
from research.training import watch
work = '''
import pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(tmp_path / "saved")!r}).touch(), sys.exit(1)))
print("working", flush=True)
signal.pause()
'''
sys.exit(watch.supervise([sys.executable, "-c", work], 5))
"""
  with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as supervisor:
    assert supervisor.stdout.readline() == "working\n"
    supervisor.terminate()
    assert supervisor.wait(60) == 1
    assert supervisor.stdout.read() == ""
  assert (tmp_path / "saved").exists()
