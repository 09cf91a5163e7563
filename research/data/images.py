"""The data component of images: decoded once to uint8 arrays of one size, each with a caption, a label, or both.

A path is one of
  a folder or a .tar, .tar.gz with `captions.jsonl`, whose lines name a file and hold its caption
  a folder or an archive without it, whose images lie in folders named after their classes
  an IDX file of images (MNIST), plain or .gz, beside which lies that of the labels: its name has `labels` for `images` and `idx1` for `idx3`

Transparent pixels are shown on white. Images of another shape are scaled to cover the wanted one and cut at the sides that stand out. Crops and
flips are the objective's, inside the step. Rows: `images`; `tokens` and `segments` of the caption (a class's name where there is none); `label`.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from research.core.config import Component
from research.core.errors import UserError
from research.core.types import Field, Vocab
from research.data import dataset, stream, text, tokenizer
from research.data.groups import enclosed, trained
from research.data.sources import files

CAPTIONS = "captions.jsonl"
ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp")
ARCHIVES = (".tar", ".tar.gz", ".tgz")
FIELDS = ("images", "tokens", "segments", "label")


@dataclasses.dataclass(frozen=True)
class Config:
  paths: tuple[str, ...] = ()  # folders, archives or IDX files; $RESEARCH_DATA is understood
  valid_paths: tuple[str, ...] = ()  # the validation split; empty: a share of `paths`
  valid_fraction: float = 0.1  # that share, drawn once for all
  height: int = 48  # pixels that an image is kept with: those the objective asks for
  width: int = 48
  channels: int = 3  # 3: colours; 1: grey
  file_key: str = "file"  # of a line of captions.jsonl: where the image lies
  caption_key: str = "caption"  # and its caption
  label_key: str = ""  # and the name of its class; empty: it has none
  labels: tuple[str, ...] = ()  # classes in the order of their numbers; empty: those of the images, sorted
  tokenizer: Component = tokenizer.Config(kind="wordpiece", lowercase=True)
  length: int = 16  # tokens of a caption; a longer one loses its end
  seed: int = 0  # of the order of rows
  directory: str = ""  # where the decoded images are kept; empty: in the workdir

  def __post_init__(self):
    if not 0 < self.valid_fraction < 1:
      raise ValueError(f"valid_fraction must lie between 0 and 1; got {self.valid_fraction}")
    if self.height < 1 or self.width < 1 or self.channels not in (1, 3):
      raise ValueError(f"images have at least one pixel and 1 or 3 channels; got {self.height} × {self.width} × {self.channels}")
    if self.length < 2:
      raise ValueError(f"length must be at least 2; got {self.length}")


class Record(NamedTuple):
  image: np.ndarray  # uint8 [height, width, channels]
  caption: str  # '' where it has none
  label: str | None


class Split(NamedTuple):
  images: np.ndarray  # uint8 [N, height, width, channels], mapped from its file
  captions: list[np.ndarray]  # ids
  classes: np.ndarray  # int32 [N]: place of the label among `Prepared.labels`; −1 where there is none


class Prepared(NamedTuple):
  tokenizer: tokenizer.Tokenizer
  vocab: Vocab
  digest: str  # of everything that decides which rows come in which order
  labels: tuple[str, ...]  # the names of the classes, sorted
  splits: Mapping[str, Split]


def prepare(cfg: Config, directory: str, say: Callable[[str], None] = print) -> Prepared:
  """Decodes the images to `directory` (or data.directory), unless they are there, and reads captions and labels.

  Raises:
    UserError: no image at a path, or one that cannot be read.
  """
  if not cfg.paths:
    raise UserError("data.paths names no images: set --config.data.paths=FOLDER, an archive, or an IDX file.")
  folder, found = cfg.directory or directory, {}
  for split in dataset.SPLITS if cfg.valid_paths else ("train",):
    found[split] = _decoded(cfg, cfg.paths if split == "train" else cfg.valid_paths, folder, say)
  if not cfg.valid_paths:
    images, captions, labels, name = found["train"]
    order = stream.Permutation(len(images), (0, 0))
    cut = min(len(images) - 1, max(1, round((1 - cfg.valid_fraction) * len(images))))
    if len(images) < 2:
      raise UserError(f"data.paths {cfg.paths} holds a single image: name two at least, one to validate with.")
    for split, places in (("train", range(cut)), ("valid", range(cut, len(images)))):
      chosen = np.sort([order[i] for i in places])
      found[split] = images[chosen], [captions[i] for i in chosen], [labels[i] for i in chosen], f"{name} {split} {cfg.valid_fraction}"
  names = cfg.labels or tuple(sorted({label for _, _, labels, _ in found.values() for label in labels if label is not None}))
  tokens = trained(cfg.tokenizer, folder, [caption for caption in found["train"][1] if caption] or ["."], say)
  splits = {split: _split(images, captions, labels, tokens, cfg, names) for split, (images, captions, labels, _) in found.items()}
  digest = text.digest([found[split][3] for split in dataset.SPLITS], tokens.digest, names, cfg.length, cfg.seed)
  return Prepared(tokens, tokens.vocab, digest, names, splits)


def _split(images: np.ndarray, captions: list[str], labels: list[str | None], tokens: tokenizer.Tokenizer, cfg: Config, names: Sequence[str]) -> Split:
  numbers = {name: i for i, name in enumerate(names)}
  for label in labels:
    if label is not None and label not in numbers:
      raise UserError(f"data: '{label}' is none of the classes ({', '.join(map(repr, names[:20]))}) that data.labels or the training names.")
  ids = [enclosed(tokens, ids, cfg.length) if len(ids) else ids for ids in tokens.encode_batch(captions)]
  return Split(images, ids, np.array([numbers.get(label, -1) for label in labels], np.int32))


def _decoded(cfg: Config, paths: tuple[str, ...], folder: str, say: Callable[[str], None]) -> tuple[np.ndarray, list[str], list[str | None], str]:
  """Images, captions and labels of the paths, and the name of the folder that keeps them: a hash of the files and of how they are read."""
  full = [_full(path) for path in paths]
  form = (cfg.height, cfg.width, cfg.channels, cfg.file_key, cfg.caption_key, cfg.label_key)
  name = "images-" + text.digest([_fingerprint(path) for path in full], form)
  where = os.path.join(folder, name)
  if not os.path.isdir(where):
    say(f"decoding the images of {', '.join(paths)} to {where}")
    with dataset.arriving(where) as scratch:
      whole = os.path.join(scratch, "whole")
      os.makedirs(whole)
      texts = []
      with open(os.path.join(whole, "images.u8"), "wb") as file:
        for path in full:
          before = len(texts)
          for record in records(path, cfg):
            file.write(record.image.tobytes())
            texts.append([record.caption, record.label])
          if len(texts) == before:
            raise UserError(f"data: no image at '{path}' (looked for {', '.join(ENDINGS)}).")
      with open(os.path.join(whole, "texts.json"), "w", encoding="utf-8") as file:
        json.dump(texts, file)
  try:
    with open(os.path.join(where, "texts.json"), encoding="utf-8") as file:
      texts = json.load(file)
    images = np.memmap(os.path.join(where, "images.u8"), np.uint8, "r", shape=(len(texts), cfg.height, cfg.width, cfg.channels))
  except (OSError, ValueError) as error:
    raise UserError(f"the decoded images in '{where}' cannot be read ({error}): delete that folder and it is written anew.") from error
  return images, [caption for caption, _ in texts], [label for _, label in texts], name


def train_rows(prepared: Prepared, cfg: Config, element_spec: Mapping[str, Field]) -> stream.Shuffled:
  """Endless rows of the training images: a pure function of (data.seed, index)."""
  rows = Rows(prepared.splits["train"], prepared.tokenizer.pad, cfg, element_spec)
  return stream.Shuffled(lambda epoch: rows, len(rows), cfg.seed)


def valid_rows(prepared: Prepared, cfg: Config, element_spec: Mapping[str, Field]) -> "Rows":
  """Every validation image once."""
  return Rows(prepared.splits["valid"], prepared.tokenizer.pad, cfg, element_spec)


def file_rows(tokens: tokenizer.Tokenizer, cfg: Config, path: str, element_spec: Mapping[str, Field], labels: Sequence[str]) -> "Rows":
  """All images of a folder, an archive or an IDX file.

  Args:
    labels: the names of the classes that the model was trained on.
  """
  found = list(records(_full(path), cfg))
  if not found:
    raise UserError(f"data: no image at '{path}' (looked for {', '.join(ENDINGS)}).")
  images, captions, classes = zip(*found)
  return Rows(_split(np.stack(images), list(captions), list(classes), tokens, cfg, labels or cfg.labels), tokens.pad, cfg, element_spec)


class Rows:
  """Images as rows."""

  def __init__(self, split: Split, pad: int, cfg: Config, element_spec: Mapping[str, Field]):
    self._split, self._pad, self._length, self._fields = split, pad, cfg.length, tuple(element_spec)
    kept = {"images": (cfg.height, cfg.width, cfg.channels), "tokens": (cfg.length,), "segments": (cfg.length,), "label": ()}
    for name, field in element_spec.items():
      if name not in FIELDS:
        raise UserError(f"the objective asks for '{name}' ({field.meaning}), which data.images does not deliver.")
      if field.shape != kept[name]:
        more = f": set data.height={field.shape[0]}, data.width={field.shape[1]} and data.channels={field.shape[2]}" if name == "images" else ""
        raise UserError(f"the objective asks for {name} of shape {field.shape}, but data.images delivers {kept[name]}{more}.")
    if "label" in element_spec and (self._split.classes < 0).any():
      raise UserError(f"the objective asks for labels, which {(self._split.classes < 0).sum()} of the images have not: set data.label_key.")
    if "tokens" in element_spec and not all(map(len, self._split.captions)):
      raise UserError("the objective asks for captions, which some of the images have not: set data.caption_key.")

  def __len__(self) -> int:
    return len(self._split.images)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    ids = self._split.captions[index]
    tokens = np.full(self._length, self._pad, np.int32)
    tokens[: len(ids)] = ids
    row = {
        "images": np.array(self._split.images[index]),
        "tokens": tokens,
        "segments": (np.arange(self._length) < len(ids)).astype(np.int32),
        "label": np.array(self._split.classes[index], np.int32),
    }
    return {name: row[name] for name in self._fields}


# --- the files ---------------------------------------------------------------------------------------------------------------


def _full(path: str) -> str:
  full = files.resolved(path)
  if not os.path.exists(full):
    raise UserError(f"data: there is no file or folder '{path}'.")
  return full


def _fingerprint(path: str) -> str:
  """A hash of the bytes of a file, or of all files of a folder and their names; of an IDX file's labels too."""
  import hashlib

  names = [path, *([_labels_of(path)] if _is_idx(path) else [])]
  if os.path.isdir(path):
    names = sorted(os.path.join(root, name) for root, _, found in os.walk(path) for name in found)
  total = hashlib.sha256()
  for name in names:
    if os.path.isfile(name):
      total.update(os.path.relpath(name, os.path.dirname(path)).encode())
      with open(name, "rb") as file:
        total.update(hashlib.file_digest(file, "sha256").digest())
  return total.hexdigest()[:16]


