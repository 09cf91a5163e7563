"""Labelled records: how files are read, what rows hold, what is cut, and what a user is told."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter

import numpy as np
import pytest

from research.core import config as configs
from research.core.errors import UserError
from research.core.types import Field
from research.data import imported, records, tables, tokenizer
from research.data.sources.files import data_root


def spec(length, *names, **more):
  fields = {name: Field((length,), "int32", ("length",), name) for name in names}
  return fields | {name: Field(*value, name) for name, value in more.items()}


TEXT = ("tokens", "segments", "types")
LABEL = dict(label=((), "int32", ()))
SCORE = dict(label=((), "float32", ()))


def read(paths, cfg):
  return tables.read(paths, tables.Form(cfg.format, cfg.header, cfg.fields))


def config(folder, **changes):
  values = dict(tokenizer=configs.use("data.tokenizer", kind="byte"), length=12, train=(str(folder / "train.tsv"),), valid=(str(folder / "valid.tsv"),))
  return configs.typed(configs.use("data.records", **(values | changes)))


def write(folder, train="good\tyes\nbad\tno\nfine\tyes\n", valid="so so\tno\n", ending=".tsv"):
  for split, content in (("train", train), ("valid", valid)):
    (folder / f"{split}{ending}").write_text(content, encoding="utf-8")
  return folder


def prepared(cfg, folder):
  return records.prepare(cfg, str(folder / "out"), lambda line: None)


def text(tokens, row, name="tokens"):
  return tokens.decode(row[name])


def test_rows_hold_the_text_its_label_and_nothing_else(tmp_path):
  cfg = config(write(tmp_path))
  ready = prepared(cfg, tmp_path)
  rows = records.valid_rows(ready, cfg, spec(12, *TEXT, **LABEL))
  cls, sep, pad = (ready.tokenizer.special[name] for name in ("cls", "sep", "pad"))
  assert ready.labels == ("no", "yes") and len(rows) == 1 and rows.cut == 0
  row = rows[0]
  assert row["tokens"].tolist() == [cls, *ready.tokenizer.encode("so so"), sep, *[pad] * 5] and row["tokens"].dtype == np.int32
  assert row["segments"].tolist() == [1] * 7 + [0] * 5 and not row["types"].any()
  assert row["label"] == 0 and row["label"].dtype == np.int32 and row["label"].shape == ()


def test_a_pair_is_joined_and_loses_the_end_of_its_longer_text(tmp_path):
  write(tmp_path, "a\tb\tx\n", "abcdefghijk\tuvw\tx\nabc\tlmnopqrstuvw\tx\nabcdefgh\tstuvwxyz\tx\nab\tcd\tx\n")
  cfg = config(tmp_path, fields={"first": 0, "second": 1, "label": 2})
  ready = prepared(cfg, tmp_path)
  rows = records.valid_rows(ready, cfg, spec(12, *TEXT, **LABEL))
  ids = lambda a, b: [ready.tokenizer.special["cls"], *ready.tokenizer.encode(a), ready.tokenizer.special["sep"], *ready.tokenizer.encode(b), ready.tokenizer.special["sep"]]
  for row, (a, b) in zip((rows[i] for i in range(4)), [("abcdef", "uvw"), ("abc", "lmnopq"), ("abcde", "stuv"), ("ab", "cd")]):
    whole = ids(a, b)
    assert row["tokens"][: len(whole)].tolist() == whole
    assert row["types"].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * (12 - len(whole))
    assert row["segments"].sum() == len(whole)
  assert rows.cut == 3


def test_two_texts_apart_each_lose_their_own_end(tmp_path):
  write(tmp_path, "a\tb\t1\n", "abcdefghijklm\tuvw\t2.5\nab\tc\t0\n")
  cfg = config(tmp_path, fields={"first": 0, "second": 1, "score": 2})
  ready = prepared(cfg, tmp_path)
  two = {name: Field((2, 12), "int32", (None, "length"), name) for name in ("tokens", "segments")}
  rows = records.valid_rows(ready, cfg, two | spec(12, **SCORE))
  for row, texts, score in zip((rows[0], rows[1]), (("abcdefghijkl", "uvw"), ("ab", "c")), (2.5, 0)):
    for place, text in enumerate(texts):
      ids = ready.tokenizer.wrap(ready.tokenizer.encode(text))
      assert row["tokens"][place].tolist() == [*ids, *[ready.tokenizer.pad] * (12 - len(ids))]
      assert row["segments"][place].tolist() == [1] * len(ids) + [0] * (12 - len(ids))
    assert row["label"] == np.float32(score)
  assert rows.cut == 1


def test_lengths_of_a_cut_pair_are_those_of_the_loop():
  def loop(a, b, room):
    while a + b > room:
      a, b = (a - 1, b) if a > b else (a, b - 1)
    return a, b

  for a in range(12):
    for b in range(12):
      for room in range(14):
        assert records._longest_first(a, b, room) == loop(a, b, room)


def test_training_rows_are_a_function_of_seed_and_index_and_each_comes_once_an_epoch(tmp_path):
  cfg = config(write(tmp_path, "".join(f"text {i}\t{i % 3}\n" for i in range(20))), valid=(str(tmp_path / "train.tsv"),))
  ready = prepared(cfg, tmp_path)
  fields = spec(12, *TEXT, **LABEL)
  stream, again = records.train_rows(ready, cfg, fields), records.train_rows(ready, cfg, fields)
  seen = [text(ready.tokenizer, stream[i]) for i in range(60)]
  assert [text(ready.tokenizer, again[i]) for i in (59, 3, 40, 0)] == [seen[i] for i in (59, 3, 40, 0)]
  epochs = [seen[i : i + 20] for i in (0, 20, 40)]
  assert all(sorted(epoch) == sorted(f"text {i}" for i in range(20)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]
  assert all(int(stream[i]["label"]) == int(seen[i][5:]) % 3 for i in range(60)) and stream.cut == 0
  other = config(tmp_path, valid=cfg.valid, seed=1)
  assert [text(ready.tokenizer, records.train_rows(ready, other, fields)[i]) for i in range(20)] != epochs[0]
  assert prepared(other, tmp_path).digest != ready.digest == prepared(cfg, tmp_path / "elsewhere").digest


def test_scores(tmp_path):
  cfg = config(write(tmp_path, "a\tb\t0.5\nb\tc\t3\n", "a\ta\t5.0\n"), fields={"first": 0, "second": 1, "score": 2})
  ready = prepared(cfg, tmp_path)
  fields = spec(12, *TEXT, **SCORE)
  row = records.valid_rows(ready, cfg, fields)[0]
  assert row["label"] == 5 and row["label"].dtype == np.float32 and ready.labels == ()
  assert records.baseline(ready, cfg, fields) == ("mean", {"loss": pytest.approx((5 - 1.75) ** 2)})


CONLLU = "# id = 1\n1\tNew\tB-LOC\n2\tYork\tI-LOC\n2-3\tYork's\t_\n3\tis\tO\n\t\n1\tbig\tO\n"


@pytest.mark.parametrize(
    "ending, content, fields",
    [
        (".conll", "New\tB-LOC\nYork\tI-LOC\nis\tO\n\t\nbig\tO", {}),
        (".conll", "-DOCSTART- -X- O\n\nNew NNP B-LOC\nYork NNP I-LOC\nis VBZ O\n\nbig JJ O\n\n\n", {}),
        (".conllu", CONLLU, {"words": 1, "tags": 2}),
        (".jsonl", '{"w": ["New", "York", "is"], "t": ["B-LOC", "I-LOC", "O"]}\n{"w": "big", "t": "O"}\n', {"words": "w", "tags": "t"}),
    ],
)
def test_tags_stand_at_the_first_token_of_each_word(tmp_path, ending, content, fields):
  write(tmp_path, content, content, ending)
  cfg = config(tmp_path, train=(str(tmp_path / f"train{ending}"),), valid=(str(tmp_path / f"valid{ending}"),), fields=fields, length=14)
  ready = prepared(cfg, tmp_path)
  rows = records.valid_rows(ready, cfg, spec(14, "tokens", "segments", "tags"))
  assert ready.labels == ("B-LOC", "I-LOC", "O") and len(rows) == 2 and rows.cut == 0
  assert text(ready.tokenizer, rows[0]) == "New York is"
  assert rows[0]["tags"].tolist() == [-1, 0, -1, -1, 1, -1, -1, -1, -1, 2, -1, -1, -1, -1]
  assert rows[1]["tags"].tolist() == [-1, 2] + [-1] * 12
  short = records.encode(ready.splits["valid"], ready.tokenizer, 6, ready.labels, spec(6, "tokens", "segments", "tags"))
  assert short.cut == 1 and short[0]["tags"].tolist() == [-1, 0, -1, -1, 1, -1] and short[0]["segments"].tolist() == [1] * 6
  name, base = records.baseline(ready, cfg, spec(14, "tokens", "segments", "tags"))
  assert name == "majority" and base["accuracy"] == 0.5
  assert base["loss"] == pytest.approx(-sum(n * math.log((n + 1) / 7) for n in (1, 1, 2)) / 4)


def test_a_word_without_tokens_keeps_its_tag(tmp_path):
  (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]) + "\n")
  tokens = imported.load(str(tmp_path), say=lambda line: None)
  rows = records.encode([{"words": ["a", "\u200b", "b"], "tags": ["x", "y", "x"]}], tokens, 8, ("x", "y"), spec(8, "tokens", "segments", "tags"))
  assert rows[0]["tokens"].tolist() == [2, 5, 1, 6, 3, 0, 0, 0] and rows[0]["tags"].tolist() == [-1, 0, 1, 0, -1, -1, -1, -1]


@pytest.mark.parametrize(
    "post, expected, types",
    [
        (None, [2, 5, 3, 6, 3], [0, 0, 0, 1, 1]),
        ({"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}, [2, 5, 3, 6, 3], [0, 0, 0, 1, 1]),
        ({"type": "RobertaProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2], "trim_offsets": True, "add_prefix_space": False}, [2, 5, 3, 3, 6, 3], [0] * 6),
        ("template", [2, 5, 3, 6, 4], [0, 0, 0, 1, 1]),
    ],
)
def test_a_pair_is_joined_as_the_published_tokenizer_joins_it(tmp_path, post, expected, types):
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
  if post is None:
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    tokens = imported.load(str(tmp_path), say=lambda line: None)
  else:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    theirs = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    theirs.add_special_tokens(words[:5])
    if post == "template":
      pair = "[CLS]:0 $A:0 [SEP]:0 $B:1 [MASK]:1"
      theirs.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", pair, [("[CLS]", 2), ("[SEP]", 3), ("[MASK]", 4)])
    elif post["type"] == "BertProcessing":
      theirs.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    else:
      theirs.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
    theirs.save(str(tmp_path / "tokenizer.json"))
    tokens = imported.load(str(tmp_path), say=lambda line: None)
    found = theirs.encode("a", "b")
    assert found.ids == expected and found.type_ids == types, "the test's own expectation"
  ids, kinds = tokens.join(tokens.encode("a"), tokens.encode("b"))
  assert ids.tolist() == expected and kinds.tolist() == types
  ids, kinds = tokens.join(tokens.encode("a"))
  assert ids.tolist() == [2, 5, 3] and not kinds.any()


SEQUENCES = dict(source=((8,), "int32", ("length",)), source_segments=((8,), "int32", ("length",)))


@pytest.mark.parametrize("form", ["tsv", "jsonl", "parallel"])
def test_sources_and_targets(tmp_path, form):
  pairs = [("ein Hund", "a dog"), ("eine lange Zeile", "a very long line")]
  if form == "parallel":
    for column, name in enumerate(("de", "en")):
      with gzip.open(tmp_path / f"lines.{name}.gz", "wt") as file:
        file.write("".join(pair[column] + "\n" for pair in pairs))
    paths = (str(tmp_path / "lines.de.gz"), str(tmp_path / "lines.en.gz"))
  elif form == "jsonl":
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"source": a.split(), "target": [b, "another"]}) + "\n" for a, b in pairs))
    paths = (str(tmp_path / "a.jsonl"),)
  else:
    (tmp_path / "a.tsv").write_text("".join(f"{b}\t{a}\n" for a, b in pairs))
    paths = (str(tmp_path / "a.tsv"),)
  fields = {"tsv": {"source": 1, "target": 0}, "jsonl": {"source": "source", "target": "target"}, "parallel": {"source": 0, "target": 1}}[form]
  cfg = config(tmp_path, train=paths, valid=paths, fields=fields, format="parallel" if form == "parallel" else "auto")
  ready = prepared(cfg, tmp_path)
  asked = spec(12, "tokens", "segments", **SEQUENCES)
  rows = records.valid_rows(ready, cfg, asked)
  eos = ready.tokenizer.special["eos"]
  assert rows[0]["tokens"].tolist() == [*ready.tokenizer.encode("a dog"), eos, *[ready.tokenizer.pad] * 6]
  assert rows[0]["segments"].sum() == 6 and rows[0]["source_segments"].sum() == 8 and text(ready.tokenizer, rows[0], "source") == "ein Hund"
  assert text(ready.tokenizer, rows[1]) == "a very long" and rows[1]["tokens"][-1] == eos and rows.cut == 1
  name, base = records.baseline(ready, cfg, asked)
  assert name == "unigram" and 0 < base["loss"] < math.log(256) and 0 < base["accuracy"] < 1


def test_columns_by_name_and_quotes(tmp_path):
  (tmp_path / "train.csv").write_text('id,label,sentence\r\n1,pos,"so, ""good"""\r\n2,neg,bad\r\n', newline="")
  cfg = config(tmp_path, train=(str(tmp_path / "train.csv"),), valid=(str(tmp_path / "train.csv"),), fields={"first": "sentence", "label": "label"})
  assert read(cfg.train, cfg) == [{"first": 'so, "good"', "label": "pos"}, {"first": "bad", "label": "neg"}]
  numbers = config(tmp_path, train=cfg.train, valid=cfg.valid, fields={"first": 2, "label": 1}, header=True)
  assert read(cfg.train, numbers) == read(cfg.train, cfg)
  (tmp_path / "quote.tsv").write_text('she said "no\tneg\n')
  assert read((str(tmp_path / "quote.tsv"),), config(tmp_path)) == [{"first": 'she said "no', "label": "neg"}]


