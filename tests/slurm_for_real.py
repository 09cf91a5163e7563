"""launch/slurm.sh on a real SLURM: a run that is told to stop is requeued, resumes, and ends bit-equal to one left alone.

  python -m tests.slurm_for_real [--only=stop|array|study]     prints the comparisons

Starts munged, slurmctld and slurmd on this machine, as its only node, with everything below a temporary folder, and ends them afterwards. Needs
root and Debian's slurm-wlm and munge (`apt-get install slurm-wlm munge`); says so and does nothing without. Runs are made by the Python of
launch/setup.sh. In `stop`, two tasks with two simulated devices each form one mesh. In `array`, of two runs of an array one is
requeued by scontrol and one cancelled; the same command, submitted again, ends both. In `study`, research.sweep hands on six runs, of which one is requeued and one cancelled.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator

from tests import resume_under_kill as tiny
from tests.several_processes import free_port

ROOT = pathlib.Path(__file__).parent.parent
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
STEPS = 1500  # of a run of the array
CONF = """
  ClusterName=here
  SlurmctldHost={host}(127.0.0.1)
  SlurmctldPort={controller}
  SlurmdPort={daemon}
  SlurmUser=root
  AuthType=auth/munge
  CryptoType=crypto/munge
  # A requeued job waits until the credentials of its last start have expired.
  AuthInfo=socket={folder}/munge.socket,cred_expire=10
  ProctrackType=proctrack/linuxproc
  TaskPlugin=task/none
  SelectType=select/cons_tres
  SelectTypeParameters=CR_Core
  ReturnToService=2
  MpiDefault=none
  StateSaveLocation={folder}/state
  SlurmdSpoolDir={folder}/spool
  SlurmctldPidFile={folder}/slurmctld.pid
  SlurmdPidFile={folder}/slurmd.pid
  NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
  PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def slurm(folder: str) -> Iterator[None]:
  """A SLURM of one node, this machine; SLURM_CONF names it."""
  host = socket.gethostname().partition(".")[0]
  conf = os.path.join(folder, "slurm.conf")
  for name in ("state", "spool"):
    os.mkdir(os.path.join(folder, name))
  pathlib.Path(conf).write_text(textwrap.dedent(CONF).format(host=host, folder=folder, controller=free_port(), daemon=free_port()))
  key = pathlib.Path(folder, "munge.key")
  key.write_bytes(os.urandom(128))
  key.chmod(0o400)
  os.environ["SLURM_CONF"] = conf
  of = lambda *names: [f"--{name}-file={folder}/munge.{name}" for name in names]
  daemons = [
    ["munged", "--force", "--foreground", f"--socket={folder}/munge.socket", *of("key", "pid", "log", "seed")],
    ["slurmctld", "-D", "-f", conf],
    ["slurmd", "-D", "-f", conf],
  ]
  running = []
  try:
    for command in daemons:
      with open(os.path.join(folder, f"{command[0]}.log"), "w") as log:
        running.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True))
      if command[0] == "munged":
        until(lambda: os.path.exists(os.path.join(folder, "munge.socket")), 10, "munged has not started")
    until(lambda: "idle" in output("sinfo", "-h", "-o", "%T"), 60, "the node did not become idle")
    yield
  finally:
    subprocess.run(["scancel", "--user=root", "--signal=KILL", "--full"], check=False)
    for process in reversed(running):
      process.send_signal(signal.SIGTERM)
      process.wait()


def output(*command: str) -> str:
  return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def until(true: Callable[[], bool], seconds: float, otherwise: str) -> None:
  end = time.monotonic() + seconds
  while not true():
    if time.monotonic() > end:
      raise TimeoutError(otherwise)
    time.sleep(0.2)


def submit(*arguments: str, devices: int) -> str:
  """Submits by launch/slurm.sh; the job's number."""
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
  }
  command = ["bash", str(ROOT / "launch" / "slurm.sh"), *arguments]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
  return done.stdout.split()[-1]


def ended(job: str) -> bool:
  return not output("squeue", "-h", "-j", job, "-o", "%T")


def wait(job: str) -> None:
  until(lambda: ended(job), 240, f"job {job} does not end: {output('squeue', '-j', job)}")


def under_way(workdir: str, job: str) -> None:
  """Waits for the first checkpoint of a run."""
  until(lambda: bool(tiny.checkpoints(workdir)[0]) or ended(job), 240, f"{workdir}: no checkpoint")
  assert not ended(job), f"job {job} ended before it could be disturbed"


def shown(text: str) -> None:
  """The lines of a job's log that tell its story."""
  words = ("stopped by", "CANCELLED", "requeueing", "Exited", "error:", "resumed", "resuming", "goes on", "whole validation")
  for line in text.splitlines():
    if any(word in line for word in words):
      print("  |", line)


