"""Minimal pairs: hand-made models whose judgements are known, the intervals, the files."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core import config as configs
from research.core.config import use
from research.core.errors import UserError
from research.data import pairs, text
from research.data.sources import files
from research.data.tokenizer import Tokenizer
from research.evals import minimal_pairs
from research.evals.minimal_pairs import Pair
from research.model.inputs import Output, Projection

LENGTH = 40
PAIRS = [
    Pair("order", "abab", "abba"),
    Pair("order", "ab" * 12, "ab" * 11 + "ba"),
    Pair("order", "ba", "ab"),
    Pair("tie", "aab", "aab"),
    Pair("long", "ab" * 19, "ab" * 18 + "aa"),
    Pair("long", "ab" * 30, "ba"),  # does not fit
]


class Wrapped(Tokenizer):
  """Bytes between the two tokens that BERT's texts stand between."""

  def wrap(self, ids):
    return np.array([self.special["cls"], *ids, self.special["sep"]], np.int32)


def tokenizer(kind=Tokenizer):
  return kind("byte", False, [bytes([b]) for b in range(256)])


def build(name="causal_lm", **changes):
  cfg = configs.typed(use(f"objectives.{name}", **changes))
  return lambda length: configs.make(cfg, tokenizer().vocab, length)


def bigram(table):
  """A model whose scores hang on the token before: table [V, V], next by previous."""

  def apply(params, inputs, *, read, **_):
    hidden = jax.nn.one_hot(inputs.tokens, len(table), dtype=jnp.float32)
    return Output({"lm": Projection(hidden, jnp.asarray(table), None)}, None, None, None, {}, {})

  return apply


def judge(table, batch_size=4, found=PAIRS, around=((), ())):
  make = minimal_pairs.make(minimal_pairs.Config(batch_size, 200), build(), tokenizer(), around, LENGTH)
  return make(bigram(table), None, found)


def alternating():
  """b after a and a after b are likelier than anything else."""
  ids = tokenizer()
  a, b = ids.encode("ab")
  table = np.zeros((ids.vocab.size,) * 2, np.float32)
  table[b, a] = table[a, b] = 3.0
  table[a, ids.special["eos"]] = 2.0  # a text begins with a
  return table


def test_a_model_that_likes_turns():
  scores, settings = judge(alternating(), around=([tokenizer().special["eos"]], []))
  assert settings == {"pairs": 5, "left_out": 1}
  assert {name: entry["value"] for name, entry in scores.items()} == pytest.approx({"order": 200 / 3, "tie": 0, "long": 100, "overall": 500 / 9})
  assert scores["order"]["low"] < scores["order"]["value"] < scores["order"]["high"] and scores["tie"]["high"] == 0


def test_the_opposite_model_judges_the_opposite():
  scores, _ = judge(-alternating(), around=([tokenizer().special["eos"]], []))
  assert scores["order"]["value"] == pytest.approx(100 / 3) and scores["long"]["value"] == 0


def test_the_sum_is_over_every_token_of_the_sentence_and_no_other(monkeypatch):
  """Against a loop over a random table; the batch changes nothing."""
  table = np.random.default_rng(0).standard_normal((tokenizer().vocab.size,) * 2).astype(np.float32)
  logp = np.asarray(jax.nn.log_softmax(table, axis=0), np.float64)
  eos, seen = tokenizer().special["eos"], {}
  logprobs = minimal_pairs._logprobs

  def kept(build, apply, params, rows, *rest):
    found = logprobs(build, apply, params, rows, *rest)
    seen.update({tuple(row.tolist()): value for row, value in zip(rows, found)})
    return found

  monkeypatch.setattr(minimal_pairs, "_logprobs", kept)
  for batch_size in (1, 4, 32):
    judge(table, batch_size, around=([eos], [eos]))
    assert len(seen) == 9
    for row, value in seen.items():
      assert row[0] == row[-1] == eos and value == pytest.approx(sum(logp[after, before] for before, after in zip(row, row[1:])), rel=1e-5)