def test_a_file_of_its_own_is_read_with_the_classes_of_the_training(tmp_path):
  cfg = config(write(tmp_path))
  ready = prepared(cfg, tmp_path)
  (tmp_path / "other.tsv").write_text("well\tyes\n")
  rows = records.file_rows(ready.tokenizer, cfg, str(tmp_path / "other.tsv"), spec(12, *TEXT, **LABEL), ready.labels)
  assert len(rows) == 1 and rows[0]["label"] == 1
  turned = config(tmp_path, labels=("yes", "no"))
  assert records.valid_rows(prepared(turned, tmp_path), turned, spec(12, *TEXT, **LABEL))[0]["label"] == 1


def test_a_vocabulary_is_trained_once_on_the_training_texts(tmp_path):
  cfg = config(write(tmp_path), tokenizer=configs.use("data.tokenizer", kind="character"))
  said = []
  first = records.prepare(cfg, str(tmp_path / "out"), said.append)
  again = records.prepare(cfg, str(tmp_path / "out"), said.append)
  assert first.digest == again.digest and sum("training the character" in line for line in said) == 1
  assert any("train 3 records" in line and "no, yes" in line for line in said)
  assert first.tokenizer.vocab.size == tokenizer.FIRST + len(set("goodbadfine"))


@pytest.mark.parametrize(
    "train, changes, parts",
    [
        ("a\n", {}, ("line 1", "label", "data.fields.label")),
        ("", {}, ("no record", "train.tsv")),
        ("a\tb\n", dict(train=()), ("data.train is empty", "--config.data.train")),
        ("a\tb\n", dict(train=("absent.tsv",)), ("absent.tsv",)),
        ("a\tb\n", dict(fields={"first": "text", "label": 1}), ("no column 'text'", "data.fields.first")),
        ("a\tmany\n", dict(fields={"first": 0, "score": 1}), ("'many' is no finite number",)),
        ("[1, 2]\n", dict(format="jsonl"), ("no JSON object",)),
        ("{\n", dict(format="jsonl"), ("not JSON", "line 1")),
        ('a"b,"c\n', dict(format="csv"), ("line 1",)),
        ("word\n", dict(format="conll"), ("1 columns", "mend")),
        ("a\nb\n", dict(format="parallel", fields={"source": 0, "target": 1}), ("data.fields.target",)),
    ],
)
def test_mistakes(tmp_path, train, changes, parts):
  write(tmp_path, train)
  with pytest.raises(UserError) as error:
    prepared(config(tmp_path, **changes), tmp_path)
  for part in parts:
    assert part in str(error.value), error.value
  assert "\n" not in str(error.value)


