"""TFDS data sets, here one that is written on the spot."""

import pytest
import tensorflow_datasets

from research.core.errors import UserError
from research.data.sources.tfds import Config, make

TEXTS = [f"document {i} é" for i in range(10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  where = str(tmp_path_factory.mktemp("tfds"))

  class Toy(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
      features = tensorflow_datasets.features.FeaturesDict({"text": tensorflow_datasets.features.Text()})
      return tensorflow_datasets.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
      return {"train": ((i, {"text": text}) for i, text in enumerate(TEXTS))}

    def _generate_examples(self):
      raise NotImplementedError

  Toy(data_dir=where, file_format="array_record").download_and_prepare()
  return where


def test_reads_splits(folder):
  source = make(Config("toy", "train[:70%]", "train[70%:]", data_dir=folder))
  assert list(source.documents("train")) == TEXTS[:7] and list(source.documents("valid")) == TEXTS[7:]
  assert source.fingerprint() != make(Config("toy", "train[:60%]", "train[70%:]", data_dir=folder)).fingerprint()


def test_an_unknown_name(folder):
  with pytest.raises(UserError, match=r"no data set 'imdb_review/plain_text' \(near it: imdb_reviews"):
    make(Config("imdb_review/plain_text", data_dir=folder))


def test_an_unknown_split(folder):
  with pytest.raises(UserError, match="cannot give 'toy', split 'nope'"):
    list(make(Config("toy", "nope", data_dir=folder)).documents("train"))


def test_an_unknown_key(folder):
  with pytest.raises(UserError, match=r"have no 'body' \(there: text\): set text_key"):
    list(make(Config("toy", "train", text_key="body", data_dir=folder)).documents("train"))
