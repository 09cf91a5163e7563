"""Small models and packed rows for the contracts that every objective keeps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from research.core import config as configs
from research.core.types import Batch, TrainState, Vocab
from research.model import transformer
from research.model.attention import grouped

LENGTH, SIZE = 16, 40
OBJECTIVES = [name for name in configs.members("objectives") if name != "reading"]  # which trains nothing
SPECIAL = {"pad": 0, "unk": 1, "bos": 2, "eos": 3, "cls": 4, "sep": 5, "mask": 6}


def vocab() -> Vocab:
  special = np.zeros(SIZE, np.int32)
  special[list(SPECIAL.values())] = 1
  return Vocab(SIZE, SPECIAL, np.arange(SIZE) % 3 == 0, (1 - special) * (1 + np.arange(SIZE, dtype=np.int32) % 2))


def build(name: str, dropout: float = 0.0, **changes):
  """(objective, model, params, apply) of an objective at its defaults, or with `changes` of its keys."""
  cfg = configs.typed(configs.use(f"objectives.{name}", **changes))
  objective = configs.make(cfg, vocab(), LENGTH)
  model = transformer.make(
      transformer.Config(layers=2, width=32, attention=grouped.Config(heads=4), dropout=dropout, deviation=0.2), SIZE, objective.heads, LENGTH
  )
  params = nn.unbox(transformer.init(model, jax.random.key(0)))
  return objective, model, params, transformer.bind(model)


def rows(objective, count: int, seed: int = 0, packed: bool = True) -> dict[str, np.ndarray]:
  """Random packed rows of an objective's element_spec: two documents of unequal length and some padding in each."""
  rng = np.random.default_rng(seed)
  found = {}
  width = objective.element_spec["tokens"].shape[0]
  for field, spec in objective.element_spec.items():
    if field == "tokens":
      found[field] = rng.integers(len(SPECIAL), SIZE, (count, width)).astype(np.int32)
    elif field == "segments":
      found[field] = np.ones((count, width), np.int32)
      if packed:
        for row in found[field]:
          first, last = rng.integers(5, 8), rng.integers(12, width)
          row[first:], row[last:] = 2, 0
    else:
      raise AssertionError(f"the contracts know no rows of '{field}' ({spec.meaning}); teach them in tests/contracts/common.py")
  found["tokens"] = np.where(found["segments"] > 0, found["tokens"], 0).astype(np.int32)
  return found


def batch(objective, count: int, seed: int = 0, start: int = 0, packed: bool = True) -> Batch:
  index = np.stack([np.zeros(count), start + np.arange(count)], axis=1).astype(np.uint32)
  return Batch(rows(objective, count, seed, packed), index, np.ones(count, bool))


def state(params, optimizer, seed: int = 0) -> TrainState:
  return TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params), jax.random.key(seed))