def test_mistakes_of_the_objective(tmp_path):
  cfg = config(write(tmp_path, valid="so so\tperhaps\n"))
  ready = prepared(cfg, tmp_path)
  for fields, part in (
      (spec(12, *TEXT, **LABEL), "'perhaps' is none of the classes ('no', 'yes')"),
      (spec(12, *TEXT, **SCORE), "records with a 'score'"),
      (spec(12, "tokens", "segments", "images"), "'images'"),
      (spec(13, *TEXT, **LABEL), "rows of 13 tokens"),
  ):
    with pytest.raises(UserError, match="perhaps|score|images|13") as error:
      records.valid_rows(ready, cfg, fields)
    assert part in str(error.value)
  with pytest.raises(UserError, match="fields has no 'frist'. Did you mean 'first'"):
    config(tmp_path, fields={"frist": 0})
  with pytest.raises(UserError, match="labels names one twice"):
    config(tmp_path, labels=("a", "a"))


@pytest.mark.parametrize("split, path, count, entities", [("train", "wnut17train.conll.gz", 3394, 1975), ("valid", "emerging.dev.conll.gz", 1009, 836)])
def test_wnut17_is_read_whole(split, path, count, entities):
  import os

  full = os.path.join(data_root(), "ner_wnut17", path)
  if not os.path.isfile(full):
    pytest.skip(f"no {full}")
  found = read((f"$RESEARCH_DATA/ner_wnut17/{path}",), configs.typed(configs.use("data.records", fields={})))
  assert len(found) == count
  assert Counter(tag[0] for record in found for tag in record["tags"])["B"] == entities
