"""The command's beam search and its encoder–decoders, with tiny models in the place of a run's."""

from __future__ import annotations

import json
import types

import pytest

from research import generate
from research.core import startup
from research.core.errors import UserError
from research.data import tokenizer as tokenizers
from research.decode.beam import BeamSearch, Config
from research.decode.rules import Rules
from research.model import transformer
from research.model.attention import grouped
from research.model.inputs import HeadConfig
from research.training import restore
from tests import drawn


@pytest.fixture
def make_run(monkeypatch, tmp_path):
  """Puts a tiny model where the command reads a run's; returns the run."""

  def make(encoder_layers):
    tokenizer = tokenizers.train(tokenizers.Config(kind="byte"), ["any"])
    cfg = transformer.Config(layers=1, encoder_layers=encoder_layers, width=16, attention=grouped.Config(heads=2), deviation=0.5, tie_head=False)
    model = transformer.make(cfg, tokenizer.vocab.size, {"lm": HeadConfig()}, 32)
    params = drawn.parameters(model)
    data = types.SimpleNamespace(length=32, prepend_bos=False)
    run = types.SimpleNamespace(cfg=types.SimpleNamespace(data=data), objective=types.SimpleNamespace(start=None, causal=True, prefix=False), model=model, params=params,
                                tokenizer=tokenizer)  # fmt: skip
    monkeypatch.setattr(restore, "restore", lambda workdir, step: run)
    monkeypatch.setattr(startup, "compilation_cache", lambda folder: None)
    return run

  return make


def command(tmp_path, *arguments):
  generate.FLAGS.unparse_flags()
  for name in generate.FLAGS:
    generate.FLAGS[name].unparse()
  generate.main([f"--workdir={tmp_path}", *arguments])


def test_beams_print_the_text_that_the_search_finds(make_run, tmp_path, capsys):
  run = make_run(0)
  prompt = run.tokenizer.encode("abc")
  command(tmp_path, "--prompt=abc", "--beams=3", "--length=6", "--length_penalty=0.5")
  found = BeamSearch(run.model, run.params, Rules(stop=(run.tokenizer.special["eos"],)))([prompt], Config(3, 0.5), 6)
  assert capsys.readouterr().out == run.tokenizer.decode([*prompt, *found.tokens[0, 0]]) + "\n"


def test_the_prompt_is_the_source_of_an_encoder(make_run, tmp_path, capsys):
  run = make_run(1)
  with pytest.raises(UserError, match="decoder_start_token_id"):
    command(tmp_path, "--prompt=abc", "--temperature=0")
  (tmp_path / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 2, "eos_token_id": 3, "bad_words_ids": [[120]]}))
  command(tmp_path, "--prompt=abc", "--beams=2", "--length=5")
  search = BeamSearch(run.model, run.params, Rules(stop=(3,), start=2, never=(120,)))
  found = search(None, Config(2), 5, [run.tokenizer.encode("abc")])
  assert capsys.readouterr().out == run.tokenizer.decode(found.tokens[0, 0]) + "\n"
  command(tmp_path, "--prompt=abc", "--temperature=0", "--length=5")
  assert capsys.readouterr().out.endswith("\n")


def test_mistakes(make_run, tmp_path):
  make_run(0)
  with pytest.raises(UserError, match="--top_k.*--beams=4"):
    command(tmp_path, "--beams=4", "--top_k=3")
  with pytest.raises(UserError, match="beams must be at least 1"):
    command(tmp_path, "--beams=0")
  with pytest.raises(UserError, match="no room"):
    command(tmp_path, "--beams=4", f"--prompt={'a' * 40}")
  (tmp_path / "generation_config.json").write_text("[1]")
  with pytest.raises(UserError, match="no settings of generation"):
    command(tmp_path)
  (tmp_path / "generation_config.json").write_text(json.dumps({"repetition_penalty": 2.0}))
  with pytest.raises(UserError, match="repetition_penalty"):
    command(tmp_path)
