"""Sentence encoders: the steps of modules.json in and out, what of them is refused, and the way through the commands."""

from __future__ import annotations

import json
import os
import pathlib

import jax
import numpy as np
import pytest

from research import convert, evaluate
from research.core import config as configs
from research.core.errors import UserError
from research.core.types import Vocab
from research.hf import files, loading, sentence
from research.hf.family import Described, describe
from research.model import transformer
from research.model.inputs import HeadConfig, Inputs
from research.objectives import reading
from research.parallel import mesh as meshes
from research.training.restore import restore
from tests import drawn
from tests.contracts.common import compiled

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *(f"##{letter}" for letter in "abcdefgh"), "."]
CONFIG = dict(model_type="bert", architectures=["BertModel"], hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=12,
              vocab_size=len(WORDS), max_position_embeddings=16)  # fmt: skip
HEADS = [HeadConfig(kind="vector", pool=pool, normalize=normalize) for pool in ("mean", "first") for normalize in (True, False)]


def write(folder, head, length=12):
  """A sentence encoder as it lies on the hub, and the parameters that it was made of."""
  _, model = describe(CONFIG, "here")
  model = model._replace(heads={**model.heads, sentence.EMBEDDING: head}, length=length)
  module = loading.build(model, "here")
  params = drawn.parameters(module)
  loading.export(str(folder), module, params, "bert")
  (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))
  return params


@pytest.mark.parametrize("head", HEADS, ids=lambda head: f"{head.pool}-{head.normalize}")
def test_steps_in_and_out(tmp_path, head):
  params = write(tmp_path, head)
  modules = json.loads((tmp_path / "modules.json").read_text())
  assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling", "Normalize"][: 3 if head.normalize else 2]
  loaded = loading.load_model(str(tmp_path))
  assert loaded.described.heads[sentence.EMBEDDING] == head and loaded.described.length == 12 and loaded.described.objective is None
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)

  tokens, mask = np.array([[2, 5, 6, 3, 0, 0]]), np.array([[1, 1, 1, 1, 0, 0]])
  run = lambda read: compiled(loaded.model)(loaded.params, Inputs(tokens, segments=mask, kind="full"), read=read)
  output, hidden = run({sentence.EMBEDDING: None}), np.asarray(run({}).hidden[0, :4], np.float64)
  wanted = hidden.mean(0) if head.pool == "mean" else hidden[0]
  np.testing.assert_allclose(output.heads[sentence.EMBEDDING][0, 0], wanted / np.linalg.norm(wanted) if head.normalize else wanted, atol=1e-5)


def change(folder, name, function):
  content = json.loads((folder / name).read_text())
  (folder / name).write_text(json.dumps(function(content)))


POOLING = os.path.join("1_Pooling", "config.json")


@pytest.mark.parametrize(
    ("name", "function", "parts"),
    [
        (POOLING, lambda c: c | {"pooling_mode_max_tokens": True}, ("1_Pooling", "pooling_mode_max_tokens")),
        (POOLING, lambda c: c | {"pooling_mode_cls_token": True}, ("1_Pooling", "exactly one", "pooling_mode_cls_token")),
        (POOLING, lambda c: c | {"pooling_mode_mean_tokens": False}, ("1_Pooling", "exactly one")),
        (POOLING, lambda c: c | {"pooling_mode_other": True}, ("1_Pooling", "pooling_mode_other")),
        (POOLING, lambda c: c | {"word_embedding_dimension": 9}, ("word_embedding_dimension", "9", "8")),
        ("sentence_bert_config.json", lambda c: c | {"do_lower_case": True}, ("sentence_bert_config.json", "do_lower_case")),
        ("modules.json", lambda c: [*c, {"path": "3_Dense", "type": "sentence_transformers.models.Dense"}], ("modules.json", "Dense")),
        ("modules.json", lambda c: c[:1], ("modules.json", "Transformer")),
        ("modules.json", lambda c: [c[0] | {"path": "0_Transformer"}, *c[1:]], ("modules.json",)),
        ("modules.json", lambda c: {"steps": c}, ("modules.json", "list")),
        ("modules.json", lambda c: [c[0], c[1] | {"path": "absent"}], ("absent", "missing")),
    ],
)
def test_what_is_refused(tmp_path, name, function, parts):
  write(tmp_path, HEADS[0])
  change(tmp_path, name, function)
  with pytest.raises(UserError) as error:
    loading.load_model(str(tmp_path))
  for part in parts:
    assert part in str(error.value)


def test_only_encoders_have_a_vector(tmp_path):
  write(tmp_path, HEADS[0])
  for cfg, objective in ((transformer.Config(), "objectives.causal_lm"), (transformer.Config(encoder_layers=1), None)):
    with pytest.raises(UserError, match="an encoder alone"):
      sentence.described(Described(cfg, {}, 9, 16, objective), str(tmp_path))


def test_through_the_commands(tmp_path, monkeypatch):
  """Import, score, export again; a loss it has none."""
  made = meshes.make
  monkeypatch.setattr(meshes, "make", lambda cfg, devices=None: made(cfg, devices or jax.devices()[:1]))
  folder, workdir = tmp_path / "published", tmp_path / "run"
  folder.mkdir()
  write(folder, HEADS[0])
  lines = []
  convert.import_folder(str(folder), str(workdir), say=lines.append)
  assert "rows of 12 tokens" in "\n".join(lines) and "objectives.reading" in "\n".join(lines)
  texts = ["abc.", "a b c", "hg", "aaaaaaaaaaaaaaaa", "b", "c d e f."]
  pairs = tmp_path / "pairs.csv"
  pairs.write_text("".join(f"{a},{b},{(i * j) % 7}\n" for i, a in enumerate(texts) for j, b in enumerate(texts) if i < j))
  found = evaluate.evaluate(str(workdir), ["similarity"], str(pairs), None, 4)["similarity"]
  assert found["settings"]["embedding"] == "head 'embedding'" and found["settings"]["cut"] == 1 and found["settings"]["longest"] == 12

  run = restore(str(workdir))
  ids = run.tokenizer.wrap(run.tokenizer.encode("abc."))
  assert [WORDS[i] for i in ids] == ["[CLS]", "a", "##b", "##c", ".", "[SEP]"]

  convert.export_folder(str(workdir), str(tmp_path / "out"), say=lines.append)
  for name in (files.CONFIG, files.SINGLE, "modules.json", POOLING, "sentence_bert_config.json"):
    assert (tmp_path / "out" / name).is_file(), name
  before, after = files.Folder(str(folder)), files.Folder(str(tmp_path / "out"))
  assert before.tensors == after.tensors and all(before.read(name).tobytes() == after.read(name).tobytes() for name in before.tensors)
  assert loading.load_model(str(tmp_path / "out")).described == loading.load_model(str(folder)).described

  with pytest.raises(UserError, match="imported to be read"):
    evaluate.evaluate(str(workdir), ["loss"], str(pathlib.Path(__file__)), None, 4)


def test_heads_of_a_model_that_is_read():
  vocab = Vocab(9, {}, np.ones(9, bool), np.ones(9, np.int32))
  heads = {"nsp": HeadConfig(kind="vector", pool="first", transform=True, activation="tanh", outputs=2, bias=True), "mlm": HeadConfig(transform=True)}
  config = configs.use("objectives.reading", **reading.keys(heads))
  assert configs.make(configs.typed(config), vocab, 8).heads == heads
  for head, part in (({"pol": "mean"}, "pol"), ({"pool": "max"}, "'max'")):
    with pytest.raises(UserError, match=part):
      configs.typed(configs.use("objectives.reading", heads={"x": head}))
