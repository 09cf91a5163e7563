"""Configs: a component is a file, its keys are the fields of that file's `Config`, its name is the file's name.

A component file opens with `@dataclass(frozen=True) class Config`, the only place of its defaults. A config file writes

  config.objective = use("objectives.masked_lm", mask_rate=0.15)

`use` fills in every default, so a config is complete and every key can be set by flag (`--config.objective.mask_rate=0.3`).
A whole component is swapped by name (`--config.objective=causal_lm`): its defaults replace the old component's, then deeper
keys apply, whatever their order on the command line. `typed` turns the result into the frozen dataclasses that the code receives.

A name is looked up below `research` first and as a full module path otherwise, so `use("experiments.my_study.objective")`
loads a component from outside the package. Nothing has to be registered.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Union

from research.core.errors import UserError, nearest

if TYPE_CHECKING:
  from ml_collections import ConfigDict

PACKAGE = "research"
NAME = "name"  # the key that tells which file a component is


class Component:
  """Annotation of a field that holds another component's Config."""


# --- components --------------------------------------------------------------------------------------------------------------


def find(name: str) -> types.ModuleType:
  """The module of a component: `objectives.masked_lm`, or the full path of a module elsewhere."""
  for path in (f"{PACKAGE}.{name}", name):
    try:
      module = importlib.import_module(path)
    except ModuleNotFoundError as error:
      if error.name is None or not (path == error.name or path.startswith(error.name + ".")):
        raise UserError(f"component '{name}' needs the Python package '{error.name}', which is not installed.") from error
      continue
    if dataclasses.is_dataclass(getattr(module, "Config", None)):
      return module
  family = name.rpartition(".")[0]
  raise UserError(f"no component '{name}'.{nearest(name, (f'{family}.{m}' for m in members(family)))}")


def members(family: str) -> list[str]:
  """The names of the components of one folder, found by listing it: `members('objectives')` -> ['causal_lm', …]."""
  folder = os.path.join(os.path.dirname(os.path.dirname(__file__)), *family.split(".")) if family else ""
  found = []
  for entry in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
    path = os.path.join(folder, entry)
    if entry.endswith(".py") and not entry.startswith("_"):
      with open(path, encoding="utf-8") as file:
        if "\nclass Config" in file.read():
          found.append(entry[:-3])
  return found


def component_name(config: Any) -> str:
  """The name under which `use` finds the file of a typed Config."""
  return type(config).__module__.removeprefix(PACKAGE + ".")


def module(config: Any) -> types.ModuleType:
  """The file of a typed Config."""
  return sys.modules[type(config).__module__]


def make(config: Any, *args: Any, **kwargs: Any) -> Any:
  """Calls `make` of the file whose typed Config this is."""
  return module(config).make(config, *args, **kwargs)


def use(name: str, **changes: Any) -> "ConfigDict":
  """A complete, locked ConfigDict of the component `name`: its defaults, with `changes`.

  Raises:
    UserError: no such component, or no such key (the nearest one is named). Types are checked by `typed`, once all values are in.
  """
  cls = find(name).Config
  known = {f.name for f in dataclasses.fields(cls)}
  for key in changes:
    if key not in known:
      raise UserError(f"'{name}' has no key '{key}'.{nearest(key, known)}")
  flat = {key: flatten(value) if dataclasses.is_dataclass(value) else value for key, value in changes.items()}
  defaults = {f.name: _default(f, name) for f in dataclasses.fields(cls) if f.name not in flat}
  return _config_dict({NAME: name, **defaults, **flat}, cls)


def _default(field: dataclasses.Field, name: str) -> Any:
  if field.default is not dataclasses.MISSING:
    return flatten(field.default)
  if field.default_factory is not dataclasses.MISSING:
    return flatten(field.default_factory())
  raise UserError(f"'{name}' needs the key '{field.name}', which has no default.")


