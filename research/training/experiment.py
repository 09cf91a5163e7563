"""The top-level keys of every config file, the same everywhere."""

from __future__ import annotations

import dataclasses

from research.core.config import Component
from research.data import text
from research.model import transformer
from research.objectives import causal_lm
from research.optim import optimizer
from research.parallel import mesh
from research.training import checkpoint, evaluation, monitor


@dataclasses.dataclass(frozen=True)
class Config:
  seed: int = 0  # initialisation, corruption and dropout; the order of the data has its own, data.seed
  steps: int = 1000  # updates
  batch_size: int = 16  # rows of an update, over all devices
  microbatches: int = 1  # parts that a batch is cut into, one after the other, to save memory
  data: Component = text.Config()
  model: Component = transformer.Config()
  objective: Component = causal_lm.Config()
  optimizer: Component = optimizer.Config()
  mesh: Component = mesh.Config()
  checkpoint: Component = checkpoint.Config()
  evaluate: Component = evaluation.Config()
  log: Component = monitor.Config()
  init_from: str | None = None  # workdir of a run whose parameters this one starts from

  def __post_init__(self):
    for key in ("steps", "batch_size", "microbatches"):
      if getattr(self, key) < 1:
        raise ValueError(f"{key} must be at least 1; got {getattr(self, key)}")
    if late := [step for step in self.checkpoint.steps if step > self.steps]:
      raise ValueError(f"checkpoint.steps names step {late[0]}, but the run ends at steps {self.steps}: lower the one or raise the other")


# What may change when a run goes on: none of it moves the numbers, but for the order of sums.
RESUMABLE = ("mesh.", "checkpoint.", "evaluate.", "log.", "microbatches", "data.directory", "model.remat")