def records(path: str, cfg: Config) -> Iterator[Record]:
  """The images of a path with their captions and labels, in the order of their names (or of captions.jsonl, or of the IDX file).

  Raises:
    UserError: a file that is damaged or missing.
  """
  if _is_idx(path):
    yield from _idx_records(path, cfg)
  elif os.path.isdir(path):
    names = sorted(os.path.relpath(os.path.join(root, name), path) for root, _, found in os.walk(path) for name in found)
    read = lambda name: open(os.path.join(path, name), "rb").read()  # noqa: SIM115
    yield from _named(path, names, read, cfg)
  elif path.endswith(ARCHIVES):
    with files.intact(path), tarfile.open(path) as archive:
      members = {member.name: member for member in archive.getmembers() if member.isfile()}
      # In the order of the archive: a packed one cannot be read backwards.
      yield from _named(path, list(members), lambda name: archive.extractfile(members[name]).read(), cfg)
  else:
    raise UserError(f"data: '{path}' is no folder of images, no {', '.join(ARCHIVES)} and no IDX file (its name holds 'idx3').")


def _named(path: str, names: list[str], read: Callable[[str], bytes], cfg: Config) -> Iterator[Record]:
  listed = next((name for name in names if os.path.basename(name) == CAPTIONS), None)
  texts: dict[str, tuple[str, str | None]] = {}
  if listed is not None:
    for number, line in enumerate(read(listed).decode("utf-8-sig").splitlines(), start=1):
      if line.strip():
        name, caption, label = _caption(line, cfg, f"data: '{path}', {listed}, line {number}")
        texts[os.path.normpath(os.path.join(os.path.dirname(listed), name))] = (caption, label)
    there = {os.path.normpath(name) for name in names}
    for name in texts:
      if name not in there:
        raise UserError(f"data: '{path}' has no image '{name}', which {listed} names: bring it back or leave out that line.")
  for name in names:
    if not name.lower().endswith(ENDINGS) or (listed is not None and os.path.normpath(name) not in texts):
      continue
    folder = os.path.basename(os.path.dirname(name)) or None
    caption, label = texts[os.path.normpath(name)] if listed is not None else (folder or "", folder)
    yield Record(decode(read(name), f"'{path}', '{name}'", cfg), caption, label)


