"""What a family of published models is: how its config.json and its tensors correspond to the one Transformer.

A file of this folder that assigns FAMILIES holds families; they are found by listing the folder. Nothing is registered.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from research.core.errors import UserError, nearest
from research.hf.config import HfConfig
from research.hf.rules import Naming, Rule
from research.model import towers, transformer
from research.model.inputs import HeadConfig


class Described(NamedTuple):
  """The model that a config.json describes: what transformer.make takes, and what trains it."""

  cfg: transformer.Config | towers.Config
  heads: Mapping[str, HeadConfig]
  vocab_size: int  # 1 for a model of images alone, which has no embedding
  length: int  # places of a row that it was made for, at most
  objective: str | None = None  # component of an objective that has these heads; None: no objective here trains this head
  objective_keys: Mapping[str, Any] = {}  # of its Config


class Family(NamedTuple):
  """One family. `config` reads, `export_config` writes, `rules` pairs the tensors; both directions are held against each other."""

  name: str  # model_type in config.json
  architectures: Sequence[str]  # the classes whose weights are read
  config: Callable[[HfConfig], Described]
  rules: Callable[[Described], list[Rule]]
  export_config: Callable[[Described], dict[str, Any]]  # the inverse of `config`, of a `resolved` model; with `architectures` and `model_type`
  naming: Callable[[Described], Naming] | Naming = Naming()

  def names(self, described: Described) -> Naming:
    return self.naming(described) if callable(self.naming) else self.naming


@functools.cache
def families() -> dict[str, Family]:
  """All families by name."""
  folder, found = os.path.dirname(__file__), {}
  for entry in sorted(os.listdir(folder)):
    if entry.endswith(".py"):
      with open(os.path.join(folder, entry), encoding="utf-8") as file:
        if "\nFAMILIES" in file.read():
          found |= {family.name: family for family in importlib.import_module(f"research.hf.{entry[:-3]}").FAMILIES}
  return found


def describe(values: Mapping[str, Any], where: str) -> tuple[Family, Described]:
  """The family and the model of a config.json.

  Raises:
    UserError: an unknown model type or architecture, or a key or value that is not supported.
  """
  kind = values.get("model_type")
  if kind not in families():
    hint = nearest(str(kind), families()) if kind else f" Known: {', '.join(sorted(families()))}."
    raise UserError(f"{where}: unknown model_type {kind!r}.{hint}")
  family, hf = families()[kind], HfConfig(values, where)
  if hf.architecture and hf.architecture not in family.architectures:
    raise UserError(f"{where}: unknown architecture '{hf.architecture}' of model type '{kind}'.{nearest(hf.architecture, family.architectures)}")
  described = family.config(hf)
  hf.finish()
  return family, described


# What the weights and the arithmetic do not depend on, so that config.json has no place for it.
OURS_ALONE = ("residual_init", "scan", "remat", "dtype", "param_dtype", "initial")


def exported(family: Family, described: Described) -> dict[str, Any]:
  """The config.json of a model, checked by reading it again.

  Raises:
    UserError: the family has no form for this model; the key that differs is named.
  """
  described = described._replace(cfg=resolved(described.cfg, described.length))
  values = family.export_config(described)
  _, again = describe(values, f"the exported config.json of family '{family.name}'")
  mine, back = flat(described), flat(again._replace(cfg=resolved(again.cfg, again.length)))
  for key in {**mine, **back}:
    if mine.get(key) != back.get(key):
      raise UserError(f"family '{family.name}' has no form for this model: {key} is {mine.get(key, 'absent')!r} here and can only be {back.get(key, 'absent')!r} "
                      "there; export it as another family, or keep it in our own form.")  # fmt: skip
  return values


def flat(described: Described) -> dict[str, Any]:
  """Every value that decides what a model computes."""
  found: dict[str, Any] = {"vocab_size": described.vocab_size}

  def walk(path: str, value: Any) -> None:
    if dataclasses.is_dataclass(value):
      found[path] = type(value).__module__
      for field in dataclasses.fields(value):
        walk(f"{path}.{field.name}", getattr(value, field.name))
    elif isinstance(value, Mapping) or hasattr(value, "_asdict"):
      for key, item in (value if isinstance(value, Mapping) else value._asdict()).items():
        walk(f"{path}.{key}", item)
    elif isinstance(value, (tuple, list)):
      for i, item in enumerate(value):
        walk(f"{path}.{i}", item)
    else:
      found[path] = value

  walk("model", described.cfg)
  walk("heads", dict(described.heads))
  return {key: value for key, value in found.items() if key.rpartition(".")[2] not in OURS_ALONE}


def resolved(cfg: Any, length: int) -> Any:
  """The same model with the sizes written out that follow from others (None, 0), and an attention scale of 1/√d as None."""
  if isinstance(cfg, towers.Config):
    return dataclasses.replace(cfg, towers={name: resolved(tower, length) for name, tower in cfg.towers.items()})

  def fill(part: Any, **values: Any) -> Any:
    have = {f.name for f in dataclasses.fields(part)}
    return dataclasses.replace(part, **{key: value for key, value in values.items() if key in have and not getattr(part, key)})

  attention = fill(cfg.attention, kv_heads=cfg.attention.heads, head_dim=cfg.width // cfg.attention.heads)
  if attention.scale == 1 / math.sqrt(attention.head_dim):
    attention = dataclasses.replace(attention, scale=None)
  if attention.out_bias is None:
    attention = dataclasses.replace(attention, out_bias=attention.bias)
  hidden = -(-cfg.width * 8 // 24) * 8 if cfg.ffn.gated else 4 * cfg.width
  parts = dict(attention=attention, ffn=fill(cfg.ffn, hidden=hidden), position=fill(cfg.position, length=length))
  return fill(dataclasses.replace(cfg, **parts), embed_width=cfg.width)


def with_types(cfg: Any, dtype: str, param_dtype: str) -> Any:
  """The same model computing in `dtype` with parameters of `param_dtype`."""
  if isinstance(cfg, towers.Config):
    return dataclasses.replace(cfg, towers={name: with_types(tower, dtype, param_dtype) for name, tower in cfg.towers.items()})
  return dataclasses.replace(cfg, dtype=dtype, param_dtype=param_dtype)
