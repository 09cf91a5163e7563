"""No objective, but the place of one: a model with heads that nothing here trains, which was imported to be read.

`evaluate --evals=similarity` reads a sentence encoder, `convert export` writes it again. The loss is refused.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from research.core.errors import UserError
from research.core.types import Field, Vocab
from research.model.inputs import HeadConfig, Inputs, positions_within
from research.objectives.base import ROW_AXES, SEGMENTS_MEANING, Example, Objective
from research.objectives.pixels import Pixels


@dataclasses.dataclass(frozen=True)
class Config:
  heads: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # name -> keys of model.inputs.HeadConfig that are not at their default
  pixels: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of images: keys of objectives.pixels; empty: texts are read

  def __post_init__(self):
    hints = typing.get_type_hints(HeadConfig)
    for name, head in self.heads.items():
      for key, value in head.items():
        choices = typing.get_args(hints.get(key)) if typing.get_origin(hints.get(key)) is typing.Literal else (value,)
        if key not in hints:
          raise ValueError(f"heads.{name} has no key '{key}'; there are {', '.join(HeadConfig._fields)}")
        if value not in choices:
          raise ValueError(f"heads.{name}.{key} is {value!r}; it must be one of {', '.join(map(repr, choices))}")


def keys(heads: Mapping[str, HeadConfig]) -> dict[str, Any]:
  """The keys of a Config with these heads."""
  plain = lambda head: {key: value for key, value in head._asdict().items() if value != HeadConfig._field_defaults[key]}
  return {"heads": {name: plain(head) for name, head in heads.items()}}


def make(cfg: Config, vocab: Vocab, length: int) -> Objective:
  del vocab
  images = Pixels(**cfg.pixels) if cfg.pixels else None

  def corrupt(key, row, step) -> Example:
    del step
    if images is not None:
      return Example(Inputs(images=images.seen(key, row["images"]), kind="full"), {}, {}, {})
    inputs = Inputs(row["tokens"], positions=positions_within(row["segments"]), segments=row["segments"], kind="full")
    return Example(inputs, {}, {}, {})

  def loss(apply, params, example, key, train):
    raise UserError("objectives.reading trains and scores nothing: this model was imported to be read (evaluate --evals=similarity); to train it, add "
                    "--config.objective=NAME, such as masked_lm; a head that the model lacks starts at random.")  # fmt: skip

  texts = {
      "tokens": Field((length,), "int32", ROW_AXES, "the text"),
      "segments": Field((length,), "int32", ROW_AXES, SEGMENTS_MEANING),
  }
  return Objective(
      element_spec=texts if images is None else {"images": images.field()},
      heads={name: HeadConfig(**head) for name, head in cfg.heads.items()},
      corrupt=corrupt,
      loss=loss,
      factors={},
  )
