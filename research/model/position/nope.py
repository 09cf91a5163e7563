"""NoPE: no positions at all; a causal stack can still count (Haviv et al. 2022, Kazemnejad et al. 2023)."""

from __future__ import annotations

import dataclasses

from research.model.position.base import Position


@dataclasses.dataclass(frozen=True)
class Config:
  pass


def make(cfg: Config, *, width: int, length: int, deviation: float, dtype: str, param_dtype: str) -> Position:
  del cfg, width, length, deviation, dtype, param_dtype
  return Position()