def _caption(line: str, cfg: Config, where: str) -> tuple[str, str, str | None]:
  try:
    item: Any = json.loads(line)
    found = [item[key] for key in (cfg.file_key, cfg.caption_key, cfg.label_key) if key]
  except (ValueError, KeyError, TypeError) as error:
    there = f" (there: {', '.join(item)})" if isinstance(error, KeyError) else ""
    raise UserError(f"{where}: {type(error).__name__}: {error}{there}; set data.file_key, data.caption_key and data.label_key to keys of that line.") from error
  if not all(isinstance(value, str) for value in found):
    raise UserError(f"{where}: {found} are no texts; mend that line.")
  return found[0], found[1], found[2] if cfg.label_key else None


def decode(content: bytes, where: str, cfg: Config) -> np.ndarray:
  """The pixels of an image file, uint8 [height, width, channels]."""
  from PIL import Image, ImageOps

  try:
    with Image.open(io.BytesIO(content)) as image:
      image = image.convert("RGBA")
  except Exception as error:  # whatever a decoder raises for a damaged file
    raise UserError(f"data: {where} cannot be decoded ({type(error).__name__}: {' '.join(str(error).split())[:100]}): mend or leave out that image.") from error
  white = Image.new("RGBA", image.size, "white")
  plain = Image.alpha_composite(white, image).convert("RGB" if cfg.channels == 3 else "L")
  if plain.size != (cfg.width, cfg.height):
    plain = ImageOps.fit(plain, (cfg.width, cfg.height), Image.Resampling.BICUBIC)
  return np.asarray(plain, np.uint8).reshape(cfg.height, cfg.width, cfg.channels)


