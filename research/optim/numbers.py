"""The optimizer's numbers that may be arrays: runs that differ in nothing else are one program, whose inputs they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

# Keys below `optimizer`. Where one is None (no clipping, no average) there is another program; so it is for what is counted in whole updates.
NUMBERS = ("schedule.peak", "schedule.end", "b1", "b2", "epsilon", "momentum", "weight_decay", "clip", "spike", "ema", "muon_momentum", "muon_rate")
UNUSED = {"weight_decay": 0.0, "momentum": 0.0, "muon_rate": 1.0}  # values with which an optimizer leaves a part out: without it, it is another program too


def known(value: Any) -> bool:
  """Whether Python may look at it: it is no array."""
  return not isinstance(value, jax.Array)


def used(key: str, value: Any) -> bool:
  """Whether a number does anything: one that is not known does."""
  return not known(value) or value != UNUSED.get(key)


def concrete(cfg: Any) -> bool:
  """Whether all numbers of a config are known."""
  return all(known(getattr(cfg, field.name)) for field in dataclasses.fields(cfg))


def replaced(cfg: Any, numbers: Mapping[str, Any]) -> Any:
  """The optimizer's config with other numbers: key (of NUMBERS) -> value."""
  own = {key: value for key, value in numbers.items() if "." not in key}
  inner = {key.partition(".")[2]: value for key, value in numbers.items() if "." in key}
  return dataclasses.replace(cfg, **own, **({"schedule": dataclasses.replace(cfg.schedule, **inner)} if inner else {}))
