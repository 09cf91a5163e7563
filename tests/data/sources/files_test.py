"""Local text: the forms it comes in, how it is split, and one sentence for each thing wrong with it."""

import gzip
import json

import pytest
import zstandard

from research.core.errors import UserError
from research.data.sources import files
from research.data.sources.files import Config, make

TEXT = "first line\r\nsecond é 😀\n\nthird\n"


def put(path, data):
  data = data.encode() if isinstance(data, str) else data
  data = gzip.compress(data) if path.suffix == ".gz" else zstandard.compress(data) if path.suffix == ".zst" else data
  path.write_bytes(data)
  return str(path)


def read(*paths, **keys):
  return list(files.read_all(paths, Config(**keys)))


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_forms(tmp_path, ending):
  assert read(put(tmp_path / f"a.txt{ending}", TEXT)) == [TEXT]
  lines = "".join(json.dumps({"text": t}) + "\n" for t in ("one", "two\nlines \0", "drei é"))
  assert read(put(tmp_path / f"b.jsonl{ending}", lines)) == ["one", "two\nlines \0", "drei é"]


def test_what_a_document_is(tmp_path):
  path = put(tmp_path / "a.txt", TEXT)
  assert read(path, documents="line") == ["first line", "second é 😀", "third"]
  assert read(path, documents="paragraph") == ["first line\r\nsecond é 😀", "third"]


def test_a_mark_at_the_start_is_no_text(tmp_path):
  assert read(put(tmp_path / "a.txt", "\ufeffab")) == ["ab"]


def test_zstd_of_several_frames(tmp_path):
  path = tmp_path / "a.txt.zst"
  path.write_bytes(zstandard.compress(b"one ") + zstandard.compress(b"two"))
  assert read(str(path)) == ["one two"]


def test_folders_and_globs(tmp_path):
  (tmp_path / "deep").mkdir()
  for name in ("b.txt", "a.txt.gz", "deep/c.jsonl", "picture.png"):
    put(tmp_path / name, '{"text": "c"}\n' if "json" in name else name)
  assert read(str(tmp_path)) == ["a.txt.gz", "b.txt", "c"]
  assert read(str(tmp_path / "*.txt*")) == ["a.txt.gz", "b.txt"]


def test_data_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("RESEARCH_DATA", str(tmp_path))
  put(tmp_path / "a.txt", "found")
  assert read("$RESEARCH_DATA/a.txt") == read("${RESEARCH_DATA}/a.txt") == ["found"]
  with pytest.raises(UserError, match="no text file at '.RESEARCH_DATA/b.txt'. Set RESEARCH_DATA"):
    read("$RESEARCH_DATA/b.txt")


def test_packaged_text_is_split_by_characters():
  source = make(Config())
  (train,), (valid,) = source.documents("train"), source.documents("valid")
  assert (len(train), len(valid)) == (1_003_854, 111_540)
  assert train.startswith("First Citizen:")


@pytest.mark.parametrize("n, fraction, validating", [(10, 0.1, 1), (10, 0.25, 3), (2, 0.01, 1), (2, 0.99, 1), (100, 0.1, 10)])
def test_the_last_documents_validate(tmp_path, n, fraction, validating):
  path = put(tmp_path / "a.txt", "\n".join(map(str, range(n))))
  source = make(Config((path,), documents="line", valid_fraction=fraction))
  train, valid = list(source.documents("train")), list(source.documents("valid"))
  assert train + valid == [str(i) for i in range(n)] and len(valid) == validating


def test_validation_files(tmp_path):
  source = make(Config((put(tmp_path / "a.txt", "train"),), (put(tmp_path / "b.txt", "valid"),)))
  assert list(source.documents("train")) == ["train"] and list(source.documents("valid")) == ["valid"]


def test_fingerprint(tmp_path):
  a, b, lines = put(tmp_path / "a.txt", "{}"), put(tmp_path / "b.txt", "two"), put(tmp_path / "a.jsonl", "{}")
  prints = [make(Config(*paths)).fingerprint() for paths in (((a,),), ((b,),), ((a, b),), ((b, a),), ((a,), (b,)), ((lines,),))]
  assert len(set(prints)) == len(prints), "contents, order, split and form each count"
  (tmp_path / "elsewhere").mkdir()
  assert make(Config((put(tmp_path / "elsewhere/c.txt.md", "two"),))).fingerprint() == prints[1], "the place does not"
  put(tmp_path / "b.txt", "three")
  assert make(Config((b,))).fingerprint() != prints[1]


@pytest.mark.parametrize(
  "name, data, message",
  [
    ("a.txt", b"", "'.*a.txt' is empty"),
    ("a.txt", b" \n\n", "'.*a.txt' is empty"),
    ("a.txt", b"abc\0def", r"is binary \(byte 3 is zero\)"),
    ("a.txt", "é".encode() * 700_000 + b"\xff" + b"y" * 10, "is not UTF-8 text .* at byte 1400000"),
    ("a.txt", b"abc\xc3", "is not UTF-8 text .* at byte 3"),
    ("a.txt.zst", b"ab\xff", "is not UTF-8 text .* at byte 2"),
    ("a.jsonl", b'{"text": "a"}\n{"text\n', "line 2, is not JSON"),
    ("a.jsonl", b'{"body": "a", "id": 1}\n', r"line 1, has no text under 'text' \(there: body, id\): set text_key"),
    ("a.jsonl", b'{"text": 5}\n', "line 1, has no text under 'text'"),
    ("a.jsonl", b'[1]\n', r"line 1, has no text under 'text' \(there: list\)"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "\\ud83d"}\n', "line 2, is no Unicode text"),
  ],
)  # fmt: skip
@pytest.mark.parametrize("documents", ["file", "line"])
def test_what_is_wrong_with_a_file(tmp_path, name, data, message, documents):
  path = put(tmp_path / name, data)
  with pytest.raises(UserError, match=message):
    read(path, documents=documents)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_broken_compression(tmp_path, ending):
  path = tmp_path / f"a.txt{ending}"
  put(path, "\n".join(str(i * i) for i in range(5000)))
  whole = path.read_bytes()
  for broken in (whole[: len(whole) // 2], whole[:-1], b"no such format"):
    path.write_bytes(broken)
    with pytest.raises(UserError, match=f"a.txt{ending}' is no whole compressed file"):
      read(str(path))


def test_no_file_there(tmp_path):
  with pytest.raises(UserError, match="no text file at '.*nothing.txt'"):
    make(Config((str(tmp_path / "nothing.txt"),)))