def flatten(value: Any) -> Any:
  """A typed Config as a ConfigDict, other values as they are."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = {f.name: flatten(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return _config_dict({NAME: component_name(value), **fields}, type(value))
  if isinstance(value, Mapping):
    return _open_dict({key: flatten(item) for key, item in value.items()})
  return value


def _config_dict(fields: Mapping[str, Any], cls: type) -> "ConfigDict":
  """Locked at its own level: a mistyped key in a config file raises; mappings (free names) stay open."""
  from ml_collections import ConfigDict

  del cls
  config = ConfigDict(type_safe=False)
  for key, value in fields.items():
    config[key] = value
  object.__setattr__(config, "_locked", True)
  return config


def _open_dict(items: Mapping[str, Any]) -> "ConfigDict":
  from ml_collections import ConfigDict

  config = ConfigDict(type_safe=False)
  for key, value in items.items():
    config[key] = value
  return config


# --- config files and overrides ----------------------------------------------------------------------------------------------


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
    file, _, argument = path.partition(":")
    if not os.path.isfile(file):
      folder = os.path.dirname(file) or "."
      others = [os.path.join(os.path.dirname(file), f) for f in os.listdir(folder) if f.endswith(".py")] if os.path.isdir(folder) else []
      raise UserError(f"no config file '{file}'.{nearest(file, others)}")
    spec = importlib.util.spec_from_file_location("config_" + hashlib.sha1(os.path.abspath(file).encode()).hexdigest()[:8], file)
    module = importlib.util.module_from_spec(spec)
    root = os.path.dirname(os.path.dirname(os.path.abspath(file)))
    if root not in sys.path:  # so that a config file can build on its neighbours: `from configs import base`
      sys.path.append(root)
    arguments = (argument,) if argument else ()
    try:
      spec.loader.exec_module(module)
      if not hasattr(module, "get_config"):
        raise UserError(f"config file '{file}' defines no get_config().")
      if not _accepts(module.get_config, arguments):
        raise UserError(f"config file '{file}' takes no argument: leave out ':{argument}'." if arguments else f"config file '{file}' needs an argument: {file}:ARGUMENT.")
      config = module.get_config(*arguments)
    except (AttributeError, KeyError) as error:  # a mistyped key on a locked ConfigDict
      raise UserError(f"config file '{file}'{_mistake(error, file)}") from error
    if not _is_mapping(config):
      raise UserError(f"get_config() of config file '{file}' returns no config: end it with return use(…).")
  return resolve(config, overrides)


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
  config = next((frame.f_locals["self"] for frame, _ in reversed(frames) if _is_mapping(frame.f_locals.get("self"))), None)
  key = re.search(r"\w+", str(error).replace("Key ", "", 1)) if config is not None else None
  if key is None:
    return f"{line}: {error}."
  return f"{line}: no key '{key[0]}'.{nearest(key[0], (k for k in config if k != NAME))}"


def resolve(config: "ConfigDict", overrides: Iterable[str] | Mapping[str, Any] = ()) -> "ConfigDict":
  """A checked, locked copy of `config` with overrides applied: component swaps first, outermost first, then single keys."""
  config = config.copy_and_resolve_references()
  pairs = list(overrides.items()) if isinstance(overrides, Mapping) else [_split(item) for item in overrides]
  swaps, keys = [], []
  for path, value in pairs:
    (swaps if isinstance(value, str) and _is_component(config, path, pairs) else keys).append((path, value))
  for path, value in sorted(swaps, key=lambda item: item[0].count(".")):
    _swap(config, path, value)
  for path, value in keys:
    parent, key = _locate(config, path)
    _put(parent, key, value)
  config = flatten(typed(config))
  config.lock()
  return config


def _swap(config: "ConfigDict", path: str, value: str) -> None:
  """Puts the component `value` at `path`; a short name is one of the family of what was there or, for a new entry, lies beside it."""
  parent, key = _locate(config, path)
  if value in ("none", "None"):
    return _put(parent, key, None)
  near = [parent.get(key), *([] if NAME in parent else parent.values())]
  family = next((item[NAME].rpartition(".")[0] for item in near if _is_mapping(item) and NAME in item), "")
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


def _split(item: str) -> tuple[str, Any]:
  path, equals, text = item.partition("=")
  path = path.lstrip("-").removeprefix("config.")
  if not equals:
    raise UserError(f"override '{item}' has no value: write --config.{path}=VALUE.")
  try:
    return path, ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return path, {"true": True, "false": False, "none": None}.get(text.lower(), text)


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
    return any(_is_mapping(item) and NAME in item for item in parent.values())
  value = parent[key]
  if value is None and NAME in parent:
    return _annotations(find(parent[NAME]).Config)[key] in (Component, Component | None)
  return _is_mapping(value) and NAME in value


def _locate(config: "ConfigDict", path: str) -> tuple["ConfigDict", str]:
  parent, parts = config, path.split(".")
  for depth, part in enumerate(parts):
    if not _is_mapping(parent) or part not in parent:
      free = _is_mapping(parent) and NAME not in parent and depth == len(parts) - 1
      if not free:
        where = ".".join(parts[:depth])
        known = [f"{where}.{k}".lstrip(".") for k in parent if k != NAME] if _is_mapping(parent) else []
        anywhere = [p for p, _ in leaves(config) if p.rpartition(".")[2] == parts[-1]]
        hint = f" Did you mean '{anywhere[0]}'?" if anywhere and "Did you mean" not in nearest(path, known) else nearest(path, known)
        raise UserError(f"no config key '{path}'.{hint}")
    if depth == len(parts) - 1:
      return parent, part
    parent = parent[part]
  raise AssertionError(path)


def _is_mapping(value: Any) -> bool:
  from ml_collections import ConfigDict

  return isinstance(value, ConfigDict)


# --- types -------------------------------------------------------------------------------------------------------------------


def typed(config: Any, path: str = "") -> Any:
  """The frozen dataclasses of a ConfigDict (or of the mapping that `record` wrote): what the code receives.

  A key that a record lacks is younger than the record and takes its default, which must mean what was done before there was the key.

  Raises:
    UserError: a key that the component lacks, a key without a value, or a value of the wrong type; the message names the key.
  """
  if not isinstance(config, Mapping) and not (hasattr(config, "items") and hasattr(config, "keys")):
    return config
  if NAME not in config:
    return types.MappingProxyType({key: typed(value, f"{path}{key}.") for key, value in config.items()})
  cls = find(config[NAME]).Config
  hints = _annotations(cls)
  fields = {}
  for key, value in config.items():
    if key == NAME:
      continue
    if key not in hints:
      raise UserError(f"no config key '{path}{key}' in '{config[NAME]}'.{nearest(key, hints)}")
    fields[key] = _coerce(typed(value, f"{path}{key}."), hints[key], f"{path}{key}")
  no_default = lambda f: f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
  missing = [f.name for f in dataclasses.fields(cls) if f.name not in fields and no_default(f)]
  if missing:
    raise UserError(f"config key '{path}{missing[0]}' of '{config[NAME]}' is missing.")
  try:
    return cls(**fields)
  except ValueError as error:  # a Config's own __post_init__ check
    raise UserError(f"config '{path.rstrip('.') or config[NAME]}': {error}") from error


def _annotations(cls: type) -> dict[str, Any]:
  return {f.name: typing.get_type_hints(cls)[f.name] for f in dataclasses.fields(cls)}


def _coerce(value: Any, hint: Any, path: str) -> Any:
  """`value` as the annotation asks (3 -> 3.0, list -> tuple), or a UserError that names the key."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return value
  if hint is Component:
    if dataclasses.is_dataclass(value):
      return value
    raise UserError(f"config key '{path}' must be a component, written use('family.name', …); got {value!r}.")
  if origin in (Union, types.UnionType):
    if value is None and type(None) in arguments:
      return None
    for argument in arguments:
      if argument is not type(None):
        try:
          return _coerce(value, argument, path)
        except UserError:
          continue
  elif origin is Literal:
    if value in arguments:
      return value
    raise UserError(f"config key '{path}' is {value!r}; it must be one of {', '.join(map(repr, arguments))}.")
  elif origin is tuple and (isinstance(value, (tuple, list)) or arguments == (str, ...) and isinstance(value, str)):
    inner = arguments[0] if arguments else Any
    value = (value,) if isinstance(value, str) else value  # --config.data.sources.text.paths=my.txt
    return tuple(_coerce(item, inner, f"{path}[{i}]") for i, item in enumerate(value))
  elif origin in (dict, Mapping) or getattr(origin, "__name__", "") == "Mapping":
    if isinstance(value, Mapping):
      inner = arguments[1] if len(arguments) == 2 else Any
      return types.MappingProxyType({k: _coerce(v, inner, f"{path}.{k}") for k, v in value.items()})
  elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
    return float(value)
  elif hint is int and isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value if math.isfinite(value) else 0):
    return int(value)
  elif hint is str and isinstance(value, str) or hint is bool and isinstance(value, bool):
    return value
  named = lambda hint: {type(None): "none", Component: "a component"}.get(hint) or getattr(hint, "__name__", str(hint))
  names = " or ".join(map(named, arguments)) if origin in (Union, types.UnionType) else named(hint)
  if origin is tuple:
    names = "a tuple, written ('a', 'b')" if str in arguments else "a tuple, written (1, 2)"
  raise UserError(f"config key '{path}' must be {names}; got {value!r}.")


