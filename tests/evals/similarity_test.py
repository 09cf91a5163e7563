"""Similarity of texts: the vectors, the score with its interval, the file of pairs, the command."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import sys

import jax
import numpy as np
import pytest
from scipy import stats

from research import evaluate
from research.core import config as configs
from research.core.errors import UserError, command
from research.core.overrides import load
from research.core.types import TrainState
from research.data import groups, records
from research.data import tokenizer as vocabularies
from research.data.sources import files
from research.data.tokenizer import Tokenizer
from research.evals import similarity, text_vectors
from research.evals.similarity import EMBEDDING, Pair
from research.model import transformer
from research.model.attention import grouped
from research.model.inputs import HeadConfig, Inputs
from research.model.position import learned
from research.training.checkpoint import Checkpoints
from research.training.restore import TOKENIZER
from tests import drawn
from tests import resume_under_kill as tiny
from tests.hf import encoders

LENGTH = 40
TEXTS = ["a", "a word", "other words here", "this text is longer than the shortest row of sixteen", "of just 16 bytes", "seventeen of them"]
PAIRS = [Pair(a, b, float(i)) for i, (a, b) in enumerate((a, b) for a in TEXTS for b in TEXTS if a < b)]


class Wrapped(Tokenizer):
  """Bytes between the two tokens that BERT's texts stand between."""

  def wrap(self, ids):
    return np.array([self.special["cls"], *ids, self.special["sep"]], np.int32)


def tokenizer(kind=Tokenizer):
  return kind("byte", False, [bytes([b]) for b in range(256)])


def build(heads=None, **changes):
  cfg = transformer.Config(layers=1, width=12, attention=grouped.Config(heads=3), position=learned.Config(), **changes)
  tokens = tokenizer()
  model = transformer.make(cfg, tokens.vocab.size, heads or {"lm": HeadConfig()}, LENGTH)
  return model, drawn.parameters(model)


def around(tokens, data=None):
  return text_vectors.surroundings(tokens, data or records.Config())


def vectors(monkeypatch, model, params, pairs=PAIRS, batch_size=4, causal=False, tokens=None):
  """Text -> vector, as the evaluation compares them, and the settings."""
  tokens = tokens or tokenizer()
  seen = {}
  cosines = similarity.cosines
  monkeypatch.setattr(similarity, "cosines", lambda found, pairs: seen.update(found) or cosines(found, pairs))
  scores, settings = similarity.make(similarity.Config(batch_size, 20), model, causal, tokens, around(tokens), LENGTH)(params, pairs)
  monkeypatch.undo()
  return seen, scores, settings


def alone(model, params, ids, kind):
  """The mean of the last hidden states of one text without padding, to length 1."""
  run = jax.jit(lambda tokens: transformer.bind(model)(params, Inputs(tokens, kind=kind), read={}), compiler_options=encoders.QUICK)
  output = run(np.array([ids], np.int32))
  mean = np.asarray(output.hidden[0], np.float64).mean(0)
  return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("causal", [False, True])
def test_vector_is_the_mean_of_the_hidden_states_without_padding(monkeypatch, causal):
  model, params = build()
  tokens = tokenizer(Wrapped)
  found, scores, settings = vectors(monkeypatch, model, params, causal=causal, tokens=tokens)
  assert set(found) == set(TEXTS) and settings == {"embedding": "mean of the last hidden states", "longest": LENGTH, "cut": 1}
  for text in (TEXTS[1], TEXTS[3], TEXTS[4]):
    ids = [tokens.special["cls"], *tokens.encode(text)[: LENGTH - 2], tokens.special["sep"]]
    np.testing.assert_allclose(found[text], alone(model, params, ids, "causal" if causal else "full"), atol=1e-5)
  cosine = [found[pair.first] @ found[pair.second] for pair in PAIRS]
  assert scores["spearman"]["value"] == pytest.approx(100 * stats.spearmanr(cosine, [pair.score for pair in PAIRS]).statistic)


def test_vectors_do_not_depend_on_the_batch(monkeypatch):
  model, params = build()
  one, many = (vectors(monkeypatch, model, params, batch_size=size)[0] for size in (1, 7))
  for text in TEXTS:
    np.testing.assert_allclose(one[text], many[text], atol=1e-6)


