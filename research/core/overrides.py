"""Config files, and what flags change in them.

A whole component is swapped by name (`--config.objective=causal_lm`): its defaults replace the old component's, then deeper keys apply, whatever
their order on the command line.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, get_args

from research.core.config import NAME, PACKAGE, Component, annotations, find, flatten, is_config, leaves, members, read, typed, use
from research.core.errors import UserError, nearest

if TYPE_CHECKING:
  from ml_collections import ConfigDict


def load(path: str, overrides: Iterable[str] | Mapping[str, Any] = ()) -> "ConfigDict":
  """Runs `get_config` of a config file, applies overrides, checks every key and value, and locks the result.

  Args:
    path: `configs/x.py`, or `configs/x.py:argument`, which is handed to `get_config(argument)`; a folder that holds a
      `config.json` gives the config of that run.
    overrides: `key.deeper=value` strings, or a mapping from dotted key to value.

  Raises:
    UserError: no such file, a wrong key (the nearest right one is named), or a value of the wrong type.
  """
  if os.path.isdir(path) and os.path.isfile(os.path.join(path, "config.json")):
    config = read(os.path.join(path, "config.json"))
  else:
    config = called(path, "config")
    if not is_config(config):
      raise UserError(f"get_config() of config file '{path.partition(':')[0]}' returns no config: end it with return use(…).")
  return resolve(config, overrides)


def called(path: str, kind: str) -> Any:
  """What `get_<kind>()` of a Python file returns; of `file.py:argument`, `get_<kind>(argument)`.

  Raises:
    UserError: no such file or function, an argument too many or missing, or a mistyped key in the file; the message names its line.
  """
  file, _, argument = path.partition(":")
  if not os.path.isfile(file):
    folder = os.path.dirname(file) or "."
    others = [os.path.join(os.path.dirname(file), f) for f in os.listdir(folder) if f.endswith(".py")] if os.path.isdir(folder) else []
    raise UserError(f"no {kind} file '{file}'.{nearest(file, others)}")
  spec = importlib.util.spec_from_file_location(f"{kind}_" + hashlib.sha1(os.path.abspath(file).encode()).hexdigest()[:8], file)
  module = importlib.util.module_from_spec(spec)
  root = os.path.dirname(os.path.dirname(os.path.abspath(file)))
  if root not in sys.path:  # so that a config file can build on its neighbours: `from configs import base`
    sys.path.append(root)
  arguments, name = (argument,) if argument else (), f"get_{kind}"
  try:
    spec.loader.exec_module(module)
    if not hasattr(module, name):
      raise UserError(f"{kind} file '{file}' defines no {name}().")
    if not _accepts(getattr(module, name), arguments):
      raise UserError(f"{kind} file '{file}' takes no argument: leave out ':{argument}'." if arguments else f"{kind} file '{file}' needs an argument: {file}:ARGUMENT.")
    return getattr(module, name)(*arguments)
  except (AttributeError, KeyError, TypeError) as error:  # a mistyped key on a locked ConfigDict, or argument of a call
    if isinstance(error, TypeError) and list(traceback.walk_tb(error.__traceback__))[-1][0].f_code.co_filename != file:
      raise
    raise UserError(f"{kind} file '{file}'{_mistake(error, file)}") from error


def _accepts(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
  try:
    inspect.signature(function).bind(*arguments)
  except TypeError:
    return False
  return True


def _mistake(error: Exception, file: str) -> str:
  """`, line 12: no key 'peek'. Did you mean 'peak'?`: ml_collections' own message prints the whole config."""
  frames = list(traceback.walk_tb(error.__traceback__))
  line = next((f", line {number}" for frame, number in reversed(frames) if frame.f_code.co_filename == file), "")
  config = next((frame.f_locals["self"] for frame, _ in reversed(frames) if is_config(frame.f_locals.get("self"))), None)
  key = re.search(r"\w+", str(error).replace("Key ", "", 1)) if config is not None else None
  if key is None:
    return f"{line}: {error}."
  return f"{line}: no key '{key[0]}'.{nearest(key[0], (k for k in config if k != NAME))}"


def resolve(config: "ConfigDict", overrides: Iterable[str] | Mapping[str, Any] = ()) -> "ConfigDict":
  """A checked, locked copy of `config` with overrides applied: component swaps first, outermost first, then single keys."""
  config = config.copy_and_resolve_references()
  pairs = list(overrides.items()) if isinstance(overrides, Mapping) else [split(item) for item in overrides]
  swaps, keys = [], []
  for path, value in pairs:
    (swaps if isinstance(value, str) and _is_component(config, path, pairs) else keys).append((path, value))
  for path, value in sorted(swaps, key=lambda item: item[0].count(".")):
    _swap(config, path, value)
  for path, value in keys:
    parent, key = _locate(config, path)
    _put(parent, key, "none" if value is None and _has_none(parent, key) else value)
  config = flatten(typed(config))
  config.lock()
  return config


