"""A study is swept, its runs by stand-ins of research.train that fail, are killed or are told to stop; and once by the real command from outside."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import pathlib
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import types

import pytest

from research import sweep
from research.core import config as configs
from research.core.errors import UserError
from research.studies import address, clusters, launch, stages
from research.studies import board as boards
from research.studies.board import DONE, FAILED, WAITS, Board
from research.studies.runs import Run
from research.training.workdir import claimed
from tests import resume_under_kill as interruptions
from tests.studies.common import leave, write_config

ROOT = pathlib.Path(__file__).parent.parent.parent
PEAK, WIDTH = "optimizer.schedule.peak", "model.width"
CODE = address.code_hash(())

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def study_file(tmp_path_factory):
  folder = tmp_path_factory.mktemp("grid")
  text = f"""
    from research.studies.study import Study

    def get_study(seeds="2"):
      arms = [{{"{PEAK}": peak, "{WIDTH}": width}} for peak in (1e-3, 3e-3) for width in (16, 32)]
      return Study("?", {write_config(folder)!r}, arms, seeds=int(seeds), steps=2, evals=("loss",))
    """
  (folder / "study.py").write_text(textwrap.dedent(text))
  return str(folder / "study.py")


# --- stand-ins ---------------------------------------------------------------------------------------------------------------

STAND_IN = """
  import fcntl, json, os, shlex, signal, subprocess, sys

  if sys.argv[2] == "research.together":
    sys.exit(max(subprocess.call([sys.argv[0], *shlex.split(line)[1:]]) for line in open(sys.argv[3])))
  words = dict(word.lstrip("-").split("=", 1) for word in sys.argv[3:])
  workdir, width = words["workdir"], words.get("config.model.width")
  def note(what):
    with open(os.environ["NOTES"], "a") as file:
      file.write(f"{what} {width}\\n")
  note("start" if sys.argv[2] == "research.train" else "evaluate")
  signal.alarm(60)
  if sys.argv[2] == "research.evaluate":
    settings = {"step": 2, **({"pairs_each": int(words["pairs"])} if "pairs" in words else {})}
    with open(workdir + "/evaluations.json", "w") as file:
      json.dump({words["evals"] + (" of " + words["data"] if "data" in words else ""): {"scores": {}, "settings": settings}}, file)
    sys.exit(0)
  lock = open(workdir + "/.lock", "a+")
  fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  def stopped(*_):
    note("saved")
    sys.exit(143)
  signal.signal(signal.SIGTERM, stopped)
  does = json.loads(os.environ["DOES"]).get(width, "")
  if does == "fail":
    print("\\n".join(f"line {i}" for i in range(30)) + "\\nerror: no luck")
    sys.exit(2)
  if does == "die":
    os.kill(os.getpid(), signal.SIGKILL)
  if does == "nothing":
    sys.exit(0)
  if does in ("r", "w"):  # only two that run at the same time get through
    open(os.environ["FIFO"], does).close()
  if does == "stop":
    os.kill(os.getppid(), int(signal.SIGTERM))
  if does in ("stop", "wait"):
    signal.pause()
  data_hash = "d"
  if os.path.exists(study := os.path.join(workdir, "..", "..", "study.json")):
    data_hash = next(run["data_hash"] for run in json.load(open(study))["runs"] if run["address"] == os.path.basename(workdir))
  with open(workdir + "/summary.json", "w") as file:
    json.dump({"step": int(words["config.steps"]), "data_hash": data_hash, "valid": {"loss": 1.5}}, file)
  note("end")
