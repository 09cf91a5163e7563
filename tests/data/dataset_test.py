"""Token datasets: read back what was written, across pages, by us and by TFDS."""

import os
import subprocess
import sys

import numpy as np
import pytest

from research.core.errors import UserError
from research.core.types import Vocab
from research.data import dataset
from research.data.dataset import PAGE, TokenSplit


def vocabulary(size):
  return Vocab(size, {}, np.ones(size, bool), np.arange(size, dtype=np.int32) % 5)


def documents(vocab_size=1000, lengths=(5, PAGE + 100, 1, PAGE - 106, 7, 0, 3 * PAGE, 40)):
  rng = np.random.default_rng(0)  # the fourth ends exactly at a page border
  return [rng.integers(0, vocab_size, n).astype(np.int32) for n in lengths]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp("data") / "tokens")
  dataset.write(folder, {"train": documents(), "valid": documents()[:1]}, vocabulary(1000))
  return folder


@pytest.mark.parametrize("in_memory", [0, dataset.IN_MEMORY])
def test_reads_back(written, monkeypatch, in_memory):
  monkeypatch.setattr(dataset, "IN_MEMORY", in_memory)
  split, whole = TokenSplit(written, "train"), np.concatenate(documents())
  assert split.tokens == len(whole) and split.bytes == (whole % 5).sum()
  np.testing.assert_array_equal(split.document_ends, np.cumsum([len(d) for d in documents()]))
  assert 2 * PAGE in split.document_ends, "the case of a document that ends with its page is in this test"
  rng = np.random.default_rng(1)
  starts = [0, PAGE - 1, PAGE, 2 * PAGE - 3, split.tokens - 1, *rng.integers(0, split.tokens, 50)]
  for start in starts:
    for stop in (start, start + 1, start + 129, start + PAGE + 5, split.tokens):
      stop = min(int(stop), split.tokens)
      found = split.read(int(start), stop)
      assert found.dtype == np.int32
      np.testing.assert_array_equal(found, whole[start:stop])


def test_tfds_reads_it(written):
  import tensorflow_datasets as tfds

  pages = tfds.builder_from_directory(written).as_data_source("train")
  np.testing.assert_array_equal(np.concatenate([page["tokens"] for page in pages]), np.concatenate(documents()))
  assert [len(page["tokens"]) for page in pages][:-1] == [PAGE] * (len(pages) - 1)


def test_without_the_table_of_ends(written, tmp_path):
  import shutil

  folder = shutil.copytree(written, tmp_path / "copy")
  os.remove(folder / "train.document_ends.npy")
  np.testing.assert_array_equal(TokenSplit(str(folder), "train").document_ends, TokenSplit(written, "train").document_ends)


@pytest.mark.parametrize("size, dtype", [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_the_largest_id_fits(tmp_path, size, dtype):
  import tensorflow_datasets as tfds

  folder = str(tmp_path / "tokens")
  dataset.write(folder, {"train": [np.array([size - 1, 0])]}, vocabulary(size))
  assert TokenSplit(folder, "train").read(0, 2).tolist() == [size - 1, 0]
  assert tfds.builder_from_directory(folder).info.features["tokens"].np_dtype == dtype


def test_reading_needs_no_tensorflow(written):
  code = f"import sys; from research.data.dataset import TokenSplit; TokenSplit({written!r}, 'train'); print('tensorflow' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_who_comes_second_leaves_the_first_alone(written):
  before = sorted(os.listdir(written))
  dataset.write(written, {"train": documents(), "valid": documents()[:1]}, vocabulary(1000))
  assert sorted(os.listdir(written)) == before
  assert not [name for name in os.listdir(os.path.dirname(written)) if name.startswith(".writing-")]


def test_an_error_on_the_way_leaves_nothing(tmp_path):
  def broken():
    yield np.arange(5)
    raise UserError("line 7 is not JSON")

  with pytest.raises(UserError, match="line 7 is not JSON"):
    dataset.write(str(tmp_path / "tokens"), {"train": broken()}, vocabulary(10))
  with pytest.raises(UserError, match="'valid' has no tokens"):
    dataset.write(str(tmp_path / "tokens"), {"train": [np.arange(5)], "valid": []}, vocabulary(10))
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9])
def test_a_file_that_was_cut_off(written, tmp_path, keep):
  import shutil

  folder = shutil.copytree(written, tmp_path / "copy")
  path = next(path for path in folder.iterdir() if "train.array_record" in path.name)
  path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
  with pytest.raises(UserError, match=r"copy \(train\) cannot be read"):
    TokenSplit(str(folder), "train")


def test_changed_bytes_are_noticed(written, tmp_path):
  import shutil

  folder, whole = shutil.copytree(written, tmp_path / "copy"), np.concatenate(documents())
  path = next(path for path in folder.iterdir() if "train.array_record" in path.name)
  good = path.read_bytes()
  refused = 0
  for at in np.linspace(1000, len(good) - 1000, 12).astype(int):
    path.write_bytes(good[:at] + bytes([good[at] ^ 255]) + good[at + 1 :])
    try:
      np.testing.assert_array_equal(TokenSplit(str(folder), "train").read(0, len(whole)), whole)  # a byte of padding
    except UserError as error:
      assert "cannot be read" in str(error)
      refused += 1
  assert refused > 3


def test_no_such_split(written):
  with pytest.raises(UserError, match="nope"):
    TokenSplit(written, "nope")
