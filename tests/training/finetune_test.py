"""From a pretrained run to a classifier, a tagger and a translator, through the commands' own functions."""

from __future__ import annotations

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from research import evaluate, generate
from research.core import config as configs
from research.core.errors import UserError
from research.core.overrides import resolve
from research.core.trees import named_leaves
from research.parallel import mesh as meshes
from research.training import loop
from research.training.checkpoint import Checkpoints
from research.training.restore import heads_matched, restore


@pytest.fixture(scope="module", autouse=True)
def one_device():
  with pytest.MonkeyPatch.context() as patch:
    made = meshes.make
    patch.setattr(meshes, "make", lambda cfg, devices=None: made(cfg, devices or jax.devices()[:1]))
    yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("records")
  for split, count in (("train", 40), ("valid", 9)):
    rows = [(f"{'good' if i % 3 else 'evil'} {i}", "pos" if i % 3 else "neg") for i in range(count)]
    (path / f"{split}.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in rows))
    (path / f"{split}.conll").write_text("".join("see\tO\nNew\tB-LOC\nYork\tI-LOC\n\n" if i % 3 else "we\tO\nsee\tO\n\n" for i in range(count)))
    (path / f"{split}.seq.tsv").write_text("".join(f"{i}\t{i + 1}\n" for i in range(count)))
  return path


def config(folder, objective, ending=".tsv", fields=None, **changes):
  encoders = {"encoder_layers": 1} if objective[0] == "objectives.seq2seq" else {}
  values = dict(
      steps=2, batch_size=8, objective=configs.use(objective[0], **objective[1]),
      data=configs.use("data.records", train=(str(folder / f"train{ending}"),), valid=(str(folder / f"valid{ending}"),), length=20,
                       fields=fields or {"first": 0, "label": 1}, tokenizer=configs.use("data.tokenizer", kind="byte")),
      model=configs.use("model.transformer", layers=1, width=16, token_types=2, attention=configs.use("model.attention.grouped", heads=2), **encoders),
      optimizer=configs.use("optim.optimizer", schedule=configs.use("optim.schedule", peak=1e-2, warmup=1)),
      log=configs.use("training.monitor", every=20, tensorboard=False),
  )  # fmt: skip
  return resolve(configs.use("training.experiment", **(values | changes)))


@pytest.fixture(scope="module")
def pretrained(folder, tmp_path_factory):
  workdir = str(tmp_path_factory.mktemp("pretrained"))
  loop.train(config(folder, ("objectives.masked_lm", {})), workdir, lambda line: None)
  return workdir


def test_a_pretrained_model_learns_to_classify_and_is_scored(folder, pretrained, tmp_path):
  workdir, said = str(tmp_path), []
  summary = loop.train(config(folder, ("objectives.classification", {}), steps=60, init_from=pretrained), workdir, said.append)
  text = "\n".join(said)
  assert "starts at random: head_class/outputs/bias" in text and "dropped: head_mlm/" in text and "classes neg, pos" in text, text
  assert summary["valid"]["accuracy"] == 1 and summary["cut"] == {"train": 0, "valid": 0}
  assert summary["baseline"] == "majority" and summary["majority"]["accuracy"] == pytest.approx(6 / 9)
  found = evaluate.evaluate(workdir, None, None, None, 4)["classification"]
  assert found["scores"]["accuracy"]["value"] == 100 and found["scores"]["matthews"]["value"] == 100 and found["settings"]["rows"] == 9
  assert restore(workdir).labels == ("neg", "pos")
  (tmp_path / "more.tsv").write_text("good day\tneg\nevil day\tneg\n")
  for split in ("train", "valid"):  # a file of its own needs none of the run's
    assert (folder / f"{split}.tsv").is_file()
  other = evaluate.evaluate(workdir, ["classification"], str(tmp_path / "more.tsv"), None, 4)["classification"]
  assert other["scores"]["accuracy"]["value"] == 50
  loss = evaluate.evaluate(workdir, ["loss"], None, None, 4)["loss"]["scores"]["loss"]["value"]
  assert loss == pytest.approx(summary["valid"]["loss"], rel=1e-5)


def test_scores_of_pairs_become_cosines_and_are_ranked(folder, pretrained, tmp_path):
  for split in ("train", "valid"):
    (folder / f"{split}.pairs.tsv").write_text("".join(f"good {i}\t{'good' if i % 2 else 'evil'}\t{i % 2 * 5}\n" for i in range(16)))
  cfg = config(folder, ("objectives.similarity", {}), ".pairs.tsv", {"first": 0, "second": 1, "score": 2}, steps=30, init_from=pretrained)
  summary = loop.train(cfg, str(tmp_path), lambda line: None)
  assert summary["valid"]["loss"] < summary["mean"]["loss"] and "perplexity" not in summary["valid"]
  found = evaluate.evaluate(str(tmp_path), None, None, None, 4)["classification"]
  assert found["scores"]["spearman"]["value"] > 80 and found["settings"]["rows"] == 16


def test_the_number_of_classes_must_be_that_of_the_data(folder, tmp_path):
  with pytest.raises(UserError, match="objective.classes is 3, but the data has 2 classes .neg, pos.: set --config.objective.classes=2"):
    loop.build(configs.typed(config(folder, ("objectives.classification", {"classes": 3}))), str(tmp_path), lambda line: None)


def test_text_has_no_labels(folder, tmp_path):
  cfg = config(folder, ("objectives.classification", {}), data=configs.use("data.text", tokenizer=configs.use("data.tokenizer", kind="byte"), length=20))
  with pytest.raises(UserError, match="which text data does not deliver"):
    loop.train(cfg, str(tmp_path), lambda line: None)


def test_what_another_model_s_heads_become(pretrained):
  saved = Checkpoints(pretrained).restore_params()
  wanted = {**{key: value for key, value in saved.items() if key != "head_mlm"},
            "head_class": {"transform": {"kernel": np.zeros((16, 16)), "bias": np.zeros(16)}, "outputs": {"kernel": np.zeros((16, 2))}}}  # fmt: skip
  found, lines = heads_matched(saved, wanted)
  assert {name for name, leaf in found.items() if leaf is None} == {name for name, _ in named_leaves({"head_class": wanted["head_class"]})}
  assert found.keys() == {name for name, _ in named_leaves(wanted)} and len(lines) == 2
  pooler = {"head_pooler": {"transform": {"kernel": np.ones((16, 16)), "bias": np.ones(16)}}}
  found, lines = heads_matched({**saved, **pooler}, wanted)
  assert (found["head_class/transform/kernel"] == 1).all() and found["head_class/outputs/kernel"] is None
  assert any("from its pooler: head_class/transform/" in line for line in lines)
  found, _ = heads_matched(saved, saved)
  assert all(found[name] is leaf for name, leaf in named_leaves(saved))


def test_a_model_with_more_layers_is_refused(folder, pretrained, tmp_path):
  other = config(folder, ("objectives.classification", {}), init_from=pretrained)
  for key, value, part in (("token_types", 0, "type_embed/embedding"), ("layers", 2, "block_1/")):
    run = loop.build(configs.typed(resolve(other, {f"model.{key}": value})), str(tmp_path), lambda line: None)
    with pytest.raises(UserError, match=part):
      loop.initial_state(run, lambda line: None)


def test_a_tagger_is_trained_and_scored(folder, tmp_path):
  cfg = config(folder, ("objectives.tagging", {"classes": 3}), ".conll", {"words": 0, "tags": 1}, steps=50)
  summary = loop.train(cfg, str(tmp_path), lambda line: None)
  found = evaluate.evaluate(str(tmp_path), None, None, None, 4)["tagging"]["scores"]
  assert found["accuracy"]["value"] == pytest.approx(100 * summary["valid"]["accuracy"]) and found["f1"]["value"] == 100


def test_a_translator_is_trained_scored_and_generates(folder, tmp_path, monkeypatch, capsys):
  cfg = config(folder, ("objectives.seq2seq", {"start": "cls"}), ".seq.tsv", {"source": 0, "target": 1}, steps=3)
  summary = loop.train(cfg, str(tmp_path), lambda line: None)
  assert summary["baseline"] == "unigram"
  found = evaluate.evaluate(str(tmp_path), None, None, None, 4)["likelihood"]["scores"]
  assert found["loss"]["value"] == pytest.approx(summary["valid"]["loss"], rel=1e-5)
  for name in generate.FLAGS:
    generate.FLAGS[name].unparse()
  monkeypatch.setattr(sys, "argv", ["generate"])
  generate.main([f"--workdir={tmp_path}", "--prompt=7", "--length=3", "--temperature=0"])
  assert capsys.readouterr().out.endswith("\n")
  assert json.loads(pathlib.Path(tmp_path, "config.json").read_text())["objective"]["start"] == "cls"