def test_what_surrounds_a_sentence():
  plain, special = tokenizer(), tokenizer().special
  around = lambda tokens, data: minimal_pairs.surroundings(tokens, data)
  assert around(plain, text.Config()) == ([special["eos"]], [])
  assert around(plain, text.Config(prepend_bos=True)) == ([special["bos"]], [])
  assert around(plain, text.Config(append_eos=False)) == ([], [])
  assert around(plain, pairs.Config()) == around(tokenizer(Wrapped), text.Config()) == ([special["cls"]], [special["sep"]])


def test_objectives_without_a_likelihood_are_refused():
  with pytest.raises(UserError, match="defines no likelihood"):
    minimal_pairs.make(minimal_pairs.Config(), build("contrastive"), tokenizer(), ((), ()), LENGTH)
  with pytest.raises(UserError, match="no pair fits"):
    judge(alternating(), found=PAIRS[-1:])


def test_intervals_hold_the_truth_as_often_as_they_say():
  rng, hits = np.random.default_rng(0), 0
  for _ in range(200):
    right = (rng.random(120) < 0.7).astype(float)
    entry = minimal_pairs.summarize(["a"] * 60 + ["b"] * 60, right, 300)["overall"]
    hits += entry["low"] <= 70 <= entry["high"]
  assert hits >= 180


# --- the files ---------------------------------------------------------------------------------------------------------------


def line(good, bad, **more):
  return json.dumps({"sentence_good": good, "sentence_bad": bad, **more}) + "\n"


def test_read_pairs(tmp_path):
  first, second = line("é a", "b", UID="named"), "\n" + line("c", "d")
  expected = [Pair("named", "é a", "b"), Pair("two", "c", "d")]
  (tmp_path / "one.jsonl").write_text(first)
  (tmp_path / "two.jsonl.gz").write_bytes(gzip.compress(second.encode()))
  (tmp_path / "README").write_text("not read")
  assert minimal_pairs.read_pairs(str(tmp_path)) == expected
  assert minimal_pairs.read_pairs(str(tmp_path / "two.jsonl.gz")) == expected[1:]
  with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as archive:
    for name, content in (("x/two.jsonl", second), ("x/one.jsonl", first), ("x/notes.txt", "not read")):
      item = tarfile.TarInfo(name)
      item.size = len(content.encode())
      archive.addfile(item, io.BytesIO(content.encode()))
  assert minimal_pairs.read_pairs(str(tmp_path / "all.tar.gz")) == expected


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.jsonl", b'{"sentence_good": "a"}\n', ("a.jsonl, line 1", "sentence_bad")),
        ("a.jsonl", b'{"sentence_good": "a", "sentence_bad": "b"}\n{"sentence_good": "a", "sentence_bad": " "}\n', ("line 2", "must be texts")),
        ("a.jsonl", b"good\tbad\n", ("line 1", "no JSON object")),
        ("a.jsonl", b"[1]\n", ("line 1", "no JSON object")),
        ("a.jsonl", b"\n", ("holds no minimal pair",)),
        ("a.jsonl", b'{"sentence_good": "\xff"}\n', ("not UTF-8",)),
        ("a.jsonl.gz", b"{}\n", ("no whole compressed file",)),
        ("a.tar.gz", b"{}\n", ("no whole compressed file",)),
        ("a.txt", b"{}\n", (".jsonl",)),
    ],
)
def test_read_pairs_mistakes(tmp_path, name, content, parts):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError) as error:
    minimal_pairs.read_pairs(str(tmp_path / name))
  for part in parts:
    assert part in str(error.value)
  with pytest.raises(UserError, match="no such file"):
    minimal_pairs.read_pairs(str(tmp_path / "b.jsonl"))


def test_read_pairs_finds_the_data_sets():
  if not os.path.isdir(os.path.join(files.data_root(), "blimp")):
    pytest.skip(f"no BLiMP under {files.data_root()}")
  found = minimal_pairs.read_pairs("$RESEARCH_DATA/blimp/blimp_23.tar.gz")
  assert len(found) == 23_000 and len({pair.paradigm for pair in found}) == 23