def test_a_head_for_embeddings_is_what_counts(monkeypatch):
  head = HeadConfig(kind="vector", pool="first", transform=True, activation="tanh", outputs=5)
  model, params = build({EMBEDDING: head, "lm": HeadConfig()})
  found, _, settings = vectors(monkeypatch, model, params)
  assert settings["embedding"] == "head 'embedding'"
  run = jax.jit(lambda tokens: transformer.bind(model)(params, Inputs(tokens, kind="full"), read={EMBEDDING: None}), compiler_options=encoders.QUICK)
  for text in TEXTS[1:3]:
    wanted = run(tokenizer().encode(text)[None]).heads[EMBEDDING][0, 0]
    np.testing.assert_allclose(found[text], wanted, atol=1e-5)


def test_models_that_have_no_vector_of_a_text(monkeypatch):
  model, params = build(encoder_layers=1)
  with pytest.raises(UserError, match="single Transformer"):
    vectors(monkeypatch, model, params)
  model, params = build()
  with pytest.raises(UserError, match="zero or not finite"):
    vectors(monkeypatch, model, jax.tree.map(lambda leaf: leaf * np.nan, params))
  with pytest.raises(UserError, match="no token"):
    vectors(monkeypatch, model, params, [*PAIRS, Pair("", "a", 1.0)])


def test_long_texts_lose_their_end():
  tokens = tokenizer(Wrapped)
  rows, cut = text_vectors.encode(tokens, around(tokens), ["abcd", "abcde"], 6)
  assert cut == 1 and rows[0].tolist() == rows[1].tolist() == tokens.wrap(tokens.encode("abcd")).tolist()


def test_a_text_stands_as_in_the_groups_that_a_model_was_trained_on(tmp_path):
  lines = tmp_path / "texts.txt"
  lines.write_text("abcd\nabcdefgh\n")
  cfg = groups.Config(train=(str(lines),), valid=(str(lines),), tokenizer=vocabularies.Config(kind="byte"), length=6)
  prepared = groups.prepare(cfg, str(tmp_path), lambda line: None)
  rows, cut = text_vectors.encode(prepared.tokenizer, around(prepared.tokenizer, cfg), ["abcd", "abcdefgh"], cfg.length)
  assert [row.tolist() for row in rows] == [text.tolist() for (text,) in prepared.groups["train"]] and cut == 1
  assert rows[0].tolist() == [*prepared.tokenizer.encode("abcd"), prepared.tokenizer.special["eos"]]
  assert around(tokenizer(Wrapped), cfg) == around(tokenizer(Wrapped)) != around(tokenizer()) == ([], [])


def test_spearman_sees_order_alone():
  rng = np.random.default_rng(1)
  cosine = rng.uniform(-1, 1, 60)
  score = lambda cosine, people: similarity.summarize(cosine, people, 200)["spearman"]
  assert score(cosine, np.exp(3 * cosine))["value"] == pytest.approx(100) and score(cosine, -cosine)["value"] == pytest.approx(-100)
  noisy = cosine + rng.normal(0, 0.7, 60)
  found = score(cosine, noisy)
  assert found["low"] < found["value"] < found["high"] and found == score(cosine, noisy)
  wider = similarity.summarize(cosine[:15], noisy[:15], 200)["spearman"]
  assert wider["high"] - wider["low"] > found["high"] - found["low"]
  two = score(np.array([0.1, 0.2]), np.array([1.0, 2.0]))  # most resamples hold one pair twice and have no correlation
  assert two["value"] == two["low"] == two["high"] == pytest.approx(100)
  with pytest.raises(UserError, match="all scores of these 60 pairs are equal"):
    score(cosine, np.ones(60))
  with pytest.raises(UserError, match="all cosines"):
    score(np.ones(60), cosine)


# --- the file ----------------------------------------------------------------------------------------------------------------


def test_read_pairs(tmp_path):
  comma = '\ufeff"One, with ""quotes""",Two,4.5\nthree,four,0\n\n'
  expected = [Pair('One, with "quotes"', "Two", 4.5), Pair("three", "four", 0.0)]
  (tmp_path / "a.csv").write_text(comma)
  (tmp_path / "a.csv.gz").write_bytes(gzip.compress(comma.encode()))
  (tmp_path / "a.tsv").write_text('One, with "quotes"\tTwo\t4.5\nthree\tfour\t0\n')
  for name in ("a.csv", "a.csv.gz", "a.tsv"):
    assert similarity.read_pairs(str(tmp_path / name)) == expected