# --- the record --------------------------------------------------------------------------------------------------------------


def leaves(config: Any, path: str = "") -> list[tuple[str, Any]]:
  """Dotted key and value of every leaf, in order."""
  found = []
  for key, value in config.items():
    if _is_mapping(value) or isinstance(value, Mapping):
      found += leaves(value, f"{path}{key}.")
    else:
      found.append((f"{path}{key}", value))
  return found


def record(config: "ConfigDict") -> str:
  """The full config as JSON text, the same text for the same config: what `workdir/config.json` holds."""
  return json.dumps(_plain(config), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
  if hasattr(value, "items"):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, (tuple, list)):
    return [_plain(item) for item in value]
  return value


def read(path: str) -> "ConfigDict":
  """The locked config of a `config.json`."""
  try:
    with open(path, encoding="utf-8") as file:
      plain = json.load(file)
  except FileNotFoundError as error:
    raise UserError(f"no config at '{path}': name the workdir of a run.") from error
  except ValueError as error:
    raise UserError(f"'{path}' is not a config record: {error}.") from error
  if not isinstance(plain, dict) or NAME not in plain:
    raise UserError(f"'{path}' is not a config record: it names no component.")
  try:
    config = flatten(typed(plain))
  except UserError as error:
    raise UserError(f"'{path}': {error}") from error
  config.lock()
  return config


def digest(config: "ConfigDict") -> str:
  """Sixteen hex digits that name a resolved config."""
  return hashlib.sha256(record(config).encode()).hexdigest()[:16]


def diff(old: "ConfigDict", new: "ConfigDict") -> list[str]:
  """One line per leaf that differs: `key: old -> new`."""
  before, after = dict(leaves(_plain(old))), dict(leaves(_plain(new)))
  lines = []
  for key in sorted(before.keys() | after.keys()):
    a, b = before.get(key, "(absent)"), after.get(key, "(absent)")
    if a != b:
      lines.append(f"{key}: {a} -> {b}")
  return lines
