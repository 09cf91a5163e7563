"""Groups of texts: tables and files side by side, what a row takes of a group, mistakes as one sentence."""

import gzip
import os

import numpy as np
import pytest

from research.core.errors import UserError
from research.core.types import Field
from research.data import groups, tokenizer
from research.data.sources import files


def spec(*shape):
  return {name: Field(shape, "int32", (), name) for name in ("tokens", "segments")}


def quiet(message):
  del message


def config(train, valid=None, **changes):
  train = tuple(map(str, train))
  base = dict(train=train, valid=train if valid is None else valid, tokenizer=tokenizer.Config(kind="byte"), length=8)
  return groups.Config(**{**base, **changes})


def texts(prepared, row):
  special = prepared.tokenizer.special["eos"]
  found = []
  for tokens, segments in zip(row["tokens"].reshape(-1, 8), row["segments"].reshape(-1, 8)):
    ids = tokens[segments > 0]
    assert not len(ids) or ids[-1] == special
    found.append(prepared.tokenizer.decode(ids))
  return found


@pytest.fixture
def lines(tmp_path):
  for name in "abc":
    (tmp_path / f"{name}.txt.gz").write_bytes(gzip.compress("".join(f"{name}{i}\n" for i in range(20)).encode()))
  return [tmp_path / f"{name}.txt.gz" for name in "abc"]


def test_files_side_by_side(lines, tmp_path):
  cfg = config(lines)
  prepared = groups.prepare(cfg, str(tmp_path / "data"), quiet)
  rows = groups.train_rows(prepared, cfg, spec(3, 8))
  assert {tuple(texts(prepared, rows[i])) for i in range(20)} == {(f"a{i}", f"b{i}", f"c{i}") for i in range(20)}
  assert texts(prepared, groups.valid_rows(prepared, cfg, spec(2, 8))[4]) == ["a4", "b4"]
  assert texts(prepared, groups.valid_rows(prepared, cfg, spec(8))[4]) == ["a4"]


def test_texts_are_drawn_anew_each_epoch(lines, tmp_path):
  cfg = config(lines, take="drawn")
  prepared = groups.prepare(cfg, str(tmp_path / "data"), quiet)
  rows, again = (groups.train_rows(prepared, cfg, spec(2, 8)) for _ in range(2))
  seen = {}
  for i in range(400):
    np.testing.assert_array_equal(rows[i]["tokens"], again[i]["tokens"])
    first, second = texts(prepared, rows[i])
    assert first[0] != second[0] and first[1:] == second[1:]
    seen.setdefault(first[1:], set()).add((first[0], second[0]))
  assert len(seen) == 20 and np.mean([len(orders) for orders in seen.values()]) > 5  # of six
  assert groups.prepare(config(lines), str(tmp_path / "data"), quiet).digest != prepared.digest


@pytest.mark.parametrize(("name", "content", "fields"), [
    ("a.tsv", "x\tan \"a\"\tp\tn\ny\tb\tq\t\n", ("1", "2", "3")),
    ("a.csv", 'x,"an ""a""",p,n\ny,b,q,\n', ("1", "2", "3")),
    ("a.jsonl", '{"s": "an \\"a\\"", "t": "p", "u": "n"}\n{"s": "b", "t": "q", "u": ""}\n', ("s", "t", "u")),
])  # fmt: skip
def test_tables(tmp_path, name, content, fields):
  (tmp_path / name).write_text(content)
  cfg = config([tmp_path / name], fields=fields)
  prepared = groups.prepare(cfg, str(tmp_path / "data"), quiet)
  rows = groups.valid_rows(prepared, cfg, spec(3, 8))
  assert [texts(prepared, rows[i]) for i in range(2)] == [['an "a"', "p", "n"], ["b", "q", ""]]
  assert not rows[1]["segments"][2].any()  # a hard negative that is not there


def test_a_long_text_keeps_its_end_of_text(tmp_path):
  (tmp_path / "a.txt").write_text("0123456789\n")
  cfg = config([tmp_path / "a.txt"])
  prepared = groups.prepare(cfg, str(tmp_path / "data"), quiet)
  assert texts(prepared, groups.valid_rows(prepared, cfg, spec(8))[0]) == ["0123456"]


def test_mistakes(lines, tmp_path):
  at = str(tmp_path / "data")
  with pytest.raises(UserError, match="data.valid names no file"):
    groups.prepare(config(lines, valid=()), at, quiet)
  with pytest.raises(UserError, match="no file 'absent.txt'"):
    groups.prepare(config(["absent.txt"]), at, quiet)
  (tmp_path / "short.txt").write_text("one\n")
  with pytest.raises(UserError, match=r"has 20, .*short.txt' has 1"):
    groups.prepare(config([lines[0], tmp_path / "short.txt"]), at, quiet)
  (tmp_path / "t.tsv").write_text("a\tb\nc\n")
  with pytest.raises(UserError, match="line 2, has 1 columns"):
    groups.prepare(config([tmp_path / "t.tsv"], fields=("0", "1")), at, quiet)
  with pytest.raises(UserError, match="numbers of columns"):
    groups.prepare(config([tmp_path / "t.tsv"], fields=("first",)), at, quiet)
  (tmp_path / "t.jsonl").write_text('{"s": "a"}\n')
  with pytest.raises(UserError, match="line 1: no JSON object with the keys s, t"):
    groups.prepare(config([tmp_path / "t.jsonl"], fields=("s", "t")), at, quiet)
  cfg = config(lines)
  prepared = groups.prepare(cfg, at, quiet)
  with pytest.raises(UserError, match="4 texts a row, but a group of the data has 3"):
    groups.train_rows(prepared, cfg, spec(4, 8))
  with pytest.raises(UserError, match="texts of 9 tokens"):
    groups.train_rows(prepared, cfg, spec(2, 9))


def test_the_data_sets(tmp_path):
  if not os.path.isdir(os.path.join(files.data_root(), "multi30k_captions")):
    pytest.skip(f"no captions under {files.data_root()}")
  found = groups.read_groups([f"$RESEARCH_DATA/multi30k_captions/val.{i}.en.gz" for i in range(1, 6)])
  assert len(found) == 1014 and {len(group) for group in found} == {5}
