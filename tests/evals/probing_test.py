"""Linear probing: the classifier, the division of the records, the vectors it reads, the file, the command."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
import pytest

from research import evaluate
from research.core.errors import UserError
from research.evals import probing
from research.evals.probing import Labelled
from research.model.inputs import HeadConfig
from tests.evals.similarity_test import EMBEDDING, LENGTH, build, saved_run, tokenizer


def test_the_weights_are_those_of_the_least_penalised_cross_entropy():
  rng = np.random.default_rng(0)
  x, labels = np.c_[rng.normal(size=(60, 3)), np.ones(60)], rng.integers(0, 3, 60)

  def loss(weights, penalty=0.1):
    scores = x @ weights
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    return -log_p[np.arange(60), labels].mean() + penalty / 2 * (weights[:-1] ** 2).sum()

  found = probing.logistic(x, labels, 3, 0.1)
  for place in np.ndindex(found.shape):  # the slope is zero along every weight
    step = np.zeros_like(found)
    step[place] = 1e-4
    assert abs(loss(found + step) - loss(found - step)) / 2e-4 < 1e-4, place
  assert np.abs(probing.logistic(x, labels, 3, 1e4)[:-1]).max() < 1e-3
  shares = np.bincount(labels) / 60
  bias = probing.logistic(x, labels, 3, 1e4)[-1]
  np.testing.assert_allclose(np.exp(bias) / np.exp(bias).sum(), shares, atol=1e-3)  # which no penalty holds back


def test_what_can_be_read_off_a_line_is_found_and_what_is_not_there_is_not():
  rng = np.random.default_rng(1)
  vectors, labels = rng.normal(size=(600, 8)) * np.arange(1, 9) * 100, rng.integers(0, 2, 600)
  right, settings = probing.probe(vectors, (vectors @ rng.normal(size=8) > 0).astype(int), np.arange(600), seed=0)
  assert right.mean() > 0.95 and settings["scored"] == 120 and settings["trained_on"] == 480
  right, settings = probing.probe(vectors, labels, np.arange(600), seed=0)
  assert 0.35 < right.mean() < 0.65 and 40 < settings["majority"] < 65
  again, _ = probing.probe(vectors, labels, np.arange(600), seed=0)
  other, _ = probing.probe(vectors, labels, np.arange(600), seed=1)
  assert (right == again).all() and (right != other).any()


def test_records_that_are_scored_are_none_that_it_was_fitted_to():
  rng = np.random.default_rng(2)
  vectors = rng.normal(size=(100, 200))  # more numbers than records: whatever is fitted is known by heart
  labels = rng.integers(0, 2, 100)
  right, _ = probing.probe(vectors, labels, np.arange(100), seed=0)
  assert right.mean() < 0.85
  texts = np.tile(np.arange(100), 2)  # each twice: a text in both parts would be known by heart
  right, settings = probing.probe(np.tile(vectors, (2, 1)), np.tile(labels, 2), texts, seed=0)
  assert right.mean() < 0.85 and (settings["scored"], settings["trained_on"]) == (40, 160)


@pytest.mark.parametrize("heads", [None, {EMBEDDING: HeadConfig(kind="vector", pool="first", transform=True, activation="tanh", outputs=5), "lm": HeadConfig()}])
def test_the_mean_of_the_hidden_states_is_asked_whatever_head_there_is(heads, monkeypatch):
  model, params = build(heads)
  seen = {}
  monkeypatch.setattr(probing, "probe", lambda vectors, labels, texts, seed: seen.update(vectors=vectors, labels=labels) or (np.ones(4), {"classes": 2}))
  records = [Labelled("a word", "x"), Labelled("other words", "y")]
  scores, settings = probing.make(probing.Config(4, 20), model, False, tokenizer(), ([], []), LENGTH)(params, records)
  assert seen["vectors"].shape == (2, model.cfg.width) and seen["labels"].tolist() == [0, 1]
  assert scores == {"accuracy": {"value": 100.0, "low": 100.0, "high": 100.0}} and settings == {"classes": 2, "longest": LENGTH, "cut": 0}
  np.testing.assert_allclose(np.linalg.norm(seen["vectors"], axis=1), 1, atol=1e-6)


def test_models_without_vectors_are_refused():
  with pytest.raises(UserError, match="probing embeds texts with a single Transformer.*--evals=probing"):
    probing.make(probing.Config(), build(encoder_layers=1)[0], False, tokenizer(), ([], []), LENGTH)
  model, params = build()
  with pytest.raises(UserError, match="not finite"):
    probing.make(probing.Config(), model, False, tokenizer(), ([], []), LENGTH)(jax.tree.map(lambda leaf: leaf * np.nan, params), [Labelled("a", "x"), Labelled("b", "y")])


def test_records_are_read_from_tables_and_json_lines(tmp_path):
  wanted = [Labelled(f"text {i}", str(i % 2)) for i in range(10)]
  (tmp_path / "a.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in wanted))
  (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in wanted))
  assert probing.read_records(str(tmp_path / "a.tsv")) == probing.read_records(str(tmp_path / "a.jsonl")) == wanted
  (tmp_path / "few.tsv").write_text("a\t0\nb\t1\n")
  (tmp_path / "one.tsv").write_text("".join(f"{i}\t0\n" for i in range(20)))
  (tmp_path / "same.tsv").write_text("a\t0\nb\t1\n" * 10)
  for name in ("few", "one", "same"):
    with pytest.raises(UserError, match=f"{name}.tsv holds .* different texts of . labels: probing needs at least 10 of two"):
      probing.read_records(str(tmp_path / f"{name}.tsv"))


def test_command(tmp_path, monkeypatch, run):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
  saved_run(str(tmp_path))
  path = tmp_path / "labelled.tsv"
  path.write_text("".join(f"{i} {'xy'[i % 2] * 3}\t{i % 2}\n" for i in range(40)))
  status, out, _ = run(evaluate, f"--workdir={tmp_path}", "--evals=probing", f"--data={path}")
  entry = json.loads(pathlib.Path(tmp_path, "evaluations.json").read_text())[f"probing of {path}"]
  assert status == 0 and "accuracy" in out and 0 <= entry["scores"]["accuracy"]["value"] <= 100
  assert {"step": 2, "rows": 40, "classes": 2, "trained_on": 32, "scored": 8, "longest": 16}.items() <= entry["settings"].items()
  status, _, err = run(evaluate, f"--workdir={tmp_path}", "--evals=probing")
  assert status == 2 and "scored alone, with --data=FILE: a .tsv, .csv or .jsonl file" in err