def _is_idx(path: str) -> bool:
  return os.path.isfile(path) and "idx3" in os.path.basename(path)


def _labels_of(path: str) -> str:
  """The file of the labels that belong to an IDX file of images."""
  folder, name = os.path.split(path)
  return os.path.join(folder, name.replace("images", "labels").replace("idx3", "idx1"))


def _idx_records(path: str, cfg: Config) -> Iterator[Record]:
  from PIL import Image

  images, labels = _idx(path, 3), None
  if os.path.isfile(_labels_of(path)):
    labels = _idx(_labels_of(path), 1)
    if len(labels) != len(images):
      raise UserError(f"data: '{path}' holds {len(images)} images, but '{_labels_of(path)}' {len(labels)} labels: bring the right files together.")
  for i, pixels in enumerate(images):
    if pixels.shape != (cfg.height, cfg.width):
      pixels = np.asarray(Image.fromarray(pixels).resize((cfg.width, cfg.height), Image.Resampling.BICUBIC))
    name = None if labels is None else str(labels[i])
    yield Record(np.repeat(pixels[:, :, None], cfg.channels, axis=2), name or "", name)


def _idx(path: str, axes: int) -> np.ndarray:
  """An IDX file of bytes (LeCun et al. 1998, the MNIST page): two zero bytes, type 8, number of axes, their sizes, the data."""
  try:
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
      content = file.read()
    kind, found = struct.unpack(">HBB", content[:4])[1:]
    shape = struct.unpack(f">{found}I", content[4 : 4 + 4 * found])
    if (kind, found) != (8, axes):
      raise ValueError(f"type {kind} and {found} axes where type 8 and {axes} were expected")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * found).reshape(shape)
  except (ValueError, struct.error, EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise UserError(f"data: '{path}' is no whole IDX file of bytes ({error}): copy or download it again.") from error