def test_read_pairs_finds_the_data_sets():
  if not os.path.isdir(os.path.join(files.data_root(), "stsb")):
    pytest.skip(f"no STS benchmark under {files.data_root()}")
  pairs = similarity.read_pairs("$RESEARCH_DATA/stsb/stsb-en-dev.csv.gz")
  assert len(pairs) == 1500 and pairs[0] == Pair("A man with a hard hat is dancing.", "A man wearing a hard hat is dancing.", 5.0)
  assert all(0 <= pair.score <= 5 for pair in pairs)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.csv", b"one,two\nthree,four,1\n", ("a.csv, line 1", "2 fields")),
        ("a.csv", b"one,two,1\none,two,three,4\n", ("a.csv, line 2", "4 fields")),
        ("a.csv", b"sentence1,sentence2,score\none,two,1\nx,y,2\n", ("line 1", "a number")),
        ("a.csv", b"one,two,1\none,,2\n", ("line 2", "a text is empty")),
        ("a.csv", b"one,two,1\none,two,nan\n", ("line 2", "no finite number")),
        ("a.csv", b'one,two,1\n"one"x,two,2\n', ("line 2", "quotes")),
        ("a.tsv", b"one,two,1\none,two,2\n", ("line 1", "1 fields")),
        ("a.csv", b"one,two,1\n", ("holds 1 pairs",)),
        ("a.csv", b"one,tw\xff,1\n", ("not UTF-8",)),
        ("a.csv.gz", b"one,two,1\n", ("no whole compressed file",)),
        ("a.csv.gz", gzip.compress(b"one,two,1\nthree,four,2\n", mtime=0)[:-12], ("no whole compressed file",)),
        ("a.txt", b"one two 1\n", (".csv or .tsv",)),
    ],
)
def test_read_pairs_mistakes(tmp_path, name, content, parts):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError) as error:
    similarity.read_pairs(str(tmp_path / name))
  for part in parts:
    assert part in str(error.value)
  with pytest.raises(UserError, match="no such file"):
    similarity.read_pairs(str(tmp_path / "b.csv"))


# --- the command -------------------------------------------------------------------------------------------------------------


def saved_run(workdir):
  """A run of a masked language model, as training leaves it."""
  config = load(tiny.write_config(workdir), ["data.length=16", "model.layers=1"])
  cfg, tokens = configs.typed(config), tokenizer()
  tokens.save(os.path.join(workdir, TOKENIZER))
  objective = configs.make(cfg.objective, tokens.vocab, cfg.data.length)
  params = drawn.parameters(configs.make(cfg.model, tokens.vocab.size, objective.heads, cfg.data.length))
  checkpoints = Checkpoints(workdir, cfg.checkpoint)
  checkpoints.save(TrainState(np.int32(2), params, {}, {}, jax.random.key(0)), {"step": 2, "tokenizer": tokens.digest}, None)
  checkpoints.close()
  pathlib.Path(workdir, "config.json").write_text(configs.record(config))


def test_command(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
  workdir = str(tmp_path)
  saved_run(workdir)
  pairs = tmp_path / "pairs.tsv"
  pairs.write_text("".join(f"{pair.first}\t{pair.second}\t{pair.score}\n" for pair in PAIRS))

  def call(*arguments):
    for name in evaluate.FLAGS:
      evaluate.FLAGS[name].unparse()
    monkeypatch.setattr(sys, "argv", ["evaluate", f"--workdir={workdir}", *arguments])
    with pytest.raises(SystemExit) as end:
      command(evaluate.main)
    return end.value.code, *capsys.readouterr()

  status, out, _ = call("--evals=similarity", f"--data={pairs}")
  assert status == 0 and "spearman" in out and "embedding mean of the last hidden states" in out and "cut 2" in out
  entry = json.loads(pathlib.Path(workdir, "evaluations.json").read_text())[f"similarity of {pairs}"]
  score = entry["scores"]["spearman"]
  assert -100 <= score["low"] <= score["value"] <= score["high"] <= 100 and entry["settings"]["rows"] == len(PAIRS)
  other = call("--evals=similarity", f"--data={pairs}", "--batch_size=3")[1]
  assert other.splitlines()[1] == out.splitlines()[1]
  for arguments in (["--evals=similarity"], ["--evals=similarity,loss", f"--data={pairs}"]):
    status, _, err = call(*arguments)
    assert status == 2 and "scored alone, with --data=FILE" in err
  status, _, err = call("--evals=similarity", "--data=absent.csv")
  assert status == 2 and "absent.csv" in err
