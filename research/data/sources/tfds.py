"""Any TensorFlow Datasets name, read through `tfds.data_source` without TensorFlow."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Iterator

from research.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
  dataset: str = "lm1b"  # as in tfds.builder(…): name, name/config or name/config:version
  train_split: str = "train"  # any split expression, such as train[:90%]
  valid_split: str = "test"  # most data sets call it validation; lm1b has train and test
  text_key: str = "text"  # of a record
  data_dir: str | None = None  # where the data set is prepared; None: TFDS's own folder


class Dataset:
  """Documents of a TFDS data set."""

  def __init__(self, cfg: Config):
    import tensorflow_datasets as tfds

    self._cfg = cfg
    name = cfg.dataset.partition("/")[0].partition(":")[0]
    try:
      self._builder = tfds.builder(cfg.dataset, data_dir=cfg.data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
      known = tfds.list_builders(with_community_datasets=False)  # the community's list needs the network and TensorFlow
      near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.4)) or "see tfds.list_builders()"
      raise UserError(f"data: TFDS knows no data set '{cfg.dataset}' (near it: {near}).") from error
    except Exception as error:  # TFDS raises many types for a config or version that does not exist
      raise UserError(f"data: TFDS cannot open '{cfg.dataset}': {_first_line(error)}.") from error

  def documents(self, split: str) -> Iterator[str]:
    cfg = self._cfg
    wanted = cfg.train_split if split == "train" else cfg.valid_split
    try:
      self._builder.download_and_prepare()
      source = self._builder.as_data_source(wanted)
    except Exception as error:
      raise UserError(f"data: TFDS cannot give '{cfg.dataset}', split '{wanted}': {_first_line(error)}; prepare it once with "
                      "`tfds build` on a machine with access, and set data_dir.") from error  # fmt: skip
    for record in source:
      if cfg.text_key not in record:
        raise UserError(f"data: records of '{cfg.dataset}' have no '{cfg.text_key}' (there: {', '.join(record)}): set text_key.")
      text = record[cfg.text_key]
      text = text.decode("utf-8") if isinstance(text, bytes) else str(text)
      if text.strip():
        yield text

  def fingerprint(self) -> str:
    name = f"{self._builder.info.full_name} {self._cfg.train_split} {self._cfg.valid_split} {self._cfg.text_key}"
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def make(cfg: Config) -> Dataset:
  return Dataset(cfg)


def _first_line(error: Exception) -> str:
  text = (str(error) or type(error).__name__).strip().splitlines()[0]
  return text[:200].rstrip(".")
