"""The launch scripts: what they would submit, and that no argument can become a command.

The programs of the clusters are stand-ins on PATH that note the words they are given; what a script generates is really run under them.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
SCRIPTS = sorted(path.name for path in (ROOT / "launch").glob("*.sh"))
NASTY = ["--config=configs/x.py", "--config.a=$(touch pwned)", "--config.b=`touch pwned`;touch pwned&", "--config.c='\"\\ * ? ~ $HOME ${x} {a,b}",
         "--config.d=one\ntouch pwned\n", "--config.e=", "--config.f=é — '", "--"]  # fmt: skip
RUN = ["--config=configs/x.py", "--workdir=runs/x"]
NOTE = f"#!{sys.executable}\nimport json, os, sys\nwith open(os.environ['NOTES'] + '/' + os.path.basename(sys.argv[0]), 'a') as f: f.write(json.dumps(sys.argv[1:]) + '\\n')\n"


def stand_in(folder, name, then=""):
  path = folder / name
  path.write_text(NOTE + then)
  path.chmod(0o755)


@pytest.fixture
def stage(tmp_path):
  """A folder of stand-ins, a virtual environment whose Python is one, and the environment to run scripts in."""
  programs = tmp_path / "programs"
  (tmp_path / "venv" / "bin").mkdir(parents=True)
  programs.mkdir()
  environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "NOTES": str(tmp_path), "RESEARCH_VENV": str(tmp_path / "venv")}
  environment |= {"RESEARCH_EXTRAS": "", "JAX_PLATFORMS": "cpu"}
  # Nothing is to be installed: the stamp that launch/setup.sh would leave.
  total = subprocess.run("cat requirements.lock setup.cfg | cksum | cut -d' ' -f1", shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
  (tmp_path / "venv" / f".installed-{total.stdout.strip()}-").touch()
  return tmp_path, programs, environment


def launch(script, *arguments, environment=None, status=0, **more):
  done = subprocess.run(
    ["bash", str(ROOT / "launch" / script), *arguments], capture_output=True, text=True, timeout=60, env=environment, **more
  )
  assert done.returncode == status, done.stdout + done.stderr
  return done.stdout if status == 0 else done.stderr


def notes(folder, name):
  return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def unharmed(folder):
  """Nothing that an argument said has been done, wherever a script may have run."""
  assert not [path for place in (folder, ROOT, pathlib.Path()) for path in place.glob("pwned*")]


def directives(script):
  return dict(line.removeprefix("#SBATCH ").partition("=")[::2] for line in script.splitlines() if line.startswith("#SBATCH "))


# --- SLURM -------------------------------------------------------------------------------------------------------------------


def test_slurm_says_what_the_job_needs():
  script = launch("slurm.sh", "--dry-run", "--nodes=4", "--tasks-per-node=2", "--gpus-per-node=8", "--time=1-0", "--partition=big", "--", *RUN)
  assert directives(script) == {
    "--job-name": "research", "--nodes": "4", "--ntasks-per-node": "2", "--gpus-per-node": "8", "--time": "1-0", "--partition": "big",
    "--requeue": "", "--open-mode": "append", "--signal": "TERM@120",
  }  # fmt: skip


def submitted(stage, *arguments, task="", srun=0):
  """What srun is given when the submitted script runs, and what scontrol is; `srun` is the status that the run ends with."""
  folder, programs, environment = stage
  stand_in(programs, "sbatch", f"open({str(folder / 'script')!r}, 'w').write(sys.stdin.read())")
  stand_in(programs, "srun", f"sys.exit({srun})")
  stand_in(programs, "scontrol")
  launch("slurm.sh", f"--logs={folder}/logs", *arguments, environment=environment)
  job = {**environment, "SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": task}
  done = subprocess.run(["bash", str(folder / "script")], env=job, capture_output=True, text=True, timeout=60, cwd=folder)
  assert done.returncode == srun, done.stderr
  command = notes(folder, "srun")[-1]
  at = command.index(str(folder / "venv" / "bin" / "python"))
  assert command[at + 1 : at + 3] == ["-m", "research.train"]
  return command[at + 3 :], (notes(folder, "scontrol") if (folder / "scontrol").exists() else [])


@pytest.mark.parametrize("status", [0, 1, 2, 75, 137, 143])
def test_slurm_hands_arguments_on_and_requeues_a_run_that_was_told_to_stop(stage, status):
  arguments = [*NASTY, f"--workdir={stage[0]}/a b"]
  given, requeued = submitted(stage, "--", *arguments, srun=status)
  assert given == arguments and requeued == ([["requeue", "7"]] if status == 143 else [])
  unharmed(stage[0])


def test_slurm_arrays(stage):
  folder = stage[0]
  given, _ = submitted(stage, "--array=0-4%2", "--", *NASTY, f"--workdir={folder}/seed{{task}}", "--config.seed={task}", task="3")
  assert given == [*NASTY, f"--workdir={folder}/seed3", "--config.seed=3"]
  file = folder / "runs.txt"
  file.write_text("# name, seed\n\n--workdir=runs/a --config.x=$(touch\\ pwned)\n  --workdir='runs/b c' \"--config.x=`touch pwned` ; '*'\"   --config.y=*")
  given, _ = submitted(stage, f"--array-file={file}", "--", *NASTY, task="0")
  assert given == [*NASTY, "--workdir=runs/a", "--config.x=$(touch pwned)"]
  given, _ = submitted(stage, f"--array-file={file}", "--array=%1", "--", *NASTY, task="1")
  assert given == [*NASTY, "--workdir=runs/b c", "--config.x=`touch pwned` ; '*'", "--config.y=*"]
  assert directives((folder / "script").read_text())["--array"] == "0-1%1"
  unharmed(folder)


# --- GKE ---------------------------------------------------------------------------------------------------------------------

TPU, GPU = ["--tpu=v5p:4x4x4"], ["--gpus-per-node=8", "--nodes=2", "--accelerator=nvidia-h100-80gb"]
GKE = ["--name=run-1", "--image=a/b:1", "--volume=claim:/runs", "--env=A=$(b)"]


def jobset(*flags, arguments=RUN):
  found = json.loads(launch("gke.sh", *GKE, *flags, "--dry-run", "--", *arguments))
  job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
  return found, job, job["template"]["spec"]


def test_gke_names_the_slice_and_its_hosts():
  found, job, pod = jobset(*TPU)
  assert found["kind"] == "JobSet" and found["spec"]["network"]["enableDNSHostnames"] and job["completions"] == job["parallelism"] == 16
  assert pod["nodeSelector"] == {"cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice", "cloud.google.com/gke-tpu-topology": "4x4x4"}
  assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": "4"}


def test_gke_tells_gpu_processes_their_places():
  _, job, pod = jobset(*GPU)
  told = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in pod["containers"][0]["env"]}
  assert told["RESEARCH_COORDINATOR"] == "run-1-run-0-0.run-1:1234" and told["RESEARCH_PROCESSES"] == "2" == str(job["completions"])
  assert "job-completion-index" in told["RESEARCH_PROCESS"]["fieldRef"]["fieldPath"]
  assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "8"}


def test_gke_arguments_are_words_of_the_command(stage):
  folder, programs, environment = stage
  arguments = [*NASTY, "--config.g=$(A)", "--workdir=/runs/x"]
  stand_in(programs, "kubectl", f"open({str(folder / 'applied')!r}, 'w').write(sys.stdin.read())")
  launch("gke.sh", *GKE, *TPU, "--", *arguments, environment=environment)
  assert notes(folder, "kubectl") == [["apply", "-f", "-"]]
  container = json.loads((folder / "applied").read_text())["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
  # The cluster replaces $$ by $ and would replace $(A) by the variable.
  assert container["command"][-len(arguments) :] == [argument.replace("$", "$$") for argument in arguments]
  stand_in(programs, "xpk")
  command = launch("gke.sh", *GKE, *TPU, "--xpk=here", "--", *arguments, environment=environment)
  stand_in(programs, "python")
  subprocess.run(["bash", "-c", command], env=environment, cwd=folder, check=True)
  inner = next(word for word in notes(folder, "xpk")[0] if word.startswith("--command="))
  subprocess.run(["bash", "-c", inner.removeprefix("--command=")], env=environment, cwd=folder, check=True)
  assert notes(folder, "python")[0][-len(arguments) :] == arguments
  unharmed(folder)


@pytest.mark.parametrize("flags", [TPU, GPU], ids=["tpu", "gpu"])
def test_gke_jobs_keep_the_schemas_of_kubernetes(flags):
  validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed: see requirements-reference.lock")
  _, job, _ = jobset(*flags)
  whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": job}
  validate.validate(whole, validate.latest_version(), strict=True)
  job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] = "143"
  with pytest.raises(validate.ValidationError):
    validate.validate(whole, validate.latest_version(), strict=True)


# --- TPU VMs -----------------------------------------------------------------------------------------------------------------


def test_tpu_vm_takes_installs_trains_and_gives_back(stage):
  folder, programs, environment = stage
  stand_in(programs, "gcloud", "if 'describe' in sys.argv: print('ACTIVE')")
  arguments = [*NASTY, f"--workdir={folder}/x"]
  where = ["--name=n", "--zone=z", "--accelerator=v5p-128", "--version=v2-alpha-tpuv5"]
  launch("tpu_vm.sh", "all", *where, "--", *arguments, environment=environment)
  calls = notes(folder, "gcloud")
  assert [call[3] for call in calls] == ["create", "describe", "scp", "ssh", "ssh", "delete"]
  assert all("--worker=all" in call for call in calls[2:5])
  # The shell of a host, whose checkout is this one.
  (folder / "research").symlink_to(ROOT)
  (folder / "venv" / (next((folder / "venv").glob(".installed*")).name + "tpu")).touch()
  stand_in(folder / "venv" / "bin", "python")
  trained = next(word for word in calls[4] if word.startswith("--command=")).removeprefix("--command=")
  subprocess.run(["sh", "-c", trained], env=environment, cwd=folder, check=True)
  assert notes(folder, "python") == [["-m", "research.train", *arguments]]
  unharmed(folder)


# --- several processes here --------------------------------------------------------------------------------------------------

CHILD = """
import signal, time
index = int(next(word for word in sys.argv if word.startswith("--process=")).partition("=")[2])
def told(*_):
  sys.exit(143)