def stopped(folder: str, config: str) -> int:
  """Two tasks, one mesh; SIGTERM to the tasks is what SLURM sends before the end of a job's time and before it preempts."""
  run = lambda name: ("--tasks-per-node=2", "--", f"--config={config}", f"--workdir={folder}/{name}", "--config.steps=150", "--config.mesh.data=4")
  wait(submit(*run("whole"), devices=2))
  job = submit(*run("stopped"), devices=2)
  under_way(f"{folder}/stopped", job)
  output("scancel", "--signal=TERM", job)
  until(lambda: "Restarts=1" in output("scontrol", "show", "job", job), 60, f"job {job} was not requeued")
  at = tiny.checkpoints(f"{folder}/stopped")[0][-1]
  wait(job)
  print(f"two tasks, stopped by SIGTERM at step {at}, requeued by the job itself, resumed:")
  for log in pathlib.Path(folder, "stopped", "logs").iterdir():
    shown(log.read_text())
  return tiny.report(f"{folder}/whole", f"{folder}/stopped")


def array(folder: str, config: str) -> int:
  """Runs 0 and 1 of an array are requeued and cancelled while they train; 2 is left alone, with the seed of 0 and the data of all."""
  runs = pathlib.Path(folder, "runs.txt")
  runs.write_text("".join(f"--workdir='{folder}/run {i}' --config.seed={i % 2}\n" for i in range(3)))
  common = (f"--array-file={runs}", f"--logs={folder}/array_logs", "--", f"--config={config}", f"--config.steps={STEPS}")
  job = submit("--array=0-1", *common, devices=1)
  for task, command in ((0, ("scontrol", "requeue")), (1, ("scancel",))):
    under_way(f"{folder}/run {task}", f"{job}_{task}")
    output(*command, f"{job}_{task}")
  wait(job)
  reached = [tiny.checkpoints(f"{folder}/run {task}")[0][-1] for task in (0, 1)]
  print(f"an array: run 0 requeued by scontrol, now at step {reached[0]}; run 1 cancelled, at step {reached[1]}:")
  for log in sorted(pathlib.Path(folder, "array_logs").iterdir()):
    shown(log.read_text())
  wait(submit("--array=1,2", *common, devices=1))
  print("the same array submitted again, runs 1 and 2:", [tiny.checkpoints(f"{folder}/run {task}")[0][-1] for task in (1, 2)])
  return int(reached[0] != STEPS or reached[1] >= STEPS or tiny.checkpoints(f"{folder}/run 1")[0][-1] != STEPS) + tiny.report(f"{folder}/run 2", f"{folder}/run 0")


def study(folder: str, config: str) -> int:
  """Six runs: the first is requeued and the second cancelled while they train. The same sweep submits the second again and nothing else."""
  path, root = pathlib.Path(folder, "study.py"), os.path.join(folder, "study")
  path.write_text(f"from research.studies.study import Study\n\ndef get_study():\n"
                  f"  return Study('?', {config!r}, [{{'model.width': width}} for width in (8, 16, 24)], seeds=2, steps=600)\n")  # fmt: skip
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}

  def sweep() -> tuple[str, dict[str, str]]:
    command = [sys.executable, "-m", "research.sweep", str(path), f"--workdir={root}", "--launcher=slurm"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = json.loads(pathlib.Path(root, "slurm.json").read_text())
    return done.stdout.strip().splitlines()[-1], {job: os.path.join(root, "runs", address) for address, job in jobs.items()}

  steps = lambda workdir: max(tiny.checkpoints(workdir)[0], default=0)
  print("a study:", (found := sweep())[0])
  job = next(iter(found[1])).partition("_")[0]
  for task, command in ((0, ("scontrol", "requeue")), (1, ("scancel",))):
    under_way(found[1][f"{job}_{task}"], f"{job}_{task}")
    output(*command, f"{job}_{task}")
  wait(job)
  cancelled = found[1][f"{job}_1"]
  print(f"run 0 requeued, run 1 cancelled at step {steps(cancelled)}; the same command:", (again := sweep())[0])
  anew = {job: workdir for job, workdir in again[1].items() if job not in found[1]}
  wait(next(iter(anew)).partition("_")[0])
  last, _ = sweep()
  print(f"submitted again: {len(anew)}, which was {'' if list(anew.values()) == [cancelled] else 'NOT '}the cancelled one; the same command:", last)
  twice = [workdir for workdir in found[1].values() if len(set(at := [(line["step"], line["split"]) for line in tiny.lines(workdir)])) < len(at)]
  print(f"runs: {len(os.listdir(os.path.join(root, 'runs')))}, with a line of metrics twice: {len(twice)}", flush=True)
  return int(list(anew.values()) != [cancelled] or "6 of 6 runs are done" not in last or bool(twice) or len(os.listdir(os.path.join(root, "runs"))) != 6)


def main(parts: list[str]) -> int:
  if missing := [name for name in PROGRAMS if not shutil.which(name)]:
    print(f"skipped: {', '.join(missing)} not found; install Debian's slurm-wlm and munge.")
    return 0
  if os.getuid():
    print("skipped: SLURM's daemons are started as root.")
    return 0
  with tempfile.TemporaryDirectory() as folder, slurm(folder):
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(folder, "cache")
    config = tiny.write_config(folder)
    wrong = {"stop": stopped, "array": array, "study": study}
    return int(sum(wrong[part](folder, config) for part in parts) > 0)


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", choices=["stop", "array", "study"])
  only = parser.parse_args().only
  sys.exit(main([only] if only else ["stop", "array", "study"]))
