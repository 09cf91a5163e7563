"""What a run says when its numbers look wrong; each alarm once, as a sentence with the way to mend it. And when they are beyond hope."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

PADDING = 0.5  # share of a batch from which it is too much
TARGETS = 32  # of a batch, below which its gradient is mostly noise
NEAR = 0.05  # nats: as near to what knows no context is as good as nothing learned
PATIENCE = 500  # steps that a model has to leave that loss
STREAK = 10  # logged lines over which no update is made, after which a run is given up


def only_skips(lines: Sequence[Mapping[str, Any]]) -> int:
  """How many updates were skipped (loss or gradient not finite, or above optimizer.spike) since the line of training STREAK before the last; 0 where one was made."""
  if len(lines) <= STREAK:
    return 0
  first, last = lines[-1 - STREAK], lines[-1]
  skipped = int(last.get("skipped", 0) - first.get("skipped", 0))
  return skipped if skipped >= last["step"] - first["step"] else 0


def diverged(lines: Sequence[Mapping[str, Any]]) -> str:
  """What is beyond hope in the lines of a run's metrics, where it ended; empty: nothing."""
  if not all(math.isfinite(line.get("loss", 0.0)) for line in lines[-1:]):
    return "loss not finite"
  skipped = only_skips([line for line in lines if line["split"] == "train"])
  return f"the last {skipped} updates all skipped" if skipped else ""


class Alarms:
  def __init__(self, baseline: str | None, loss: float | None):
    """
    Args:
      baseline: name of what a model must beat, and its loss in nats; None where the data has none.
    """
    self._name, self._loss, self.said = baseline, loss, {}

  def train(self, values: Mapping[str, float]) -> list[str]:
    """What a line of training metrics gives reason to say."""
    found = {}
    if values.get("padding", 0) > PADDING:
      found["padding"] = f"{values['padding']:.0%} of a batch's places are padding: lower data.length, or put several texts into a row (data.layout=pack)."
    if 0 < values.get("targets", TARGETS) < TARGETS:
      found["targets"] = f"a batch has {values['targets']:.0f} targets, too few for a steady gradient: raise batch_size, data.length or the share that is predicted."
    return self._new(found)

  def valid(self, step: int, loss: float) -> list[str]:
    """What an evaluation gives reason to say; `loss` is compared where the baseline's is one of the same targets."""
    if self._loss is None or step < PATIENCE or loss < self._loss - NEAR:
      return []
    return self._new({"stuck": f"after {step} steps the validation loss, {loss:.3f}, has not left that of {self._name}, {self._loss:.3f}: nothing is learned from the "
                               "context; try another learning rate, a longer warm-up or a larger batch."})  # fmt: skip

  def _new(self, found: Mapping[str, str]) -> list[str]:
    new = {kind: text for kind, text in found.items() if kind not in self.said}
    self.said |= new
    return [f"alarm: {text}" for text in new.values()]
