"""The data component: from text to rows, and what decides which rows come."""

import dataclasses
import math
import os

import numpy as np
import pytest

from research.core.errors import UserError
from research.core.types import Field
from research.data import text, tokenizer
from research.data.sources import files, synthetic
from research.data.stream import Mixed
from research.data.unigram import unigram


def spec(width):
  return {name: Field((width,), "int32", ("length",), name) for name in ("tokens", "segments")}


def quiet(message):
  del message


def config(**changes):
  sources = {"a": synthetic.Config(documents=60), "b": synthetic.Config(documents=20, seed=1)}
  return text.Config(**{"sources": sources, "tokenizer": tokenizer.Config(kind="character"), "length": 32} | changes)


def rows_of(rows, n):
  return np.stack([rows[i]["tokens"] for i in range(n)])


def test_tiny_shakespeare(tmp_path):
  cfg = text.Config(tokenizer=tokenizer.Config(kind="character"), length=128)
  prepared = text.prepare(cfg, str(tmp_path), quiet)
  counts = prepared.summary["text"]
  assert counts["train"].pop("duplicate_lines") < 0.01
  assert counts["train"] == {"documents": 1, "tokens": 1_003_855, "bytes": 1_003_854}  # the customary split, and one end-of-text
  assert counts["valid"] == {"documents": 1, "tokens": 111_541, "bytes": 111_540}
  assert prepared.vocab.size == tokenizer.FIRST + 65
  start = prepared.splits["text"]["train"].read(0, 13)
  assert prepared.tokenizer.decode(start) == "First Citizen"


@pytest.mark.parametrize("layout", ["chunk", "pack"])
@pytest.mark.parametrize("overlap", [0, 1])
def test_validation_covers_every_source_whole(tmp_path, layout, overlap):
  cfg = config(layout=layout, isolate=layout == "pack")
  prepared = text.prepare(cfg, str(tmp_path), quiet)
  rows = text.valid_rows(prepared, cfg, spec(32 + overlap))
  found = np.zeros(prepared.vocab.size, np.int64)
  for i in range(len(rows)):
    row = rows[i]
    target = row["segments"][overlap:] > 0
    if overlap:  # the first token of a segment has nothing before it
      target &= row["segments"][1:] == row["segments"][:-1]
    found += np.bincount(row["tokens"][overlap:][target], minlength=prepared.vocab.size)
  expected = np.zeros_like(found)
  for splits in prepared.splits.values():
    split = splits["valid"]
    whole = split.read(0, split.tokens)
    firsts = [] if not overlap else [0] if layout == "chunk" else [0, *split.document_ends[:-1]]
    expected += np.bincount(np.delete(whole, firsts), minlength=prepared.vocab.size)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("layout", ["chunk", "pack"])
def test_training_rows_are_text_of_the_split(tmp_path, layout):
  cfg = config(layout=layout, isolate=layout == "pack", sources={"a": synthetic.Config(documents=40, words=(2, 20))})
  prepared = text.prepare(cfg, str(tmp_path), quiet)
  split = prepared.splits["a"]["train"]
  whole = split.read(0, split.tokens).tobytes()
  for row in (text.train_rows(prepared, cfg, spec(33))[i] for i in range(40)):
    for segment in range(1, row["segments"].max() + 1):
      assert row["tokens"][row["segments"] == segment].tobytes() in whole


def test_the_grid_of_windows_moves_from_epoch_to_epoch(tmp_path):
  cfg = config(sources={"a": synthetic.Config(documents=40, lexicon=2000, followers=50)})
  prepared = text.prepare(cfg, str(tmp_path), quiet)
  split, rows = prepared.splits["a"]["train"], text.train_rows(prepared, cfg, spec(33))
  whole, grid = split.read(0, split.tokens), []
  for epoch in range(64):
    found = rows[epoch * rows._n]["tokens"]
    starts = [i for i in np.flatnonzero(whole[:-32] == found[0]) if np.array_equal(whole[i : i + 33], found)]
    assert len(starts) == 1
    grid.append(starts[0] % 32)
  assert sorted(grid[:32]) == sorted(grid[32:]) == list(range(32)), "every shift once before one comes again"


def test_mixture_by_tokens_and_by_weights(tmp_path):
  cfg = config(tokenizer=tokenizer.Config(kind="byte"))
  prepared = text.prepare(cfg, str(tmp_path), quiet)
  sizes = [counts["train"]["tokens"] for counts in prepared.summary.values()]
  for weights, share in (({}, sizes[1] / sum(sizes)), ({"a": 1.0, "b": 3.0}, 0.75)):
    mixed = text.train_rows(prepared, dataclasses.replace(cfg, weights=weights), spec(33))
    assert abs(np.mean(mixed._which == 1) - share) < 2 / Mixed.PERIOD


def test_a_source_too_small_to_mix_in(tmp_path):
  cfg = config(weights={"a": 1.0, "b": 1e-6})
  with pytest.raises(UserError, match="'b' has less than 1/16384 of the rows"):
    text.train_rows(text.prepare(cfg, str(tmp_path), quiet), cfg, spec(33))


def test_order_depends_on_the_seed_alone(tmp_path):
  cfg = config()
  prepared = text.prepare(cfg, str(tmp_path), quiet)
  again = text.prepare(cfg, str(tmp_path), quiet)
  same, other = text.train_rows(again, cfg, spec(33)), text.train_rows(prepared, dataclasses.replace(cfg, seed=1), spec(33))
  rows = rows_of(text.train_rows(prepared, cfg, spec(33)), 60)
  np.testing.assert_array_equal(rows, rows_of(same, 60))
  assert (rows != rows_of(other, 60)).any(axis=1).mean() > 0.9


