"""Configs: a component is a file, its keys are the fields of that file's `Config`, its name is the file's name.

A component file opens with `@dataclass(frozen=True) class Config`, the only place of its defaults. A config file writes

  config.objective = use("objectives.masked_lm", mask_rate=0.15)

`use` fills in every default, so a config is complete and every key can be set by flag (`--config.objective.mask_rate=0.3`).
`core/overrides` reads config files and applies flags. `typed` turns the result into the frozen dataclasses that the code receives.

A name is looked up below `research` first and as a full module path otherwise, so `use("experiments.my_study.objective")`
loads a component from outside the package. Nothing has to be registered.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import json
import math
import os
import sys
import types
import typing
from collections.abc import Mapping
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
  return _config_dict({NAME: name, **defaults, **flat}, locked=True)


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
    return _config_dict({NAME: component_name(value), **fields}, locked=True)
  if isinstance(value, Mapping):
    return _config_dict({key: flatten(item) for key, item in value.items()}, locked=False)
  return value


def _config_dict(items: Mapping[str, Any], locked: bool) -> "ConfigDict":
  """Locked, at its own level alone: a mistyped key in a config file raises. Mappings, whose names are free, stay open."""
  from ml_collections import ConfigDict

  config = ConfigDict(type_safe=False)
  for key, value in items.items():
    config[key] = value
  object.__setattr__(config, "_locked", locked)
  return config


def is_config(value: Any) -> bool:
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
  hints = annotations(cls)
  fields = {}
  for key, value in config.items():
    if key == NAME:
      continue
    if key not in hints:
      raise UserError(f"no config key '{path}{key}' in '{config[NAME]}'.{nearest(key, hints)}")
    fields[key] = _coerce(typed(value, f"{path}{key}."), hints[key], f"{path}{key}")
  for field in dataclasses.fields(cls):
    if field.name not in fields:
      fields[field.name] = typed(_default(field, config[NAME]), f"{path}{field.name}.")
  try:
    return cls(**fields)
  except ValueError as error:  # a Config's own __post_init__ check
    raise UserError(f"config '{path.rstrip('.') or config[NAME]}': {error}") from error


@functools.cache
def annotations(cls: type) -> dict[str, Any]:
  """Field -> its type."""
  hints = typing.get_type_hints(cls)
  return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


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
    if is_config(value) or isinstance(value, Mapping):
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
