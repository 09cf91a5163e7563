"""Local text: plain files and JSON lines, as they are or compressed with gzip or zstd."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import functools
import glob
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import Literal

from research.core.errors import UserError

PACKAGE = "package:"  # a text that ships with this package
DATA = "RESEARCH_DATA"  # the environment variable that names the folder of data sets
_HALF = re.compile("[\ud800-\udfff]")  # surrogates: JSON can write one alone, no encoding can
ENDINGS = (".txt", ".md", ".jsonl", ".json")


@dataclasses.dataclass(frozen=True)
class Config:
  paths: tuple[str, ...] = ("package:tinyshakespeare.txt.gz",)  # files, folders or globs; $RESEARCH_DATA and package: are understood
  valid_paths: tuple[str, ...] = ()  # the validation split; empty: the end of `paths`
  valid_fraction: float = 0.1  # share of the documents (of the characters, where there is one document) at the end that validates
  documents: Literal["file", "line", "paragraph"] = "file"  # what a document of a plain text file is; of JSON lines it is a line
  text_key: str = "text"  # of a JSON line

  def __post_init__(self):
    if not 0 < self.valid_fraction < 1:
      raise ValueError(f"valid_fraction must lie between 0 and 1; got {self.valid_fraction}")


def data_root() -> str:
  """The folder of data sets: $RESEARCH_DATA, or shared/data beside this checkout."""
  here = os.path.abspath(__file__)
  for _ in range(4):
    here = os.path.dirname(here)
  return os.environ.get(DATA) or os.path.join(os.path.dirname(here), "shared", "data")


class Files:
  """Documents of the train and valid splits."""

  def __init__(self, cfg: Config):
    self._cfg = cfg
    self._train, self._valid = expand(cfg.paths), expand(cfg.valid_paths)

  def documents(self, split: str) -> Iterator[str]:
    """The texts of 'train' or 'valid', in the order of the files.

    Raises:
      UserError: a file that is empty, no UTF-8, cut off, or not the JSON lines it should be.
    """
    if self._valid:
      yield from _read(self._train if split == "train" else self._valid, self._cfg)
      return
    count, share = self._count, 1 - self._cfg.valid_fraction
    if count == 1:
      only = next(_read(self._train, self._cfg))
      cut = int(share * len(only))
      yield only[:cut] if split == "train" else only[cut:]
      return
    cut = min(count - 1, max(1, int(share * count)))
    for i, document in enumerate(_read(self._train, self._cfg)):
      if (i < cut) == (split == "train"):
        yield document

  @functools.cached_property
  def _count(self) -> int:
    """Documents of the train files: a first pass over them, once."""
    return sum(1 for _ in _read(self._train, self._cfg))

  def fingerprint(self) -> str:
    """Names the contents: a hash over every file's bytes, how it is read, and which split it belongs to."""
    total = hashlib.sha256()
    for split, paths in (("train", self._train), ("valid", self._valid)):
      for path in paths:
        total.update(f"{split} {'lines' if _is_lines(path) else 'text'}".encode())
        with open(path, "rb") as file:
          total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def make(cfg: Config) -> Files:
  return Files(cfg)


def resolved(path: str) -> str:
  """A path with `package:`, $RESEARCH_DATA and ~ written out."""
  if path.startswith(PACKAGE):
    return os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "texts", path[len(PACKAGE) :])
  if f"${DATA}" in path or f"${{{DATA}}}" in path:
    path = path.replace(f"${{{DATA}}}", data_root()).replace(f"${DATA}", data_root())
  return os.path.expanduser(path)


def expand(paths: tuple[str, ...]) -> list[str]:
  """The files that paths, folders and globs name, in order.

  Raises:
    UserError: one that names no file.
  """
  found = []
  for path in paths:
    full = resolved(path)
    if os.path.isdir(full):
      names = (os.path.join(root, name) for root, _, names in os.walk(full) for name in names)
      here = sorted(name for name in names if name.removesuffix(".gz").removesuffix(".zst").endswith(ENDINGS))
    else:
      here = [full] if os.path.isfile(full) else sorted(name for name in glob.glob(full, recursive=True) if os.path.isfile(name))
    if not here:
      hint = f" Set {DATA} to the folder of your data sets (now {data_root()})." if DATA in path else ""
      raise UserError(f"data: no text file at '{path}'.{hint}")
    found += here
  return found


def _is_lines(path: str) -> bool:
  return path.removesuffix(".gz").removesuffix(".zst").endswith((".jsonl", ".json"))


def _read(paths: list[str], cfg: Config) -> Iterator[str]:
  for path in paths:
    yield from read(path, cfg)


def read_all(paths: tuple[str, ...], cfg: Config) -> Iterator[str]:
  """The documents of files, folders or globs, in order."""
  return _read(expand(paths), cfg)


