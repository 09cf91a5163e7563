"""Several processes: where each stands, and one run in two of them that goes on in one."""

import signal

import jax
import numpy as np
import pytest

from research.core.errors import UserError
from research.core.overrides import load
from research.parallel import distributed
from research.parallel import mesh as meshes
from research.training import loop
from research.training.workdir import claimed
from tests import resume_under_kill as runs
from tests import several_processes as several

STEP = {"SLURM_JOB_ID": "71", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "n[07-09]", "SLURM_NTASKS": "6", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
        "SLURM_STEP_NUM_NODES": "3"}  # fmt: skip


def test_alone():
  assert distributed.find(None, None, None, {}) is None
  assert distributed.find("h:1", 1, 0, {}) is None
  assert distributed.find(None, None, None, {**STEP, "SLURM_NTASKS": "1"}) is None
  assert distributed.find(None, None, None, {"SLURM_JOB_ID": "71"}) is None  # in a job, outside a step


def test_flags_come_before_the_environment_and_that_before_slurm():
  environment = {**STEP, "RESEARCH_COORDINATOR": "e:2", "RESEARCH_PROCESSES": "4", "RESEARCH_PROCESS": "0"}
  assert distributed.find("f:1", 3, 2, environment)[:3] == ("f:1", 3, 2)
  assert distributed.find(None, None, None, environment)[:3] == ("e:2", 4, 0)
  place = distributed.find(None, None, None, STEP)
  assert place[1:4] == (6, 3, None) and place.coordinator.startswith("n07:")
  assert place.coordinator != distributed.find(None, None, None, {**STEP, "SLURM_STEP_ID": "1"}).coordinator


@pytest.mark.parametrize("seen, devices", [("0,1", (1,)), ("0,1,2,3", (2, 3)), ("5", None), ("", None)])
def test_tasks_of_a_host_share_the_gpus_that_all_of_them_see(seen, devices):
  assert distributed.find(None, None, None, {**STEP, "CUDA_VISIBLE_DEVICES": seen}).local_devices == devices


@pytest.mark.parametrize("nodes, first", [
    ("node001", "node001"), ("node001,host2", "node001"), ("node[001-015],host2", "node001"), ("node[007,009-015]", "node007"), ("a[3-4]-x,b", "a3-x"), ("127.0.0.1", "127.0.0.1"),
])  # fmt: skip
def test_the_first_host_of_a_list(nodes, first):
  assert distributed.first_host(nodes) == first


@pytest.mark.parametrize("flags, environment, words", [
    (("h:1", None, 0), {}, "--processes missing"),
    ((None, None, None), {"RESEARCH_PROCESS": "0"}, "RESEARCH_COORDINATOR, RESEARCH_PROCESSES missing"),
    (("h:1", 2, 2), {}, "--process=2 is not one of 0 … 1"),
    (("h", 2, 1), {}, "--coordinator=h: write host:port"),
    ((None, None, None), {"RESEARCH_COORDINATOR": "h:1", "RESEARCH_PROCESSES": "two", "RESEARCH_PROCESS": "0"}, "must be whole numbers"),
])  # fmt: skip
def test_mistakes(flags, environment, words):
  with pytest.raises(UserError, match=words):
    distributed.find(*flags, environment)


def test_a_workdir_belongs_to_one_run(tmp_path):
  refused = pytest.raises(UserError, match=r"another run is writing to .* \(process [0-9]+ on ")
  with claimed(str(tmp_path)), refused, claimed(str(tmp_path)):
    pass
  with claimed(str(tmp_path)):
    pass


def test_rows_of_a_process():
  mesh = meshes.make(meshes.Config(data=2, fsdp=2, tensor=2))
  assert meshes.own_rows(mesh, 8).tolist() == list(range(8))


@pytest.mark.long
def test_a_run_in_two_processes_is_stopped_and_goes_on_in_one(tmp_path, monkeypatch):
  """SIGTERM to one of two (fsdp 4) makes both save at the same step; one process (data 2 × tensor 2) ends the run, as one device does alone."""
  config, workdir, short = runs.write_config(str(tmp_path)), str(tmp_path / "run"), ["--config.steps=40", "--config.model.layers=1"]
  processes = several.start(2, 2, config, workdir, *short, "--config.mesh.data=1", "--config.mesh.fsdp=4")
  several.until(workdir, 3, processes)
  processes[1].send_signal(signal.SIGTERM)
  assert several.wait(processes) == [143, 143], several.output(workdir)[-3000:]
  assert "stopped by SIGTERM at step" in several.output(workdir) and "step" not in several.output(workdir, 1)
  made = meshes.make

  def train(workdir, count, *mesh):
    monkeypatch.setattr(meshes, "make", lambda cfg, devices=None: made(cfg, devices or jax.devices()[:count]))
    loop.train(load(config, [*several.COMMON, *short, *mesh]), workdir, say=lambda line: None)
    return [(line["step"], line["loss"]) for line in runs.read_metrics(workdir)]

  moved = train(workdir, 4, "--config.mesh.data=2", "--config.mesh.tensor=2")
  alone = train(str(tmp_path / "alone"), 1)
  assert [step for step, _ in moved] == [step for step, _ in alone]
  assert np.abs(np.array(moved) - np.array(alone)).max() <= 1e-5


@pytest.mark.long
def test_processes_of_unlike_configs_are_told(tmp_path):
  config, workdir = runs.write_config(str(tmp_path)), str(tmp_path / "run")
  processes = several.start(2, 1, config, workdir, each={1: ("--config.seed=7",)})
  assert several.wait(processes) == [distributed.STATUS_LOST, 2]
  assert "error: the processes of this run differ in --config.seed: 7 on process 1, 0 on process 0." in several.output(workdir, 1)
  assert "error: process 1: the processes of this run differ in --config.seed" in several.output(workdir, 0)