def test_the_digest_names_what_decides_the_rows(tmp_path):
  cfg = config()
  variants = [
    cfg,
    dataclasses.replace(cfg, seed=1),
    dataclasses.replace(cfg, length=64),
    dataclasses.replace(cfg, layout="pack"),
    dataclasses.replace(cfg, isolate=True),
    dataclasses.replace(cfg, append_eos=False),
    dataclasses.replace(cfg, prepend_bos=True),
    dataclasses.replace(cfg, weights={"a": 1.0, "b": 1.0}),
    dataclasses.replace(cfg, tokenizer=tokenizer.Config(kind="byte")),
    dataclasses.replace(cfg, sources={"a": synthetic.Config(documents=61), "b": synthetic.Config(documents=20, seed=1)}),
  ]
  digests = [text.prepare(variant, str(tmp_path), quiet).digest for variant in variants]
  assert len(set(digests)) == len(variants)
  assert text.prepare(cfg, str(tmp_path / "elsewhere"), quiet).digest == digests[0]


def test_what_was_written_is_found_again(tmp_path):
  said = []
  text.prepare(config(), str(tmp_path), said.append)
  assert len(said) == 3, "the vocabulary and two token datasets"
  text.prepare(config(), str(tmp_path), said.append)
  text.prepare(config(seed=5, length=16, layout="pack"), str(tmp_path), said.append)
  assert len(said) == 3


def test_a_vocabulary_sees_every_source(tmp_path):
  sources = {}
  for name, line in (("first", "aaaa bbbb"), ("second", "zebra stripes")):
    (tmp_path / name).write_text(f"{line}\n" * 500)
    sources[name] = files.Config((str(tmp_path / name),), documents="line")
  cfg = text.Config(sources=sources, tokenizer=tokenizer.Config(vocab_size=400, sample=1000), length=16)
  tokens = text.prepare(cfg, str(tmp_path / "out"), quiet).tokenizer
  assert len(tokens.encode("zebra stripes")) == 2, "the sample is not taken from the first source alone"


def test_separators(tmp_path):
  path = tmp_path / "lines.txt"
  path.write_text("ab\ncd\nef\n")
  source = files.Config((str(path),), documents="line")
  cfg = text.Config({"t": source}, tokenizer=tokenizer.Config(kind="byte"), length=4, prepend_bos=True)
  prepared = text.prepare(cfg, str(tmp_path / "out"), quiet)
  train = prepared.splits["t"]["train"]
  assert [prepared.tokenizer.token(i) for i in train.read(0, train.tokens)] == ["<bos>", "a", "b", "<eos>", "<bos>", "c", "d", "<eos>"]
  assert train.document_ends.tolist() == [4, 8] and train.bytes == 4


def test_texts_of_ones_own(tmp_path):
  tokens = tokenizer.train(tokenizer.Config(kind="byte"), [])
  rows = text.text_rows(tokens, config(isolate=True), ["one text " * 9, "and another"], spec(33))
  row = rows[len(rows) - 1]
  assert tokens.decode(np.concatenate([rows[i]["tokens"][1 if i else 0 :] for i in range(len(rows))])) == "one text " * 9 + "and another"
  assert row["segments"][-1] == 0


def test_a_field_that_text_does_not_deliver(tmp_path):
  prepared = text.prepare(config(), str(tmp_path), quiet)
  with pytest.raises(UserError, match="asks for 'pixels'"):
    text.train_rows(prepared, config(), spec(33) | {"pixels": Field((8, 8), "uint8", (None, None), "an image")})
  with pytest.raises(UserError, match="rows of 99 tokens, but data.length is 32"):
    text.valid_rows(prepared, config(), spec(99))


def test_too_little_text(tmp_path):
  cfg = config(sources={"a": synthetic.Config(documents=1, words=(2, 3))}, length=512)
  with pytest.raises(UserError, match="fewer than a row of 513"):
    text.train_rows(text.prepare(cfg, str(tmp_path), quiet), cfg, spec(513))


def test_errors_of_a_source_come_through(tmp_path):
  path = tmp_path / "lines.jsonl"
  path.write_text('{"text": "one"}\n' * 3 + "{broken\n")
  for kind in ("byte", "character"):  # met while writing the dataset, and while training the vocabulary
    cfg = text.Config({"t": files.Config((str(path),))}, tokenizer=tokenizer.Config(kind=kind), length=4)
    with pytest.raises(UserError, match="line 4, is not JSON"):
      text.prepare(cfg, str(tmp_path / "out"), quiet)
  assert not [name for name in os.listdir(tmp_path / "out") if name.startswith((".writing", "tokens-"))]


def test_a_damaged_dataset_is_named(tmp_path):
  prepared = text.prepare(config(), str(tmp_path), quiet)
  assert prepared.summary
  folder = next(path for path in tmp_path.iterdir() if path.name.startswith("tokens-"))
  path = next(path for path in folder.iterdir() if "array_record" in path.name)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(UserError, match=folder.name):
    text.prepare(config(), str(tmp_path), quiet)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"length": 1}, "length"),
    ({"sources": {}}, "sources"),
    ({"weights": {"a": 1.0}}, "weights"),
    ({"weights": {"a": 1.0, "b": 0.0}}, "positive"),
  ],
)
def test_values_that_make_no_sense(changes, message):
  with pytest.raises(ValueError, match=message):
    config(**changes)


def test_unigram_baseline(tmp_path):
  cfg = config(tokenizer=tokenizer.Config(kind="byte"))
  prepared = text.prepare(cfg, str(tmp_path), quiet)
  base = unigram(prepared)
  assert 0 < base.loss < math.log(27) and 0 < base.accuracy < 1
  assert base.bits_per_byte == pytest.approx(base.loss / math.log(2)), "of bytes, a token is a byte"