def _has_none(parent: "ConfigDict", key: str) -> bool:
  """Whether the word none is one of the values that a key can take (`model.remat`), rather than the absence of one."""
  return NAME in parent and "none" in get_args(annotations(find(parent[NAME]).Config).get(key))


def _swap(config: "ConfigDict", path: str, value: str) -> None:
  """Puts the component `value` at `path`; a short name is one of the family of what was there or, for a new entry, lies beside it."""
  parent, key = _locate(config, path)
  if value in ("none", "None"):
    return _put(parent, key, None)
  near = [parent.get(key), *([] if NAME in parent else parent.values())]
  family = next((item[NAME].rpartition(".")[0] for item in near if is_config(item) and NAME in item), "")
  name = value if "." in value or not family else f"{family}.{value}"
  module = find(name).__name__
  if family and module.startswith(PACKAGE + ".") and module.removeprefix(PACKAGE + ".").rpartition(".")[0] != family:
    raise UserError(f"config key '{path}' takes a component of '{family}', which '{name}' is not: there are {', '.join(members(family))}.")
  _put(parent, key, use(name))


def _put(parent: "ConfigDict", key: str, value: Any) -> None:
  with parent.unlocked():
    if key in parent:
      del parent[key]  # a ConfigDict value would otherwise merge into the old one
    parent[key] = value


def split(item: str) -> tuple[str, Any]:
  """Key and value of `--config.key=value` or `key=value`."""
  path, equals, text = item.partition("=")
  path = path.lstrip("-").removeprefix("config.")
  if not equals:
    raise UserError(f"override '{item}' has no value: write --config.{path}=VALUE.")
  try:
    return path, ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return path, {"true": True, "false": False, "none": None}.get(text.lower(), text)


def flag(path: str, value: Any) -> str:
  """`--config.path=value`, from which `load` reads that very value."""
  value = value.item() if hasattr(value, "item") else value  # of numpy
  if value is None:
    text = "none"
  elif isinstance(value, str) and value.isprintable() and split(f"{path}={value}")[1] == value and value.lower() != "none":
    text = value
  elif is_config(value) or not _is_literal(repr(value)):
    raise UserError(f"override '{path}' is {str(value)[:80]!r}, which no flag can say: swap a component by its name and set its keys by theirs.")
  else:
    text = repr(value)
  return f"--config.{path}={text}"


def _is_literal(text: str) -> bool:
  try:
    ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return False
  return True


def _is_component(config: "ConfigDict", path: str, pairs: list[tuple[str, Any]]) -> bool:
  """Whether `path` holds a component, now or after a swap further out."""
  try:
    parent, key = _locate(config, path)
  except UserError:
    for outer, value in pairs:  # the path may exist only once an outer component has been swapped
      if path.startswith(outer + ".") and isinstance(value, str):
        changed = config.copy_and_resolve_references()
        _swap(changed, outer, value)
        return _is_component(changed, path, [p for p in pairs if p[0] != outer])
    raise
  if key == NAME:
    outer = path.rpartition(".")[0]
    raise UserError(f"a component is swapped with --config.{outer}=NAME, not by its '{NAME}'." if outer else f"no config key '{NAME}'.")
  if key not in parent:  # a new entry of a mapping
    return any(is_config(item) and NAME in item for item in parent.values())
  value = parent[key]
  if value is None and NAME in parent:
    return annotations(find(parent[NAME]).Config)[key] in (Component, Component | None)
  return is_config(value) and NAME in value


def _locate(config: "ConfigDict", path: str) -> tuple["ConfigDict", str]:
  parent, parts = config, path.split(".")
  for depth, part in enumerate(parts):
    if not is_config(parent) or part not in parent:
      free = is_config(parent) and NAME not in parent and depth == len(parts) - 1
      if not free:
        where = ".".join(parts[:depth])
        known = [f"{where}.{k}".lstrip(".") for k in parent if k != NAME] if is_config(parent) else []
        anywhere = [p for p, _ in leaves(config) if p.rpartition(".")[2] == parts[-1]]
        hint = f" Did you mean '{anywhere[0]}'?" if anywhere and "Did you mean" not in nearest(path, known) else nearest(path, known)
        raise UserError(f"no config key '{path}'.{hint}")
    if depth == len(parts) - 1:
      return parent, part
    parent = parent[part]
  raise AssertionError(path)
