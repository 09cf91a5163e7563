"""Pairs of texts: where they come from, how they are joined, how often the second follows the first."""

import dataclasses
import re

import numpy as np
import pytest

from research.core.errors import UserError
from research.core.types import Field
from research.data import dataset, pairs, sentences, tokenizer
from research.data.sources import files, synthetic


def spec(length, *names):
  shape = lambda name: () if name == "is_next" else (length,)
  return {name: Field(shape(name), "int32", (), name) for name in names or pairs.FIELDS}


def quiet(message):
  del message


def documents(seed):
  """400 documents of 1 to 11 sentences, `<document.sentence>` and some more."""
  rng = np.random.default_rng(seed)
  return [[f"<{d}.{s}>" + "x" * int(rng.integers(0, 15)) for s in range(int(rng.integers(1, 12)))] for d in range(400)]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
  folder = tmp_path_factory.mktemp("told")
  for name, seed in (("train", 0), ("valid", 1)):
    (folder / f"{name}.txt").write_text("\n\n".join("\n".join(document) for document in documents(seed)))
  source = files.Config(paths=(str(folder / "train.txt"),), valid_paths=(str(folder / "valid.txt"),), documents="paragraph")
  return {"sources": {"text": source}, "sentences": "lines", "tokenizer": tokenizer.Config(kind="character"), "directory": str(folder / "data")}


def texts(prepared, row):
  """The two texts of a row; its special tokens and types are where they should be."""
  special, there = prepared.tokenizer.special, row["segments"] > 0
  ids, types = row["tokens"][there].tolist(), row["types"]
  assert ids[0] == special["cls"] and ids[-1] == special["sep"] and ids.count(special["sep"]) == 2
  middle = ids.index(special["sep"])
  np.testing.assert_array_equal(types, (np.arange(len(types)) > middle) & there)
  return [prepared.tokenizer.decode(part) for part in (ids[1:middle], ids[middle + 1 : -1])]


@pytest.mark.parametrize("negatives", ["random", "swapped"])
def test_rows_are_neighbouring_sentences_or_unlike_ones(told, negatives):
  cfg = pairs.Config(**told, length=64, negatives=negatives, passes=2)
  prepared, known, whole = pairs.prepare(cfg, "", quiet), documents(0), 0
  rows = pairs.train_rows(prepared, cfg, spec(64))
  for i in range(400):
    row = rows[i]
    for name, array in row.items():
      np.testing.assert_array_equal(array, rows[i][name])  # a function of the index
    if row["segments"].all():
      continue  # it may be cut
    whole += 1
    found = []
    for text in texts(prepared, row):
      names = [(int(d), int(s)) for d, s in re.findall(r"<(\d+)\.(\d+)>", text)]
      assert text == "".join(known[d][s] for d, s in names) and names == [(names[0][0], names[0][1] + k) for k in range(len(names))]
      found.append(names)
    (d, s), first = found[0][-1], found[1][0]
    if row["is_next"]:
      assert first == (d, s + 1)
    elif negatives == "swapped":
      assert found[1][-1] == (found[0][0][0], found[0][0][1] - 1)
    else:
      assert first[0] != d
  assert whole > 100
  other = dataclasses.replace(cfg, seed=1)
  assert any((pairs.train_rows(prepared, other, spec(64))[i]["tokens"] != rows[i]["tokens"]).any() for i in range(4))
  assert pairs.prepare(other, "", quiet).digest != prepared.digest
  assert set(pairs.train_rows(prepared, cfg, spec(64, "tokens", "segments"))[0]) == {"tokens", "segments"}


