"""A token dataset: a TFDS dataset in array_record format whose records are pages of many thousand tokens.

A random chunk is then a slice of one or two pages, not a search. Each page carries the ends of the documents in it, and of their sentences where
these were told apart, relative to its start; the tables of all ends are kept beside the files (without them, they are read from the pages).
`tfds.builder_from_directory(folder)` reads the dataset too.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from research.core.errors import UserError
from research.core.types import Vocab

PAGE = 1 << 15  # tokens of a page
IN_MEMORY = 1 << 26  # a split of up to this many tokens (256 MiB) is read once and kept
SPLITS = ("train", "valid")
ENDS = ("document_ends", "sentence_ends")  # kinds of bounds


@contextlib.contextmanager
def arriving(folder: str) -> Iterator[str]:
  """A scratch folder in which `whole/` is made; it becomes `folder` at the end of the block, in one rename.

  Where another process was faster, its folder stays and ours is dropped: names are hashes of contents, so both hold the same.
  """
  parent = os.path.dirname(os.path.abspath(folder))
  os.makedirs(parent, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=parent, prefix=".writing-") as scratch:
    yield scratch
    try:
      os.rename(os.path.join(scratch, "whole"), folder)
    except OSError as error:
      if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
        raise


Document = np.ndarray | Sequence[np.ndarray]  # ids, whole or sentence by sentence


def write(folder: str, splits: Mapping[str, Iterable[Document]], vocab: Vocab) -> None:
  """Writes documents of token ids as a TFDS dataset; the folder appears whole or not at all.

  Raises:
    UserError: a split without tokens, which TFDS cannot hold; and whatever the documents raise.
  """
  import tensorflow_datasets as tfds

  dtype = np.uint16 if vocab.size <= 1 << 16 else np.uint32
  ends: dict[tuple[str, str], list[np.ndarray]] = {}

  class Tokens(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # its name may be taken: one process writes many
    """Pages of tokens."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      raw = dict(shape=(None,), encoding=tfds.features.Encoding.BYTES)
      features = {"tokens": tfds.features.Tensor(dtype=dtype, **raw), **{kind: tfds.features.Tensor(dtype=np.int32, **raw) for kind in ENDS}}
      return tfds.core.DatasetInfo(
          builder=self,
          features=tfds.features.FeaturesDict(features),
          description="Pages of tokens.",
          disable_shuffling=True,
          metadata=tfds.core.MetadataDict(bytes={}),
      )

    def _split_generators(self, dl_manager):
      del dl_manager
      return {name: self._generate_examples(name, documents) for name, documents in splits.items()}

    def _generate_examples(self, name, documents):
      pages, count = 0, 0
      ends.update({(name, kind): [np.zeros(0, np.int64)] for kind in ENDS})
      for tokens, within in _pages(documents):
        for kind in ENDS:
          ends[name, kind].append(within[kind] + np.int64(pages * PAGE))
        count += int(vocab.byte_length[tokens].sum())
        yield pages, {"tokens": tokens.astype(dtype), **within}
        pages += 1
      self.info.metadata["bytes"][name] = count
      if not pages:
        raise UserError(f"token dataset {folder}: split '{name}' has no tokens.")

  with arriving(folder) as scratch:
    builder = Tokens(data_dir=scratch, file_format="array_record")
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # its messages speak of downloads; who called says what is written
      builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=1))
    for (name, kind), found in ends.items():
      np.save(_table(builder.data_dir, name, kind), np.concatenate(found))
    os.rename(builder.data_dir, os.path.join(scratch, "whole"))


def _table(folder: str, split: str, kind: str) -> str:
  """The file of all ends of a split; what the pages say, found without reading them."""
  return os.path.join(folder, f"{split}.{kind}.npy")


def _pages(documents: Iterable[Document]) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
  """Cuts the documents into pages of PAGE tokens; ends, int32, are relative to the page."""
  held: list[np.ndarray] = []
  ends: dict[str, list[int]] = {kind: [] for kind in ENDS}
  size = 0

  def page() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    nonlocal held, size, ends
    whole = np.concatenate(held), {kind: np.array(found, np.int32) for kind, found in ends.items()}
    held, size, ends = [], 0, {kind: [] for kind in ENDS}
    return whole

  for tokens, closes in _parts(documents):
    while size + len(tokens) > PAGE:
      cut = PAGE - size
      held.append(tokens[:cut])
      yield page()
      tokens = tokens[cut:]
    held.append(tokens)
    size += len(tokens)
    for kind in closes:
      ends[kind].append(size)
  if size:
    yield page()


def _parts(documents: Iterable[Document]) -> Iterator[tuple[np.ndarray, tuple[str, ...]]]:
  """The pieces of the documents in their order, each with the kinds of ends that lie after it."""
  for document in documents:
    if isinstance(document, np.ndarray):
      yield document, ("document_ends",)
      continue
    for sentence in document:
      yield sentence, ("sentence_ends",)
    yield np.zeros(0, np.int32), ("document_ends",)


class TokenSplit:
  """One split of a token dataset, read by token offset."""

  def __init__(self, folder: str, split: str):
    import tensorflow_datasets as tfds

    self._where = f"{folder} ({split})"
    try:
      builder = tfds.builder_from_directory(folder)
      self.bytes = int(builder.info.metadata["bytes"][split])  # of the text that the tokens stand for
      self._pages = builder.as_data_source(split)
      self._table = functools.partial(_table, folder, split)
      self._document_ends = self._ends("document_ends")
    except Exception as error:  # whatever the readers raise for a file that was cut off
      raise self._damaged(error) from error
    self.tokens = int(self._document_ends[-1]) if len(self._document_ends) else 0
    self._all = np.concatenate([self._page(i) for i in range(len(self._pages))]) if 0 < self.tokens <= IN_MEMORY else None
    self._cached_page = functools.lru_cache(maxsize=64)(self._page)

  @property
  def document_ends(self) -> np.ndarray:
    """Offsets just past each document, int64, ascending; the last is the number of tokens."""
    return self._document_ends

  @functools.cached_property
  def sentence_ends(self) -> np.ndarray:
    """Offsets just past each sentence, int64, ascending; empty where the documents were written whole."""
    try:
      return self._ends("sentence_ends")
    except Exception as error:
      raise self._damaged(error) from error

  def read(self, start: int, stop: int) -> np.ndarray:
    """Tokens [start, stop), int32."""
    if self._all is not None:
      return self._all[start:stop]
    parts = [self._cached_page(page) for page in range(start // PAGE, -(-stop // PAGE))]
    first = start // PAGE * PAGE
    return np.concatenate(parts)[start - first : stop - first] if parts else np.zeros(0, np.int32)

  def _page(self, number: int) -> np.ndarray:
    try:
      return np.asarray(self._pages[number]["tokens"]).astype(np.int32)
    except Exception as error:
      raise self._damaged(error) from error

  def _ends(self, kind: str) -> np.ndarray:
    """The kept table, or, where that is missing, cut off or does not fit the pages, the one gathered from them."""
    count = len(self._pages)
    with contextlib.suppress(OSError, ValueError, EOFError):
      ends = np.load(self._table(kind))
      if ends.dtype == np.int64 and ends.ndim == 1 and len(ends) and (count - 1) * PAGE < ends[-1] <= count * PAGE:
        return ends
    return np.concatenate([np.asarray(self._pages[i][kind], np.int64) + i * PAGE for i in range(count)])

  def _damaged(self, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:120]
    return UserError(f"token dataset {self._where} cannot be read ({type(error).__name__}: {reason}): delete that folder and it is written anew.")
