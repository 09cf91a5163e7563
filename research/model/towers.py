"""Several Transformers in one model, each reading inputs of its own: CLIP's text and image (Radford et al. 2021).

A head belongs to the tower that `HeadConfig.tower` names; heads without one (a temperature) belong to the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
from flax.core import FrozenDict

from research.core.config import Component
from research.core.types import Array
from research.model import cache as caches
from research.model import transformer
from research.model.heads import HEADS
from research.model.inputs import HeadConfig, Inputs, Output, Past

WIDTHS = ("bfloat16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class Config:
  towers: Mapping[str, Component] = dataclasses.field(default_factory=lambda: {"text": transformer.Config()})  # name -> model.transformer

  @property
  def dtype(self) -> str:
    """Of activations: the widest of the towers'."""
    return max((tower.dtype for tower in self.towers.values()), key=WIDTHS.index)

  @property
  def param_dtype(self) -> str:
    """Of parameters: the widest of the towers'."""
    return max((tower.param_dtype for tower in self.towers.values()), key=WIDTHS.index)


class Towers(nn.Module):
  cfg: FrozenDict  # name -> transformer.Config
  vocab_size: int
  heads: Mapping[str, HeadConfig]
  length: int

  @property
  def towers(self) -> tuple[str, ...]:
    return tuple(self.cfg)

  def setup(self):
    for name, head in self.heads.items():
      if head.tower is not None and head.tower not in self.cfg:
        raise ValueError(f"head '{name}' reads the tower '{head.tower}', which model.towers lacks; it has {', '.join(self.towers)}")
    own = lambda tower: FrozenDict({name: head for name, head in self.heads.items() if head.tower == tower})
    self.tower = {name: transformer.Transformer(cfg, self.vocab_size, own(name), self.length) for name, cfg in self.cfg.items()}
    first = next(iter(self.cfg.values()))
    common = (self.vocab_size, first.width, first.width, False, first.norm, first.epsilon, first.deviation, first.dtype, first.param_dtype)
    self.head = {name: HEADS[head.kind](head, *common) for name, head in own(None).items()}

  def __call__(self, inputs: Inputs, read: Mapping[str, Array | None] | None = None, cache: caches.Cache | None = None,
               memory: Array | None = None, past: Past | None = None, train: bool = False, tower: str | None = None) -> Output:  # fmt: skip
    """Runs one tower; heads of no tower can be read with any, or alone with `tower` None."""
    read = dict(read or {})
    shared = {name: self.head[name](None, None) for name in list(read) if self.heads[name].tower is None and read.pop(name) is None}
    if tower is None:
      return Output(shared, None, None, None, {}, {})
    output = self.tower[tower](inputs, read, cache, memory, past, train)
    return output._replace(heads={**output.heads, **shared})

  def everything(self, batch: int) -> dict[str, Output]:
    """Calls every part once, so that initialisation makes every parameter."""
    self(None, {name: None for name, head in self.heads.items() if head.tower is None})
    return {name: tower.everything(batch) for name, tower in self.tower.items()}


def make(cfg: Config, vocab_size: int, heads: Mapping[str, HeadConfig], length: int) -> Towers:
  return Towers(FrozenDict(cfg.towers), vocab_size, FrozenDict(heads), length)