"""


@pytest.fixture
def stage(tmp_path, monkeypatch):
  """Training by stand-ins: `do({width: what})` sets what each run does, `notes()` tells what has been done since the last call."""
  script = tmp_path / "python"
  script.write_text(f"#!{sys.executable} -SE\n" + textwrap.dedent(STAND_IN))
  script.chmod(script.stat().st_mode | stat.S_IXUSR)
  os.mkfifo(tmp_path / "fifo")
  monkeypatch.setattr(sys, "executable", str(script))
  monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
  monkeypatch.setenv("FIFO", str(tmp_path / "fifo"))

  def notes():
    path = tmp_path / "notes"
    found = path.read_text().splitlines() if path.exists() else []
    path.write_text("")
    return found

  do = lambda what: monkeypatch.setenv("DOES", json.dumps({str(width): does for width, does in what.items()}))
  do({})
  return types.SimpleNamespace(root=str(tmp_path / "study"), do=do, notes=notes)


def some(*widths, after=None, evals=()):
  return [Run(f"width={w}", 0, "x.py", {WIDTH: w, "steps": 2}, 2, f"{w:012x}", "c", "d", CODE, CODE, frozenset(), after and f"{after:012x}", evals) for w in widths]


def local(stage, found, parallel=1, update=None):
  said = []
  board = Board(found, stage.root, "valid.loss", said.append)
  if update:
    board.update = update
  outcome = launch.local(found, stage.root, board, parallel)
  return outcome, "\n".join(said)


def test_so_many_run_at_a_time(stage):
  stage.do({1: "r", 2: "w", 3: "r", 4: "w"})
  outcome, _ = local(stage, some(1, 2, 3, 4), parallel=2)
  assert set(outcome.states.values()) == {DONE}
  running = list(itertools.accumulate(1 if line.startswith("start") else -1 for line in stage.notes()))
  assert max(running) == 2 and running[-1] == 0


def test_what_failed_is_shown_and_stops_nobody_and_is_tried_again(stage):
  stage.do({1: "fail", 2: "die", 3: "nothing"})
  outcome, said = local(stage, some(1, 2, 3, 4))
  assert list(outcome.states.values()) == [FAILED, FAILED, FAILED, DONE]
  assert "width=1 · block 0: training ended with status 2" in said and "  | error: no luck" in said and "  | line 20" in said and "line 18" not in said
  assert "width=2 · block 0: training was ended by SIGKILL" in said and "width=3 · block 0: training ended with status 0" in said
  assert "done   width=4 · block 0 · training · valid.loss 1.5000" in said
  assert stages.closing(outcome, lambda line: said, "runs", True) == 1
  stage.notes()
  stage.do({})
  outcome, _ = local(stage, some(1, 2, 3, 4))
  assert set(outcome.states.values()) == {DONE}
  assert [line for line in stage.notes() if line.startswith("start")] == ["start 1", "start 2", "start 3"]


def test_told_to_stop_it_stops_its_runs_which_save_and_the_same_goes_on(stage):
  stage.do({2: "wait", 3: "stop"})
  outcome, said = local(stage, some(1, 2, 3, 4), parallel=2)
  assert outcome.signal == signal.SIGTERM and outcome.states == {f"{1:012x}": DONE, **{f"{w:012x}": WAITS for w in (2, 3, 4)}}
  notes = stage.notes()
  assert sorted(line for line in notes if line.startswith("saved")) == ["saved 2", "saved 3"] and "start 4" not in notes
  told = []
  assert stages.closing(outcome, told.append, "runs", True) == 143
  assert "stopped by SIGTERM: 1 of 4 runs are done" in told[0] and "the same command goes on" in told[0]
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  stage.do({})
  outcome, _ = local(stage, some(1, 2, 3, 4))
  assert outcome.signal is None and set(outcome.states.values()) == {DONE} and "start 1" not in stage.notes()


def test_a_mistake_in_the_sweep_itself_leaves_no_run_behind(stage):
  stage.do({1: "wait"})
  children, popen = [], subprocess.Popen

  def update(states, last):
    raise RuntimeError("a defect")

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(subprocess, "Popen", lambda *args, **more: children.append(popen(*args, **more)) or children[-1])
    with pytest.raises(RuntimeError, match="a defect"):
      local(stage, some(1), update=update)
  assert children[0].returncode == -signal.SIGKILL


def test_no_run_starts_with_code_that_was_edited_under_the_sweep(stage, monkeypatch):
  found = some(1, 2)
  monkeypatch.setattr(launch, "code_hash", lambda parts: CODE if not os.path.exists(found[0].folder(stage.root)) else "edited")
  outcome, said = local(stage, found)
  assert list(outcome.states.values()) == [DONE, WAITS] and outcome.stopped and "start 2" not in stage.notes()
  assert "the code was edited under the sweep: width=2 · block 0 is not started, nor any other" in said
  told = []
  assert stages.closing(outcome, told.append, "runs", True) == 1 and "1 of 2 runs are done; the code was edited meanwhile: sweep again (with --keep_code" in told[0]


def test_a_run_that_another_process_writes_to_is_waited_for(stage):
  other, mine = *some(1), *some(2)
  launch.make_folder(other, stage.root)
  looks = []
  with contextlib.ExitStack() as lock:
    lock.enter_context(claimed(other.folder(stage.root)))

    def update(states, last):
      looks.append((states[other.address], states[mine.address]))
      if len(looks) == 3:
        leave(other, stage.root)
        lock.close()

    outcome, said = local(stage, [mine, other], update=update)  # one at a time, and that is the other's
  assert "waits  width=1 · block 0: another process is at work on it" in said and "waits  width=2" not in said
  stopped, told = launch.Outcome({"a": boards.ELSEWHERE, "b": DONE}, signal=2), []
  assert stages.closing(stopped, told.append, "runs", True) == 130 and "1 of 2 runs are done" in told[0] and "1 that other processes train go on" in told[0]
  assert set(outcome.states.values()) == {DONE} and looks[:3] == [(boards.ELSEWHERE, WAITS)] * 3 and "start 1" not in stage.notes()


def test_a_run_starts_after_the_one_whose_weights_it_takes(stage):
  found = [*some(1), *some(2, after=1), *some(3)]
  local(stage, found, parallel=3)
  notes = stage.notes()
  assert notes.index("end 1") < notes.index("start 2")
  stage.do({5: "fail"})
  outcome, said = local(stage, [*some(5), *some(6, after=5)], parallel=2)
  assert list(outcome.states.values()) == [FAILED, FAILED] and "width=6 · block 0: the run that it starts from has failed" in said
  assert "start 6" not in stage.notes()
  local(stage, [*some(8, after=7), *some(7, evals=("loss",))])
  assert stage.notes() == ["start 7", "end 7", "start 8", "end 8", "evaluate None"]  # weights are what it takes, not scores


def test_evaluations_follow_the_training_once(stage):
  once = ("minimal_pairs --data='some pairs.jsonl' --pairs=3",)
  outcome, said = local(stage, some(1, evals=once))
  assert outcome.states == {f"{1:012x}": DONE} and stage.notes() == ["start 1", "end 1", "evaluate None"]
  assert "minimal_pairs of some pairs.jsonl" in said
  (words,) = [task.words for task in launch.left(some(1, evals=("minimal_pairs --data='some pairs.jsonl' --pairs=4",))[0], stage.root)]
  assert words[2:] == ["--evals=minimal_pairs", "--data=some pairs.jsonl", "--pairs=4"]  # another question than the one that is answered
  local(stage, some(1, evals=once))
  assert stage.notes() == []


def test_runs_share_the_gpus_of_a_machine_evenly(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "")
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
  assert launch.shares(2) == [launch.Share({"CUDA_VISIBLE_DEVICES": "2,3"}), launch.Share({"CUDA_VISIBLE_DEVICES": "5,7"})] and launch.shares(1) == [launch.Share({})]
  with pytest.raises(UserError, match="--parallel=3: 4 GPUs"):
    launch.shares(3)
  assert launch.shares(4)[3] == launch.Share({"CUDA_VISIBLE_DEVICES": "7"})
  several = [share.environment for share in launch.shares(12)]  # three on each: none may take the memory of the others
  assert [each["CUDA_VISIBLE_DEVICES"] for each in several] == ["2", "3", "5", "7"] * 3 and {each["XLA_PYTHON_CLIENT_MEM_FRACTION"] for each in several} == {"0.300"}
  monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  assert launch.shares(8)[4] == launch.Share({"CUDA_VISIBLE_DEVICES": "2"})
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
  monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 2, 3, 5, 8})
  assert [share.cores for share in launch.shares(2)] == [{1, 3, 8}, {2, 5}] and [share.cores for share in launch.shares(6)] == [set()] * 6


def test_each_of_the_runs_at_a_time_stays_on_its_cores(stage, monkeypatch):
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < 2:
    pytest.skip("the machine has one core")
  stage.do({1: "r", 2: "w"})
  seen, setting = [], os.sched_setaffinity

  def watched(process, share):
    setting(process, share)
    seen.append(os.sched_getaffinity(process))

  monkeypatch.setattr(os, "sched_setaffinity", watched)
  outcome, _ = local(stage, some(1, 2), parallel=2)
  assert set(outcome.states.values()) == {DONE} and sorted(map(min, seen)) == cores[:2] and seen[0].isdisjoint(seen[1])


def test_the_table_has_a_row_for_each_arm_and_a_column_for_each_block(stage):
  from rich.console import Console

  found = some(1, 2, 3)
  leave(found[0], stage.root, valid={"loss": 1.25})
  launch.make_folder(found[1], stage.root)
  pathlib.Path(found[1].folder(stage.root), "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 3.5}\n{"step": 2, "sp')
  console = Console(file=io.StringIO(), width=100)
  table = Board(found, stage.root, "valid.loss")._table({found[0].address: DONE, found[1].address: boards.RUNS, found[2].address: FAILED})
  console.print(table)
  text = console.file.getvalue()
  assert all(part in text for part in ("block 0", "width=1", "1.2500", "1/2 3.500", "failed", "1 done")), text


# --- the command -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(study_file, one_device, tmp_path_factory):
  """A folder in which a dry run of the study has prepared the data, and what it printed."""
  root, out, err = str(tmp_path_factory.mktemp("prepared")), io.StringIO(), io.StringIO()
  for name in sweep.FLAGS:
    sweep.FLAGS[name].unparse()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    assert sweep.main([study_file, f"--workdir={root}", "--dry_run"]) == 0
  return root, out.getvalue(), err.getvalue()


def test_a_dry_run_prints_costs_and_commands_and_runs_nothing(prepared):
  root, out, err = prepared
  assert os.listdir(root) == ["data"] and len(out.splitlines()) == 8 and "0 of 8 runs are done" in err and "equal steps (2 each)" in err
  for line in out.splitlines():
    training, _, evaluating = line.partition(" && ")
    assert shlex.split(training)[:3] == ["python", "-m", "research.train"]
    assert shlex.split(evaluating)[2:] == ["research.evaluate", shlex.split(training)[4], "--evals=loss"]


def test_a_study_is_swept_once_and_what_is_done_is_not_run_again(stage, prepared, study_file, run, tmp_path):
  """The real command with the real study; what it starts are stand-ins."""
  shutil.copytree(prepared[0], tmp_path / "out")
  command = [study_file, f"--workdir={tmp_path / 'out'}", "--parallel=2"]
  status, out, _ = run(sweep, *command)
  text = (tmp_path / "out" / "study.json").read_text()
  record, notes = json.loads(text), stage.notes()
  assert status == 0 and "8 of 8 runs are done" in out and out.count("\ndone") == 16  # each training and each evaluation
  assert sorted(os.listdir(tmp_path / "out" / "runs")) == sorted({run["address"] for run in record["runs"]}) and len(record["runs"]) == 8
  assert [sum(line.startswith(what) for line in notes) for what in ("start", "end", "evaluate")] == [8, 8, 8]
  assert all(os.path.samefile(tmp_path / "out" / "runs" / run["address"] / "data", tmp_path / "out" / "data") for run in record["runs"])
  dry = [line.partition(" && ")[0].replace(prepared[0], str(tmp_path / "out")) for line in prepared[1].splitlines()]
  assert dry == [run["command"] for run in record["runs"]]
  status, out, _ = run(sweep, *command)
  assert status == 0 and "8 of 8 runs are done" in out and "start" not in out and stage.notes() == [] and (tmp_path / "out" / "study.json").read_text() == text
  status, out, err = run(sweep, study_file + ":3", *command[1:], "--launcher=commands")  # a third block: the others keep their addresses
  assert status == 0 and len(out.splitlines()) == 4 and "8 of 12 runs are done" in err and all("--config.seed=2 " in line for line in out.splitlines())


def test_runs_of_one_program_are_trained_by_one_process(stage, prepared, study_file, run, tmp_path):
  """Of each width there are 2 learning rates × 2 seeds; another width is another program."""
  root = tmp_path / "out"
  shutil.copytree(prepared[0], root)
  stage.do({16: "fail"})
  status, out, _ = run(sweep, study_file, f"--workdir={root}", "--together=3")
  assert status == 1 and out.count("start  3 runs in one program") == 2 and "4 of 8 runs are done, 4 have failed" in out and out.count("  | error: no luck") == 4
  lists = [[shlex.split(line) for line in path.read_text().splitlines()] for path in sorted((root / "together").glob("*.txt"))]
  record = json.loads((root / "study.json").read_text())
  assert all(shlex.join(line) in {run["command"] for run in record["runs"]} for lines in lists for line in lines)
  assert [len(lines) for lines in lists] == [3, 3] and all(len({word for line in lines for word in line if "model.width" in word}) == 1 for lines in lists)
  assert sum(line.startswith("end") for line in stage.notes()) == 4
  stage.do({})
  status, out, _ = run(sweep, study_file, f"--workdir={root}", "--together=9")
  assert status == 0 and out.count("start  4 runs in one program") == 1 and "8 of 8 runs are done" in out
  status, _, err = run(sweep, study_file, f"--workdir={root}", "--together=2", "--launcher=slurm")
  assert status == 2 and "--together is for the local launcher" in err


def test_a_failed_run_makes_a_failed_sweep_and_the_others_are_done(stage, prepared, study_file, run, tmp_path):
  shutil.copytree(prepared[0], tmp_path / "out")
  stage.do({16: "fail"})
  status, out, _ = run(sweep, study_file + ":1", f"--workdir={tmp_path / 'out'}")
  assert status == 1 and "2 of 4 runs are done, 2 have failed; the same command tries these again" in out and "  | error: no luck" in out
  stage.do({16: "stop"})
  status, out, _ = run(sweep, study_file + ":1", f"--workdir={tmp_path / 'out'}")
  assert status == 143 and "stopped by SIGTERM: 2 of 4 runs are done" in out and "the same command goes on" in out


@pytest.mark.long
def test_the_real_command_is_killed_and_goes_on(study_file, prepared, run, tmp_path):
  """One run, really trained. The sweep dies by SIGKILL when its run has just begun; the run lives on, and the same command waits for it and tells of it."""
  folder, path = tmp_path / "out", tmp_path / "one.py"
  shutil.copytree(prepared[0], folder)
  path.write_text(f"import dataclasses\nfrom research.core.overrides import called\n\ndef get_study():\n  study = called({study_file!r}, 'study')\n"
                  "  return dataclasses.replace(study, arms=study.arms[:1], seeds=1, evals=())\n")  # fmt: skip
  environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
  environment.pop("JAX_COMPILATION_CACHE_DIR", None)
  first = subprocess.Popen([sys.executable, "-m", "research.sweep", str(path), f"--workdir={folder}"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
  for line in first.stdout:
    if line.startswith("start"):
      first.send_signal(signal.SIGKILL)
      break
  first.wait()
  text = (folder / "study.json").read_text()
  record, found = json.loads(text), folder / "runs"
  (workdir,) = found.iterdir()
  with subprocess.Popen(["tail", "--follow", "--lines=+1", workdir / "log.txt"], stdout=subprocess.PIPE, text=True) as log:
    assert "parameters" in log.stdout.readline()  # by now it has claimed its folder
    log.terminate()
  status, out, _ = run(sweep, path, f"--workdir={folder}")
  assert status == 0 and "1 of 1 runs are done" in out and "start" not in out, out
  assert [path.name for path in found.iterdir()] == [record["runs"][0]["address"]] and (folder / "study.json").read_text() == text
  assert (workdir / "log.txt").read_text().count("first step after") == 1 and (folder / "compilation_cache").is_dir()
  assert [line["step"] for line in interruptions.lines(str(workdir)) if line["split"] == "train"] == [1, 2]
  summary = json.loads((workdir / "summary.json").read_text())
  assert (summary["config_hash"], summary["data_hash"], summary["step"]) == (record["runs"][0]["config_hash"], record["runs"][0]["data_hash"], 2)
  assert all(summary[key] == record["arms"][0][key] for key in ("flops", "tokens", "parameters"))
  assert configs.digest(configs.read(str(workdir / "config.json"))) == summary["config_hash"]


# --- what is handed on -------------------------------------------------------------------------------------------------------


def test_a_second_sweep_of_a_folder_is_refused(fails, study_file, tmp_path):
  with claimed(str(tmp_path)):
    fails(sweep, [study_file, f"--workdir={tmp_path}"], "is writing to", f"process {os.getpid()}", "another workdir")
  assert os.listdir(tmp_path) == [".lock"]


def test_sweep_mistakes(fails, study_file, tmp_path):
  fails(sweep, [], "name the study")
  fails(sweep, [study_file], "--workdir is missing")
  fails(sweep, ["absent.py", f"--workdir={tmp_path}/out"], "no study file 'absent.py'")
  fails(sweep, [study_file, f"--workdir={tmp_path}/out", "--config.modle.layers=2"], "'modle.layers'", "Did you mean 'model'?")
  fails(sweep, [study_file, f"--workdir={tmp_path}/out", "--paralel=2"], "'--paralel'", "Did you mean 'parallel'?")
  fails(sweep, [study_file, f"--workdir={tmp_path}/out", "--launcher_flags=--time=1"], "--launcher_flags are for slurm and gke")
  fails(sweep, [study_file, f"--workdir={tmp_path}/out", "--launcher=gke", "--launcher_flags=--image='x"], "--launcher_flags", "close its quotes")
  assert not (tmp_path / "out").exists()


NASTY = {"model.norm": "$(touch pwned)", "a.b": "`touch pwned`;touch pwned&", "c": "'\"\\ * ? ~ $HOME ${x} {a,b}", "d": "one\ntouch pwned\n", "e": "", "f": "é — '"}


@pytest.fixture
def nasty(tmp_path, monkeypatch):
  """Runs whose values would do harm to a shell that read them, in a folder of their own."""
  monkeypatch.chdir(tmp_path)
  yield [Run(f"arm {i}", 0, "configs/x.py", {**NASTY, "seed": i}, 2, f"{i:012x}", "c", "d", CODE, CODE, frozenset(), None, ()) for i in range(2)]
  assert not list(tmp_path.rglob("pwned*")) and not list(ROOT.glob("pwned*"))


def test_commands_are_words_that_no_shell_reads_otherwise(nasty, capsys):
  outcome = clusters.commands(nasty, "out", print, dry_run=True)
  lines = capsys.readouterr().out.splitlines()
  assert outcome.pending and len(lines) == 2 and not os.path.exists("out")
  for run, line in zip(nasty, lines):
    shown = subprocess.run(["bash", "-c", f"python() {{ printf '%s\\0' \"$@\"; }}; {line}"], capture_output=True, text=True, check=True).stdout
    assert shown.split("\0")[:-1] == ["-m", "research.train", *run.arguments("out")]


def test_commands_tell_where_to_wait(capsys, tmp_path):
  clusters.commands([*some(1), *some(2, after=1), *some(3)], str(tmp_path), print, dry_run=True)
  lines = capsys.readouterr().out.splitlines()
  assert [line[:1] for line in lines] == ["p", "#", "p", "p"] and "have ended" in lines[1]


def test_slurm_gets_one_array_and_a_job_that_waits_is_not_submitted_again(nasty, tmp_path, monkeypatch, capsys):
  outcome = clusters.slurm(nasty, "out", print, "my study", ["--gpus-per-node=2", "--time=1-0"], 1, dry_run=True)
  script = capsys.readouterr().out
  assert outcome.pending and all(part in script for part in ("#SBATCH --job-name=my-study", "--gpus-per-node=2", "--time=1-0", "#SBATCH --array=0-1%1"))
  body = script.partition("source ")[0]  # what sets the arguments; run it as a job's shell would
  for task, run in enumerate(nasty):
    shown = subprocess.run(["bash", "-c", body + "\nprintf '%s\\0' \"${arguments[@]}\""], capture_output=True, text=True, check=True,
                           env={**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}).stdout  # fmt: skip
    config, *rest = run.arguments(str(tmp_path / "out"))
    assert shown.split("\0")[:-1] == [f"--config={tmp_path / 'configs' / 'x.py'}", *rest]
  tuned = dataclasses.replace(nasty[0], overrides={"init_from": "out/runs/a"})
  assert f"--config.init_from={tmp_path / 'out/runs/a'}" in clusters._absolute(tuned, "out")  # a job starts in the checkout
  with pytest.raises(UserError, match="slurm.sh: no flag --tiem"):
    clusters.slurm(nasty, "out", print, "x", ["--tiem=1"], 0, dry_run=True)
  assert not os.path.exists("out")
  monkeypatch.setattr(clusters, "_output", lambda words: "17_1\n" if words[0] == "squeue" else "…\nSubmitted batch job 17")
  said = []
  clusters.slurm(nasty, "out", said.append, "x", [], 0, dry_run=False)
  assert json.loads(pathlib.Path("out/slurm.json").read_text()) == {f"{0:012x}": "17_0", f"{1:012x}": "17_1"} and not said
  monkeypatch.setattr(clusters, "_output", lambda words: "17_1\n" if words[0] == "squeue" else "…\nSubmitted batch job 18")
  clusters.slurm(nasty, "out", said.append, "x", [], 0, dry_run=False)
  assert said == ["queued  arm 1 · block 0: job 17_1"]
  assert json.loads(pathlib.Path("out/slurm.json").read_text()) == {f"{0:012x}": "18_0", f"{1:012x}": "17_1"}


def test_kubernetes_gets_a_job_set_for_each_run(nasty, capsys):
  flags = ["--image=i", "--tpu=v5e:2x2", "--volume=claim:/runs"]
  clusters.gke(nasty, "/runs/out", print, "My study", flags, dry_run=True)
  decoder, text, found = json.JSONDecoder(), capsys.readouterr().out.strip(), []
  while text:
    manifest, end = decoder.raw_decode(text)
    found.append(manifest)
    text = text[end:].lstrip()
  assert [manifest["metadata"]["name"] for manifest in found] == [f"my-study-{i:012x}" for i in range(2)]
  for run, manifest in zip(nasty, found):
    words = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert [word.replace("$$", "$") for word in words[-len(run.arguments("/runs/out")) :]] == run.arguments("/runs/out")
  with pytest.raises(UserError, match="gke.sh: --image is missing"):
    clusters.gke(nasty, "/runs/out", print, "x", ["--tpu=v5e:2x2"], dry_run=True)


def test_only_what_can_start_is_handed_on(tmp_path):
  first, second = some(1)[0], some(2, after=1)[0]
  said = []
  now, states = clusters._ready([first, second], str(tmp_path), said.append)
  assert now == [first] and "later  width=2" in said[0] and set(states.values()) == {WAITS}
  leave(first, str(tmp_path))
  (evaluated,) = some(3, evals=("loss",))
  leave(evaluated, str(tmp_path))
  third = some(4, after=3)[0]
  now, states = clusters._ready([first, second, evaluated, third], str(tmp_path), said.append)
  assert now == [second, third] and states[first.address] == DONE and "trained width=3" in said[-1]