@pytest.mark.parametrize("swapped", [False, True])
def test_half_of_the_second_texts_follow(swapped):
  lengths, ends = np.ones(120_000, int), np.arange(1, 601) * 200  # sentences of one token, so that rows hold two at least
  found = pairs.plan(lengths, ends, 60, 0.1, swapped, np.random.default_rng(0))
  chance = found[~((found[:, 1] - found[:, 0] == 1) & (found[:, 1] % 200 == 0))]  # the last sentence of a document has none that follows
  assert abs(chance[:, 4].mean() - 0.5) < 4 * 0.5 / len(chance) ** 0.5
  unlike = found[found[:, 4] == 0]
  assert ((unlike[:, 0] // 200 == unlike[:, 2] // 200) == swapped).all()
  follow = found[found[:, 4] == 1]
  np.testing.assert_array_equal(follow[:, 1], follow[:, 2])
  inside = follow[follow[:, 3] % 200 > 0]  # not ended by its document
  sizes = inside[:, 3] - inside[:, 0]
  short = np.unique(inside[sizes < 60, 0] // 200)
  assert sizes.max() == 60 and 30 <= len(short) <= 90  # a tenth of the documents


def test_every_sentence_is_a_first_or_a_following_text_once():
  """What a random second text displaces comes back in the next row."""
  rng = np.random.default_rng(1)
  lengths, ends = rng.integers(1, 30, 5000), np.unique(np.append(rng.integers(1, 5000, 300), 5000))
  for swapped in (False, True):
    seen = np.zeros(5000, int)
    for first, stop, second, second_stop, is_next in pairs.plan(lengths, ends, 61, 0.1, swapped, rng).tolist():
      seen[first:stop] += 1
      if is_next or swapped:
        seen[second:second_stop] += 1
    assert seen.max() == 1 and (swapped or seen.min() == 1)


def test_truncation_is_that_of_berts_loop():
  def loop(a, b, room, rng):
    a, b = list(a), list(b)
    while len(a) + len(b) > room:
      longer = a if len(a) > len(b) else b
      del longer[0 if rng.random() < 0.5 else -1]
    return a, b

  rng = np.random.default_rng(0)
  fronts = []
  for size_a, size_b, room in [(5, 5, 12), (9, 4, 8), (4, 9, 9), (30, 1, 7), (8, 8, 9), (50, 50, 21)]:
    a, b = np.arange(size_a), 100 + np.arange(size_b)
    for _ in range(40):
      (x, y), (u, v) = pairs.truncated(a, b, room, rng), loop(a, b, room, rng)
      assert (len(x), len(y)) == (len(u), len(v)) and x.tolist() == list(range(x[0], x[0] + len(x)))
      fronts.append((x[0] if size_a == 50 else 0, u[0] if size_a == 50 else 0))
  ours, theirs = np.sum(fronts, axis=0)
  assert abs(ours - theirs) < 5 * (40 * 40 / 4 * 2) ** 0.5


def test_errors(told, tmp_path):
  (tmp_path / "one.txt").write_text("A b. C d.")
  one = {**told, "sources": {"text": files.Config(paths=(str(tmp_path / "one.txt"),))}, "sentences": "rules", "directory": str(tmp_path / "data")}
  cfg = pairs.Config(**one, length=16)
  prepared = pairs.prepare(cfg, "", quiet)
  with pytest.raises(UserError, match="is one document"):
    pairs.train_rows(prepared, cfg, spec(16))
  with pytest.raises(UserError, match="asks for 'labels'"):
    pairs.train_rows(prepared, cfg, {**spec(16), "labels": Field((), "int32", (), "labels")})
  with pytest.raises(UserError, match="delivers 16 tokens"):
    pairs.train_rows(prepared, cfg, spec(17))


@pytest.mark.parametrize("text, expected", [
    ("Dr. Smith came. He left!\n  \"Why?\" she asked. I know. 3 men", ["Dr. Smith came.", " He left!", "\n  \"Why?\" she asked.", " I know.", " 3 men"]),
    ("One line\ngoes on here\n\nA heading\n\nText.  \n", ["One line\ngoes on here", "\n\nA heading", "\n\nText.  \n"]),
    ("J. R. Tolkien wrote. See e.g. Chapter 2 etc. and more...", ["J. R. Tolkien wrote.", " See e.g. Chapter 2 etc. and more..."]),
    ("吾輩は猫である。名前はまだ無い。", ["吾輩は猫である。", "名前はまだ無い。"]),
    (" \n ", []),
])  # fmt: skip
def test_sentences(text, expected):
  assert sentences.split(text) == expected


def test_sentence_bounds_survive_pages(tmp_path):
  rng = np.random.default_rng(0)
  page = dataset.PAGE
  lengths = [[3, page - 3, 5], [2 * page, 7], [], [1], [page - 13, 0, 4]]
  documents = [[rng.integers(0, 90, n).astype(np.int32) for n in document] for document in lengths]
  vocab = tokenizer.train(tokenizer.Config(kind="byte"), []).vocab
  dataset.write(str(tmp_path / "tokens"), {"train": documents}, vocab)
  split = dataset.TokenSplit(str(tmp_path / "tokens"), "train")
  np.testing.assert_array_equal(split.sentence_ends, np.cumsum([n for document in lengths for n in document]))
  np.testing.assert_array_equal(split.document_ends, np.cumsum([sum(document) for document in lengths]))
  (tmp_path / "tokens" / "train.sentence_ends.npy").unlink()
  np.testing.assert_array_equal(dataset.TokenSplit(str(tmp_path / "tokens"), "train").sentence_ends, split.sentence_ends)
  np.testing.assert_array_equal(split.read(0, split.tokens), np.concatenate([s for d in documents for s in d]))


def test_validation_is_cut_once(told):
  cfg = pairs.Config(**{**told, "sources": {"text": synthetic.Config(documents=50)}, "sentences": "rules"}, length=48, negatives="swapped")
  with pytest.raises(UserError, match="no document of the valid split has two sentences"):
    pairs.valid_rows(pairs.prepare(cfg, "", quiet), cfg, spec(48))
  cfg = pairs.Config(**told, length=64)
  rows = pairs.valid_rows(pairs.prepare(cfg, "", quiet), cfg, spec(64))
  np.testing.assert_array_equal(rows.plan, pairs.valid_rows(pairs.prepare(cfg, "", quiet), cfg, spec(64)).plan)