signal.signal(signal.SIGTERM, told)
print("this is", index, os.environ.get("XLA_FLAGS"), flush=True)
if "--fails" in sys.argv:
  sys.exit(7 if index == 1 else 0)
if "--waits" in sys.argv:
  signal.alarm(60)
  signal.pause()
"""


def test_processes_get_their_places_and_the_arguments(stage):
  folder, _, environment = stage
  stand_in(folder / "venv" / "bin", "python", CHILD)
  arguments = [*NASTY, f"--workdir={folder}/a b"]
  printed = launch("processes.sh", "3", "--devices=2", "--port=1234", "--", *arguments, environment=environment)
  place = lambda i: ["-m", "research.train", "--coordinator=127.0.0.1:1234", "--processes=3", f"--process={i}"]
  assert sorted(notes(folder, "python")) == [[*place(i), *arguments] for i in range(3)]
  assert "this is 0" in printed and "this is 1" not in printed and "device_count=2" in (folder / "a b" / "logs" / "process-1.log").read_text()
  unharmed(folder)


def test_processes_end_with_the_status_of_the_one_that_failed(stage):
  folder, _, environment = stage
  stand_in(folder / "venv" / "bin", "python", CHILD)
  said = launch("processes.sh", "3", "--port=1234", "--", f"--workdir={folder}/x", "--fails", environment=environment, status=7)
  assert "status 7" in said


def test_processes_are_all_told_to_stop(stage):
  folder, _, environment = stage
  stand_in(folder / "venv" / "bin", "python", CHILD)
  command = ["bash", str(ROOT / "launch" / "processes.sh"), "2", "--port=1234", "--", f"--workdir={folder}/x", "--waits"]
  with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
    assert "this is 0" in parent.stdout.readline()
    other = folder / "x" / "logs" / "process-1.log"
    subprocess.run(["timeout", "30", "sh", "-c", f"until grep -q 'this is 1' '{other}'; do :; done"], check=True)
    parent.send_signal(signal.SIGTERM)
    try:
      assert parent.wait(timeout=30) == 143
    finally:
      parent.kill()


# --- all of them -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("command", "words"),
  [
    ("slurm.sh --nods=2 -- --workdir=x", "no flag --nods"),
    ("slurm.sh --nodes=two -- --workdir=x", "--nodes=two must be a whole number"),
    ("slurm.sh --config=x --workdir=y", "after --"),
    ("slurm.sh -- --config=x", "--workdir is missing"),
    ("slurm.sh --array=0-3 -- --workdir=x", "a workdir each"),
    ("slurm.sh --partition=$(x) --dry-run -- --workdir=x", "must be one word"),
    ("slurm.sh --array-file=/nowhere", "is not a file"),
    ("gke.sh --name=a --image=b --tpu=v5p:4x4 -- --workdir=x", "its topology"),
    ("gke.sh --name=a --image=b -- --workdir=x", "either --tpu"),
    ("gke.sh --name=a --image=b --tpus=v5p:4x4x4 -- --workdir=x", "no flag --tpus"),
    ("tpu_vm.sh --name=a", "the verb comes first"),
    ("tpu_vm.sh train --name=a --zone=b", "--workdir is missing"),
    ("processes.sh -- --workdir=x", "number of processes comes first"),
    ("processes.sh 2 --devices=0 -- --workdir=x", "--devices=0 must be"),
  ],
)
def test_a_wrong_call_is_one_sentence(command, words):
  script, *arguments = command.split()
  said = launch(script, *arguments, status=2)
  assert said.startswith("error: ") and words in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("script", ["slurm.sh", "gke.sh", "tpu_vm.sh", "processes.sh"])
def test_help_is_the_opening_comment(script):
  told = launch(script, "--help")
  assert f"bash launch/{script}" in told and "--dry-run" in told and "set -e" not in told


def test_scripts_are_clean():
  beside = pathlib.Path(sys.executable).parent / "shellcheck"
  program = str(beside) if beside.exists() else shutil.which("shellcheck")
  if not program:
    pytest.skip("shellcheck is not installed: see requirements-reference.lock")
  done = subprocess.run([program, *SCRIPTS], cwd=ROOT / "launch", capture_output=True, text=True)
  assert done.returncode == 0, done.stdout
