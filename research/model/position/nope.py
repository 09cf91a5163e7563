"""NoPE: no positions at all; a causal stack can still count (Haviv et al. 2022, Kazemnejad et al. 2023)."""

from __future__ import annotations

import dataclasses

from research.model.position.base import Position, Sizes


@dataclasses.dataclass(frozen=True)
class Config:
  pass


def make(cfg: Config, sizes: Sizes) -> Position:
  del cfg, sizes
  return Position()