def read(path: str, cfg: Config) -> Iterator[str]:
  """The documents of one file."""
  lines = _is_lines(path)
  empty = True
  with opened(path) as file:
    if lines:
      documents = _json_lines(path, file, cfg.text_key)
    elif cfg.documents == "file":
      documents = iter([file.read()])
    elif cfg.documents == "line":
      documents = (line.rstrip("\r\n") for line in file)
    else:
      documents = _paragraphs(file)
    for document in documents:
      if document.strip():
        if "\0" in document and not lines:
          raise UserError(f"data: '{path}' is binary (byte {_first_bad(path)} is zero), not text.")
        empty = False
        yield document
  if empty:
    raise UserError(f"data: '{path}' is empty: name a file that holds text.")


@contextlib.contextmanager
def opened(path: str) -> Iterator[io.TextIOWrapper]:
  """The file as text, unpacked.

  Raises:
    UserError: while it is read: it is no UTF-8, or was cut off.
  """
  # newline="" keeps \r\n and \r as they are: what goes in comes out.
  with intact(path), io.TextIOWrapper(_bytes(path), encoding="utf-8-sig", newline="") as file:
    yield file


@contextlib.contextmanager
def intact(path: str) -> Iterator[None]:
  """Says of which file it was that what is read inside is no UTF-8 or was cut off."""
  try:
    yield
  except UnicodeDecodeError as error:
    where = f" at byte {_first_bad(path)}" if os.path.isfile(path) and not path.endswith((".tar", ".tar.gz", ".tgz")) else ""
    raise UserError(f"data: '{path}' is not UTF-8 text ({error.reason}{where}): name text files only, or convert it.") from error
  except (gzip.BadGzipFile, tarfile.TarError, EOFError, zlib.error) as error:
    reason = " ".join(str(error).split())[:120]  # tarfile lists every way in which it could not open a file
    raise UserError(f"data: '{path}' is no whole compressed file ({reason}): copy or download it again.") from error


def _bytes(path: str) -> io.BufferedIOBase | io.RawIOBase:
  """The file's bytes, unpacked."""
  if path.endswith(".gz"):
    return gzip.open(path, "rb")
  if path.endswith(".zst"):
    import zstandard

    return _Zstd(path, zstandard)
  return open(path, "rb")


def _first_bad(path: str) -> int:
  """Offset, in the unpacked file, of the first byte that is zero or no UTF-8; a decoder's own offset counts from its last buffer."""
  decoder, read = codecs.getincrementaldecoder("utf-8")(), 0
  with _bytes(path) as file:
    while True:
      chunk = file.read(1 << 20)
      held = len(decoder.getstate()[0])
      zero = chunk.find(b"\0")
      try:
        decoder.decode(chunk if zero < 0 else chunk[:zero], final=not chunk)
      except UnicodeDecodeError as error:
        return read - held + error.start
      if zero >= 0:
        return read + zero
      if not chunk:
        return read
      read += len(chunk)


class _Zstd(io.RawIOBase):
  """A zstd file of one or more frames that says so when it was cut off, where the library's own reader just ends."""

  def __init__(self, path: str, zstandard):
    self._file = open(path, "rb")  # noqa: SIM115 (closed in close)
    self._library, self._frame, self._held = zstandard, None, b""

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._held:
      chunk = self._file.read(1 << 17)
      if not chunk:
        if self._frame is not None:
          raise EOFError("it ends inside a frame")
        return 0
      while chunk:
        self._frame = self._frame or self._library.ZstdDecompressor().decompressobj()
        try:
          self._held += self._frame.decompress(chunk)
        except self._library.ZstdError as error:
          raise EOFError(str(error)) from error
        chunk = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
          self._frame = None
    size = min(len(buffer), len(self._held))
    buffer[:size], self._held = self._held[:size], self._held[size:]
    return size

  def close(self) -> None:
    self._file.close()
    super().close()


def _json_lines(path: str, file: io.TextIOBase, key: str) -> Iterator[str]:
  for number, line in enumerate(file, start=1):
    if not line.strip():
      continue
    try:
      item = json.loads(line)
    except ValueError as error:
      raise UserError(f"data: '{path}', line {number}, is not JSON: {error}.") from error
    if not isinstance(item, dict) or not isinstance(item.get(key), str):
      there = ", ".join(item) if isinstance(item, dict) else type(item).__name__
      raise UserError(f"data: '{path}', line {number}, has no text under '{key}' (there: {there}): set text_key.")
    if not item[key].isascii() and _HALF.search(item[key]):
      raise UserError(f"data: '{path}', line {number}, is no Unicode text (an escape such as \\ud800 is half of a character): mend that line.")
    yield item[key]


def _paragraphs(file: io.TextIOBase) -> Iterator[str]:
  """Blocks of lines between blank ones."""
  held: list[str] = []
  for line in file:
    if line.strip():
      held.append(line)
    elif held:
      yield "".join(held).rstrip("\r\n")
      held = []
  if held:
    yield "".join(held).rstrip("\r\n")
