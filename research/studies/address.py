"""What names a run: a hash of its resolved config, its data and its code.

  config  every key but the place of the data (`data.directory`), which moves no number. Weights that a run starts from count by what they are: those of a run of
          the study by its address, others by their path and the record of their checkpoint.
  data    the hash that the run itself finds in what it reads (`data_hash` of summary.json): contents, vocabulary, order. It is known once the data are prepared. A
          file that changes gives other addresses, so what was trained before is left alone; and a run that ends with another hash than its address was
          made of (the file changed under a study that runs) is told as failed.
  code    the files that this run can reach: research/train.py and the components that its config names, with all that they import; of each its syntax tree without
          docstrings, so that comments and layout do not count. The version of the package is in one of them. Libraries do not count; another minor version of
          Python, which comes with another version of JAX, does. Code that is edited under a sweep is noticed before the next run starts.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import research
from research.core import config as configs

if TYPE_CHECKING:
  from ml_collections import ConfigDict

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(research.__file__)))


def address(config: "ConfigDict", data_hash: str, code: str, after: str | None) -> str:
  """Twelve hex digits.

  Args:
    after: the address of the run whose weights this one starts from.
  """
  plain = json.loads(configs.record(config))
  plain["data"].pop("directory", None)
  if after is not None:
    plain["init_from"] = {"run": after}
  elif plain["init_from"] is not None:
    from research.training.checkpoint import Checkpoints

    plain["init_from"] = {"path": plain["init_from"], "record": Checkpoints(plain["init_from"]).meta()}
  return _hash([plain, data_hash, code])[:12]


def code_hash(components: Iterable[str]) -> str:
  """Twelve hex digits of the code that a run of these components can reach, as it stands on disk now."""
  return _hash(sorted(reachable(components).items()))[:12]


def reachable(components: Iterable[str]) -> dict[str, str]:
  """Full name -> hash, of each module that a run of these components can import, far or near; installed libraries are left out."""
  found: dict[str, str] = {}
  left = [("research.train", ROOT)]
  for component in components:
    module = configs.find(component)
    left.append((module.__name__, module.__file__.removesuffix(os.path.join(*module.__name__.split(".")) + ".py")))
  while left:
    name, root = left.pop()
    if name not in found and (path := _file(name, root)):
      found[name], imported = _read(name, path, os.stat(path).st_mtime_ns)
      left += [(other, root) for other in (name.rpartition(".")[0], *imported) if other not in found]
  return found


def components(config: Any) -> frozenset[str]:
  """The names of all components of a config."""
  found = {config[configs.NAME]} if configs.NAME in config else set()
  return frozenset(found.union(*(components(value) for value in config.values() if configs.is_config(value))))


@functools.cache
def _file(name: str, root: str) -> str | None:
  path = os.path.join(root, *name.split("."))
  return next((file for file in (path + ".py", os.path.join(path, "__init__.py")) if os.path.isfile(file)), None)


@functools.cache
def _read(name: str, path: str, changed: int) -> tuple[str, tuple[str, ...]]:
  """The hash of a file's syntax tree, and what it imports: names of modules, and of what may be one. Read anew when it has `changed`."""
  with open(path, encoding="utf-8") as file:
    tree = ast.parse(file.read())
  imported = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      imported += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      near = name.split(".")[: -node.level or None] if not path.endswith("__init__.py") else name.split(".")[: 1 - node.level or None]
      base = ".".join([*(near if node.level else ()), *filter(None, [node.module])])
      imported += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node, clean=False) is not None:
      node.body = node.body[1:]
  return _hash([ast.dump(tree), sys.version_info[:2]]), tuple(imported)


def _hash(parts: Any) -> str:
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
