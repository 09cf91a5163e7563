"""`python -m research.convert` from outside: what it makes is a run for the other commands, and goes out again as it came in."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
import pytest

from research import convert, evaluate, generate, hf, train
from research.hf import files, loading
from research.model import transformer
from research.model.attention import grouped
from research.model.ffn import dense
from research.model.inputs import HeadConfig
from research.training.checkpoint import Checkpoints
from tests import drawn

VOCAB = 300

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A published model as one finds it: a tiny Llama with a byte-level tokenizer of its own ids."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers

  path = tmp_path_factory.mktemp("published")
  ffn = dense.Config(hidden=24, activation="silu", gated=True)
  cfg = transformer.Config(layers=2, width=16, attention=grouped.Config(heads=4, kv_heads=2), ffn=ffn, tie_head=False, residual_init="same")
  model = transformer.make(cfg, VOCAB, {"lm": HeadConfig()}, 32)
  loading.export(str(path), model, drawn.parameters(model, 1), "llama", more={"eos_token_id": 256})
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
  vocabulary.pre_tokenizer, vocabulary.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
  vocabulary.add_special_tokens(["<|endoftext|>"])
  vocabulary.save(str(path / "tokenizer.json"))
  (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "add_bos_token": False}))
  return path


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
  path = tmp_path_factory.mktemp("imported") / "run"
  lines = []
  convert.import_folder(str(folder), str(path), say=lines.append)
  path.with_suffix(".txt").write_text("\n".join(lines))
  return path


def test_report(workdir):
  report = workdir.with_suffix(".txt").read_text()
  assert "llama of" in report and "21 tensors read" in report and "(float32)" in report, report
  assert "vocabulary 300" in report and "rows of 32 tokens" in report and f"--config.init_from={workdir}" in report, report


def test_evaluate_and_generate(run, folder, workdir, tmp_path):
  (tmp_path / "some.txt").write_text("To be, or not to be.\n" * 20)
  status, out, err = run(evaluate, f"--workdir={workdir}", f"--data={tmp_path / 'some.txt'}", "--batch_size=4")
  assert status == 0 and "perplexity" in out, err
  status, out, err = run(generate, f"--workdir={workdir}", "--prompt=To be", "--length=8", "--temperature=0")
  assert status == 0 and out.startswith("To be"), err
  model, params, tokenizer = hf.load(str(folder))
  saved = Checkpoints(str(workdir)).restore_params()
  jax.tree.map(np.testing.assert_array_equal, params, saved)
  assert tokenizer.vocab.size == VOCAB == model.vocab_size


def test_train_from_it_and_export(run, folder, workdir, tmp_path):
  source = tmp_path / "text.txt"
  source.write_text("It was the best of times, it was the worst of times.\n" * 60)
  overrides = ["steps=3", "batch_size=2", "optimizer.schedule.warmup=1", "checkpoint.every=3", "evaluate.every=3", "data.sources.text.paths=" + str(source)]
  flags = [f"--config.{item}" for item in overrides]
  status, _, err = run(train, f"--config={workdir}", f"--workdir={tmp_path / 'new'}", f"--config.init_from={workdir}", *flags)
  assert status == 0, err
  status, out, err = run(convert, "export", f"--workdir={tmp_path / 'new'}", f"--folder={tmp_path / 'out'}")
  assert status == 0 and "step 3" in out and "tokenizer.json" in out, err
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["model_type"] == "llama" and config["eos_token_id"] == 256
  before, after = files.Folder(str(folder)), files.Folder(str(tmp_path / "out"))
  assert before.tensors.keys() == after.tensors.keys()
  name = "model.layers.1.mlp.up_proj.weight"
  moved = np.abs(before.read(name) - after.read(name)).max()
  assert 0 < moved < 0.1
  _, _, tokenizer = hf.load(str(tmp_path / "out"))
  assert tokenizer.decode(tokenizer.encode("Größe!")) == "Größe!"


def test_export_is_what_was_imported(run, folder, workdir, tmp_path):
  status, _, err = run(convert, "export", f"--workdir={workdir}", f"--folder={tmp_path / 'out'}")
  assert status == 0, err
  before, after = files.Folder(str(folder)), files.Folder(str(tmp_path / "out"))
  assert after.tensors == before.tensors and all(after.read(name).tobytes() == before.read(name).tobytes() for name in before.tensors)


def test_mistakes(fails, folder, workdir, tmp_path):
  new = f"--workdir={tmp_path / 'new'}"
  fails(convert, [], "say import or export")
  fails(convert, ["imprt", str(folder)], "Did you mean 'import'?")
  fails(convert, ["import", new], "needs the folder")
  fails(convert, ["import", str(folder)], "--workdir is missing")
  fails(convert, ["import", str(folder), new, "--config.steps=3"], "--config")
  fails(convert, ["import", str(tmp_path / "absent"), new], "no folder", "absent")
  fails(convert, ["import", str(folder), new, "--length=33"], "--length=33", "32")
  fails(convert, ["import", str(folder), f"--workdir={workdir}"], "holds a run already")
  fails(convert, ["export", f"--workdir={workdir}"], "--folder is missing")
  fails(convert, ["export", f"--workdir={workdir}", f"--folder={folder}"], "holds a config.json already")
  fails(convert, ["export", f"--workdir={workdir}", f"--folder={tmp_path / 'out'}", "--family=gpt2"], "gpt2", "no form")
  fails(train, [f"--workdir={workdir}"], "imported weights", "--config.init_from")
  assert not pathlib.Path(tmp_path / "new").exists()


def test_a_folder_without_or_with_another_tokenizer(fails, folder, tmp_path):
  import shutil

  shutil.copytree(folder, tmp_path / "bare")
  (tmp_path / "bare" / "tokenizer.json").unlink()
  fails(convert, ["import", str(tmp_path / "bare"), f"--workdir={tmp_path / 'new'}"], "tokenizer")
  assert hf.load(str(tmp_path / "bare"))[2] is None
  content = json.loads((folder / "tokenizer.json").read_text())
  content["model"]["vocab"] |= {f"{a}{b}": 256 + 300 * i + j for i, a in enumerate("ab") for j, b in enumerate("xyz")}
  content["model"]["merges"] = [[a, b] for a in "ab" for b in "xyz"]
  (tmp_path / "bare" / "tokenizer.json").write_text(json.dumps(content))
  fails(convert, ["import", str(tmp_path / "bare"), f"--workdir={tmp_path / 'new'}"], "tokenizer")
  assert not (tmp_path / "new").exists()
