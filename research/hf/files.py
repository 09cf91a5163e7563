"""A folder of Hugging Face: config.json, and tensors in safetensors files, read and written one at a time.

A tensor is read when it is asked for and kept by nobody here: importing a model needs hardly more memory than the model. Pickles
(pytorch_model.bin) are never opened, for opening one runs whatever program it holds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from research.core.errors import UserError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 2_000_000_000  # of tensors in one written file
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
MAKE_SAFETENSORS = "load it once with transformers and save_pretrained it, which writes safetensors"


class Tensor(NamedTuple):
  """Where a tensor lies and what it is."""

  file: str  # name inside the folder
  shape: tuple[int, ...]
  dtype: str  # numpy name; of integers and others the name that safetensors gives

  @property
  def bytes(self) -> int:
    return int(np.prod(self.shape, dtype=np.int64)) * {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}.get(self.dtype, 8)


class Folder:
  """A model on disk: `config` as read, `tensors` by name, `read(name)`.

  Raises:
    UserError: no folder, no config.json, no safetensors; a shard that is absent, cut off or damaged; a tensor that the index names and its
      shard does not hold.
  """

  def __init__(self, path: str):
    self.path = path
    if not os.path.isdir(path):
      raise UserError(f"no folder '{path}': name a folder that holds a model's config.json and model.safetensors.")
    self.config = read_json(os.path.join(path, CONFIG), "name the folder of a Hugging Face model")
    self.tensors: dict[str, Tensor] = {}
    for file, promised in self._shards().items():
      held = self._header(file)
      for name in promised:
        if name not in held:
          raise UserError(f"'{os.path.join(path, INDEX)}' says that tensor '{name}' is in '{file}', which does not hold it: fetch the folder's files again.")
      self.tensors.update(held)

  def _shards(self) -> dict[str, list[str]]:
    """File -> the tensors that the index promises in it."""
    index, single = os.path.join(self.path, INDEX), os.path.join(self.path, SINGLE)
    if os.path.isfile(index):
      where = read_json(index, "fetch it again").get("weight_map")
      if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
        raise UserError(f"'{index}' has no weight_map from tensors to files: fetch it again.")
      shards: dict[str, list[str]] = {}
      for name, file in where.items():
        shards.setdefault(file, []).append(name)
      for file, names in shards.items():
        if os.path.basename(file) != file or not os.path.isfile(os.path.join(self.path, file)):
          raise UserError(f"'{os.path.join(self.path, file)}', which holds tensor '{names[0]}'{_and_others(names)}, is missing: fetch it too.")
      return shards
    if os.path.isfile(single):
      return {SINGLE: []}
    pickles = sorted(name for name in os.listdir(self.path) if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")))
    if pickles:
      raise UserError(f"'{self.path}' has its tensors in '{pickles[0]}', a pickle, which is never read here: {MAKE_SAFETENSORS}.")
    raise UserError(f"'{self.path}' holds neither {SINGLE} nor {INDEX}: fetch the model's safetensors too.")

  def _open(self, file: str):
    # pread: pages of a mapped file would count as this process's memory beside the arrays made of them.
    return safe_open(os.path.join(self.path, file), framework="numpy", backend="pread")

  def _header(self, file: str) -> dict[str, Tensor]:
    with self._told(file), self._open(file) as shard:
      found = {}
      for name in shard.keys():  # noqa: SIM118
        part = shard.get_slice(name)
        found[name] = Tensor(file, tuple(part.get_shape()), DTYPES.get(part.get_dtype(), part.get_dtype()))
      return found

  def read(self, name: str) -> np.ndarray:
    """The array of a tensor, float32, float16, bfloat16 or float64.

    Raises:
      UserError: it is of another type, or its file is damaged.
    """
    tensor = self.tensors[name]
    if tensor.dtype not in DTYPES.values():
      raise UserError(f"tensor '{name}' in '{os.path.join(self.path, tensor.file)}' is of type {tensor.dtype}; weights must be {', '.join(DTYPES.values())}: "
                      "undo its quantisation first.")  # fmt: skip
    with self._told(tensor.file), self._open(tensor.file) as shard:
      return shard.get_tensor(name)

  def where(self, name: str) -> str:
    """`'folder/file'`, for messages."""
    return f"'{os.path.join(self.path, self.tensors[name].file)}'"

  def _told(self, file: str) -> "_Told":
    return _Told(os.path.join(self.path, file))


class _Told:
  """Turns what safetensors says of a broken file into a sentence."""

  def __init__(self, path: str):
    self._path = path

  def __enter__(self) -> None:
    pass

  def __exit__(self, kind, error, trace) -> None:
    if isinstance(error, (SafetensorError, OSError)):
      reason = " ".join(str(error).split())[:160]
      raise UserError(f"'{self._path}' is cut off or damaged ({reason}): fetch it again.") from error


def _and_others(names: list[str]) -> str:
  return f" and {len(names) - 1} more" if len(names) > 1 else ""


def read_json(path: str, mend: str, kind: type = dict) -> Any:
  """The `kind` (dict, list) in a JSON file; what cannot be read is a UserError that ends with `mend`."""
  try:
    with open(path, encoding="utf-8") as file:
      found = json.load(file)
  except FileNotFoundError as error:
    raise UserError(f"'{path}' is missing: {mend}.") from error
  except (OSError, ValueError) as error:
    raise UserError(f"'{path}' is no readable JSON ({' '.join(str(error).split())[:160]}): {mend}.") from error
  if not isinstance(found, kind):
    raise UserError(f"'{path}' holds {type(found).__name__} where {'an object' if kind is dict else 'a list'} should be: {mend}.")
  return found


# --- writing -----------------------------------------------------------------------------------------------------------------


class Written(NamedTuple):
  """A tensor to be written: made when its turn comes."""

  name: str
  shape: tuple[int, ...]
  dtype: str
  make: Callable[[], np.ndarray]

  @property
  def bytes(self) -> int:
    return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


def write(path: str, config: Mapping[str, Any], tensors: Iterable[Written], shard_bytes: int = SHARD_BYTES) -> list[str]:
  """Writes config.json and the tensors, in several files and an index where they exceed `shard_bytes`; returns the files' names.

  Raises:
    UserError: the folder holds a model already.
  """
  os.makedirs(path, exist_ok=True)
  for name in (CONFIG, SINGLE, INDEX):
    if os.path.exists(os.path.join(path, name)):
      raise UserError(f"'{path}' holds a {name} already: name a new folder.")
  shards = list(_cut(tensors, shard_bytes))
  files = [SINGLE] if len(shards) == 1 else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
  for file, shard in zip(files, shards):
    arrays = {tensor.name: np.asarray(tensor.make(), order="C") for tensor in shard}
    save_file(arrays, os.path.join(path, file), metadata={"format": "pt"})  # transformers asks for the format
  if len(shards) > 1:
    total = sum(tensor.bytes for shard in shards for tensor in shard)
    where = {tensor.name: file for file, shard in zip(files, shards) for tensor in shard}
    _write_json(os.path.join(path, INDEX), {"metadata": {"total_size": total}, "weight_map": where})
    files.append(INDEX)
  _write_json(os.path.join(path, CONFIG), config)
  return [*files, CONFIG]


def _cut(tensors: Iterable[Written], shard_bytes: int) -> Iterator[list[Written]]:
  shard, size = [], 0
  for tensor in tensors:
    if shard and size + tensor.bytes > shard_bytes:
      yield shard
      shard, size = [], 0
    shard.append(tensor)
    size += tensor.bytes
  yield shard


def _write_json(path: str, content: Mapping[str, Any]) -> None:
  with open(path, "w", encoding="utf-8") as file:
    json.dump(content, file, indent=2, sort_keys=True)
    file.write("\n")
