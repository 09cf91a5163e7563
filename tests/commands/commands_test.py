"""The commands from outside: what they print and leave, and that a mistake is one `error: …` line and a status."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from research import doctor, evaluate, generate, preview, train
from research.core.overrides import load
from research.training import loop
from tests import resume_under_kill as tiny
from tests.contracts.common import OUTSIDE

ROOT = pathlib.Path(__file__).parent.parent.parent
OVERRIDES = ["steps=6", "checkpoint.every=3", "evaluate.every=3", "log.every=2", "optimizer.schedule.warmup=2", "data.length=16"]

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  return tiny.write_config(str(tmp_path_factory.mktemp("config")))


@pytest.fixture(scope="module")
def runs(config, tmp_path_factory):
  """Workdirs of a tiny causal and a tiny masked run."""
  found = {}
  data = str(tmp_path_factory.mktemp("data"))
  for name in ("causal_lm", "masked_lm"):
    found[name] = str(tmp_path_factory.mktemp(name))
    loop.train(load(config, [*OVERRIDES, f"objective={name}", f"data.directory={data}"]), found[name], lambda line: None)
  return found


def damaged(workdir, tmp_path, change):
  copy = tmp_path / "copy"
  shutil.copytree(workdir, copy)
  change(copy)
  return copy


# --- evaluate ----------------------------------------------------------------------------------------------------------------


def test_evaluate_scores_the_validation_split_and_any_text(run, runs, tmp_path):
  workdir = runs["causal_lm"]
  status, out, _ = run(evaluate, f"--workdir={workdir}", "--evals=likelihood,loss", "--batch_size=5")
  assert status == 0 and all(word in out for word in ("likelihood", "perplexity", "bits_per_byte", "loss", " … "))
  (tmp_path / "some.txt").write_text("words that the model has never seen\n" * 5)
  status, out, _ = run(evaluate, f"--workdir={workdir}", f"--data={tmp_path / 'some.txt'}", "--step=3")
  found = json.loads(pathlib.Path(workdir, "evaluations.json").read_text())
  assert found.keys() == {"likelihood", "loss", f"likelihood of {tmp_path / 'some.txt'} at step 3"}
  scores = found["likelihood"]["scores"]
  assert all(s["low"] <= s["value"] <= s["high"] for s in scores.values())
  summary = json.loads(pathlib.Path(workdir, "summary.json").read_text())
  assert scores["loss"]["value"] == pytest.approx(summary["valid"]["loss"], rel=1e-5)
  assert found["loss"]["scores"]["loss"]["value"] == pytest.approx(summary["valid"]["loss"], rel=1e-5)
  other = found[f"likelihood of {tmp_path / 'some.txt'} at step 3"]
  assert other["settings"]["step"] == 3 and other["scores"]["loss"]["value"] != scores["loss"]["value"]


def test_evaluate_a_masked_run(run, runs):
  status, out, _ = run(evaluate, f"--workdir={runs['masked_lm']}")
  assert status == 0 and "accuracy" in out and "bits_per_byte" not in out
  summary = json.loads(pathlib.Path(runs["masked_lm"], "summary.json").read_text())
  found = json.loads(pathlib.Path(runs["masked_lm"], "evaluations.json").read_text())
  assert found["loss"]["scores"]["loss"]["value"] == pytest.approx(summary["valid"]["loss"], rel=1e-5)
  kept = pathlib.Path(runs["masked_lm"], "evaluations.json")
  kept.write_text(cut := kept.read_text()[:-9])
  status, out, _ = run(evaluate, f"--workdir={runs['masked_lm']}", "--evals=likelihood")
  assert status == 0 and "pseudo_perplexity" in out and "bits_per_byte" not in out
  assert "evaluations.json.damaged' now" in out and kept.with_suffix(".json.damaged").read_text() == cut and json.loads(kept.read_text()).keys() == {"likelihood"}


def test_evaluate_minimal_pairs(run, runs, fails, tmp_path):
  pairs = tmp_path / "pairs.jsonl"
  pairs.write_text("".join(json.dumps({"UID": f"a_paradigm_with_a_long_name_{i}", "sentence_good": "he is", "sentence_bad": "he are"}) + "\n" for i in (1, 2)))
  arguments = [f"--workdir={runs['causal_lm']}", "--evals=minimal_pairs"]
  status, out, _ = run(evaluate, *arguments, f"--data={pairs}")
  assert status == 0 and "overall" in out and "a_paradigm_with_a_long_name_2" in out and "left_out 0" in out
  entry = json.loads(pathlib.Path(runs["causal_lm"], "evaluations.json").read_text())[f"minimal_pairs of {pairs}"]
  assert entry["scores"]["overall"]["value"] in (0, 100) and entry["settings"]["pairs"] == 2
  fails(evaluate, arguments, "scored alone, with --data=FILE", "sentence_good")


def test_evaluate_mistakes(fails, runs, tmp_path):
  workdir = f"--workdir={runs['causal_lm']}"
  fails(evaluate, [], "--workdir is missing")
  fails(evaluate, ["--workdir=absent"], "'absent'")
  fails(evaluate, [f"--workdir={tmp_path}"], "config.json")
  fails(evaluate, [workdir, "--evals=likelyhood"], "'likelyhood'", "Did you mean 'likelihood'?")
  fails(evaluate, [workdir, "--data=absent.txt"], "absent.txt")
  fails(evaluate, [workdir, "--step=5"], "step 5", "3, 6")
  fails(evaluate, [workdir, "--step=many"], "step", "many")
  fails(evaluate, [workdir, "--batch_size=0"], "batch_size")
  fails(evaluate, [workdir, "--config.steps=5"], "--config")


# --- generate ----------------------------------------------------------------------------------------------------------------


def test_generate_continues_the_prompt(run, runs):
  arguments = [f"--workdir={runs['causal_lm']}", "--prompt=abc", "--length=40"]
  status, out, err = run(generate, *arguments, "--seed=1")
  assert status == 0 and out.startswith("abc") and len(out) > 10 and err == ""
  assert run(generate, *arguments, "--seed=1")[1] == out and run(generate, *arguments, "--seed=2")[1] != out
  greedy = run(generate, *arguments, "--temperature=0")[1]
  assert run(generate, *arguments, "--temperature=0", "--seed=9")[1] == greedy == run(generate, *arguments, "--top_k=1")[1]


def test_generate_mistakes(fails, run, runs):
  workdir = f"--workdir={runs['causal_lm']}"
  fails(generate, [], "--workdir is missing")
  fails(generate, [workdir, "--length=0"], "--length=0")
  fails(generate, [workdir, "--top_p=1.5"], "--top_p", "1.5")
  fails(generate, [workdir, "--temperature=-1"], "--temperature", "-1")
  fails(generate, [workdir, "--prompt="], "--prompt is empty")
  fails(generate, [workdir, "--pormpt=a"], "'--pormpt'", "Did you mean 'prompt'?")
  masked = f"--workdir={runs['masked_lm']}"
  fails(generate, [masked], "cannot continue a text")
  status, out, _ = run(generate, masked, "--if_possible")
  assert status == 0 and "cannot continue a text" in out


def test_a_vocabulary_that_does_not_match(fails, runs, tmp_path):
  def change(folder):
    path = folder / "tokenizer" / "vocabulary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "kind": "character", "characters": ["a", "b"]}))

  copy = damaged(runs["causal_lm"], tmp_path, change)
  for module in (generate, evaluate):
    fails(module, [f"--workdir={copy}"], "tokenizer", "bring")
  shutil.rmtree(copy / "tokenizer")
  fails(generate, [f"--workdir={copy}"], "tokenizer")


def test_a_checkpoint_that_was_cut_off(runs, tmp_path):
  """In a process of its own: what orbax prints at exit counts, too."""

  def change(folder):
    for path in (folder / "checkpoints" / "6" / "state").rglob("*"):
      if path.is_file() and path.parent.name == "d":
        os.truncate(path, path.stat().st_size // 2)

  copy = damaged(runs["causal_lm"], tmp_path, change)
  done = process("research.generate", f"--workdir={copy}")
  assert done.returncode == 2 and done.stdout == ""
  assert done.stderr.startswith("error: checkpoint '") and done.stderr.count("\n") == 1 and "go on from step 3" in done.stderr, done.stderr[
    :3000
  ]


# --- preview, doctor ---------------------------------------------------------------------------------------------------------


def test_preview_shows_what_the_model_reads_and_predicts(run, config, tmp_path):
  png = tmp_path / "sight.png"
  status, out, _ = run(preview, f"--config={config}", "--rows=2", "--length=30", f"--png={png}", "--config.data.length=32")
  assert status == 0 and "objectives.masked_lm" in out and "<mask>" in out and out.count("  predicts ") == 2 and "who sees whom" in out
  assert png.read_bytes().startswith(b"\x89PNG")
  status, out, _ = run(preview, f"--config={config}", "--config.objective=causal_lm")
  triangle = [line.strip() for line in out.splitlines() if set(line.strip()) <= set("#·") and line.strip()]
  assert status == 0 and triangle[0].startswith("#·") and triangle[-1] == "#" * 24


def test_preview_mistakes(fails, config, tmp_path):
  fails(preview, [], "--config is missing")
  fails(preview, [f"--config={config}", "--config.objective.mask_rte=1"], "Did you mean 'objective.mask_rate'?")
  fails(preview, [f"--config={config}", "--rows=0"], "--rows=0")
  fails(preview, [f"--config={config}", f"--png={tmp_path}/absent/a.png"], "absent")


def test_doctor_finds_this_machine_in_order(run):
  status, out, _ = run(doctor)
  assert status == 0 and "all good" in out and "WRONG" not in out
  assert all(word in out for word in ("Python", "jax ", "device", "GiB free"))


def test_doctor_says_what_is_missing(run, monkeypatch):
  monkeypatch.setattr(doctor, "PACKAGES", ("jax", "a-package-that-is-absent"))
  status, out, _ = run(doctor)
  assert status == 1 and "WRONG  a-package-that-is-absent is not installed" in out and "1 wrong" in out


# --- train -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "arguments, parts",
  [
    (["--config.stps=3"], ["'stps'", "Did you mean 'steps'?"]),
    (["--config.steps=three"], ["'steps'", "'three'"]),
    (["--config.objective=masked_ml"], ["Did you mean 'objectives.masked_lm'?"]),
    (["--confg=x"], ["'--confg'", "Did you mean 'config'?"]),
    (["--profile=7"], ["--profile=7", "first:last"]),
    (["stray"], ["'stray'"]),
    (["--config.data.sources.text=tfds", "--config.data.sources.text.dataset=wiki50b"], ["wiki50b"]),
    (["--config.data.sources.text=files", "--config.data.sources.text.paths=empty.txt"], ["empty.txt", "empty"]),
    (["--config.data.sources.text=files", "--config.data.sources.text.paths=binary.txt"], ["binary.txt", "binary"]),
    (["--config.data.sources.text=files", "--config.data.sources.text.paths=latin.txt"], ["latin.txt", "UTF-8"]),
    (["--config.data.sources.text=files", "--config.data.sources.text.paths=absent.txt"], ["absent.txt"]),
    (["--config.data.length=100000"], ["data.length"]),
    (["--config.model.attention.heads=3"], ["heads"]),
    (["--config.optimizer.schedule.warmup=5000"], ["warmup", "5000"]),
    (["--config.mesh.data=3"], ["mesh", "3"]),
    (["--config.batch_size=3", "--config.microbatches=2"], ["batch_size 3", "microbatches 2"]),
    (["--config.init_from=absent"], ["absent"]),
    (["--workdir=empty.txt"], ["--workdir=empty.txt", "file"]),
    (["--workdir="], ["--workdir is missing"]),
    (["--config=absent.py"], ["absent.py"]),
  ],
  ids=lambda value: value[-1] if isinstance(value, list) and value[-1].startswith("-") else None,
)
def test_train_mistakes(fails, config, tmp_path, monkeypatch, arguments, parts):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("empty.txt").write_text("")
  pathlib.Path("binary.txt").write_bytes(b"a\0b" * 100)
  pathlib.Path("latin.txt").write_bytes("Größe".encode("latin-1") * 100)
  fails(train, [f"--config={config}", "--workdir=run", *arguments], *parts)


def process(module, *arguments):
  environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
  environment.pop("JAX_COMPILATION_CACHE_DIR", None)
  return subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.long
def test_train_from_the_command_line(config, tmp_path, fails):
  """Once as a user starts it: nothing on stderr, a table at the end; and a mistake in a config file."""
  workdir = tmp_path / "run"
  done = process("research.train", f"--config={config}", f"--workdir={workdir}", *(f"--config.{item}" for item in OVERRIDES))
  assert done.returncode == 0 and done.stderr == "", done.stderr[-3000:]
  assert "step 6/6" in done.stdout and "whole validation split, step 6" in done.stdout and "unigram" in done.stdout
  assert (workdir / "compilation_cache").is_dir() and (workdir / "summary.json").is_file()
  wrong = tmp_path / "wrong.py"
  wrong.write_text(pathlib.Path(config).read_text().replace("return use(", "config = use(") + "\n  config.optimizer.peek = 1\n")
  fails(train, [f"--config={wrong}", f"--workdir={tmp_path / 'other'}"], "error: config file", "'peek'")
  assert not (tmp_path / "other").exists()


def test_an_objective_from_outside_the_package_is_trained_by_its_name(run, config, tmp_path):
  flags = [f"--config.{item}" for item in [*OVERRIDES, f"objective={OUTSIDE}", "objective.ahead=3"]]
  status, _, err = run(train, f"--config={config}", f"--workdir={tmp_path}", *flags)
  assert status == 0, err
  assert json.loads((tmp_path / "config.json").read_text())["objective"] == {"name": OUTSIDE, "ahead": 3}
  assert json.loads((tmp_path / "summary.json").read_text())["step"] == 6
