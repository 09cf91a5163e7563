"""When a run is evaluated on its validation split."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Config:
  every: int = 250  # steps from one evaluation to the next; the last step is always evaluated
  batch_size: int | None = None  # rows at a time; None: the training batch size
