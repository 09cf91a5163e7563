"""Small models and packed rows for the contracts that every objective keeps."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core import config as configs
from research.core.types import Batch, TrainState, Vocab
from research.model import patches, towers, transformer
from research.model.attention import grouped
from research.model.inputs import Projection

LENGTH, SIZE, TYPES = 16, 40, 2
IN_BATCH = "a row is told apart from the other rows of its batch"
ONE_TEXT = "a row is one text, whatever documents it was cut from"
EXEMPT = {  # (objective, contract) -> why the contract cannot hold for it
    ("contrastive", "packing"): ONE_TEXT,
    ("contrastive", "evaluation batch"): IN_BATCH,
    ("contrastive", "hidden targets"): "its targets are no tokens",
    ("image_text", "packing"): ONE_TEXT,
    ("image_text", "evaluation batch"): IN_BATCH,
    ("image_text", "hidden targets"): "its targets are no tokens",
}
KEYS = {  # small, and with scores of a size that does not magnify the rounding of cosines
    "contrastive": dict(temperature=0.5),
    "image_text": dict(height=8, width=8, crop=2, flip=True, outputs=8, scale=2.0),
}
DETERMINISTIC = {"causal_lm", "contrastive"}  # `corrupt` draws nothing
OBJECTIVES = [name for name in configs.members("objectives") if name != "reading"]  # which trains nothing
SPECIAL = {"pad": 0, "unk": 1, "bos": 2, "eos": 3, "cls": 4, "sep": 5, "mask": 6}


def vocab() -> Vocab:
  special = np.zeros(SIZE, np.int32)
  special[list(SPECIAL.values())] = 1
  return Vocab(SIZE, SPECIAL, np.arange(SIZE) % 3 == 0, (1 - special) * (1 + np.arange(SIZE, dtype=np.int32) % 2))


def objective_of(name: str, **changes):
  """An objective at the keys of the contracts, with `changes`."""
  return configs.make(configs.typed(configs.use(f"objectives.{name}", **{**KEYS.get(name, {}), **changes})), vocab(), LENGTH)


def build(name: str, dropout: float = 0.0, **changes):
  """(objective, model, params, apply) of an objective at its defaults, or with `changes` of its keys."""
  objective = objective_of(name, **changes)
  types = TYPES if "types" in objective.element_spec else 0
  stack = transformer.Config(layers=2, width=32, attention=grouped.Config(heads=4), token_types=types, dropout=dropout, deviation=0.2)
  if "images" in objective.element_spec:
    images = dataclasses.replace(stack, patches=patches.Config(height=8, width=8, patch=4))
    stack = towers.Config({"text": dataclasses.replace(stack, layers=1), "image": dataclasses.replace(images, layers=1)})
  model = configs.make(stack, SIZE, objective.heads, LENGTH)
  params = nn.unbox(transformer.init(model, jax.random.key(0)))
  return objective, model, params, transformer.bind(model)


def objectives(contract: str):
  """Every objective, those that `EXEMPT` names marked with the reason."""
  reason = lambda name: EXEMPT.get((name, contract))
  return pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.skip(reason=reason(name))] if reason(name) else []) for name in OBJECTIVES])


def scores(output, head: str) -> jnp.ndarray:
  """What a head gives, [B, P, ·]."""
  found = output.heads[head]
  return found.logits() if isinstance(found, Projection) else found


def rows(objective, count: int, seed: int = 0, packed: bool = True) -> dict[str, np.ndarray]:
  """Random packed rows of an objective's element_spec: two documents of unequal length and some padding in each."""
  rng = np.random.default_rng(seed)
  found = {}
  for field, spec in objective.element_spec.items():
    shape = (count, *spec.shape)
    if field == "tokens":
      found[field] = rng.integers(len(SPECIAL), SIZE, shape).astype(np.int32)
    elif field == "segments":
      found[field] = np.ones(shape, np.int32)
      if packed:
        for row in found[field].reshape(-1, shape[-1]):
          first, last = rng.integers(5, 8), rng.integers(12, shape[-1])
          row[first:], row[last:] = 2, 0
    elif field == "types":
      found[field] = (np.arange(LENGTH) > rng.integers(2, 6, (count, 1))).astype(np.int32)
    elif field == "images":
      found[field] = rng.integers(0, 256, shape).astype(np.uint8)
    elif field == "is_next":
      found[field] = rng.integers(0, 2, shape).astype(np.int32)
    else:
      raise AssertionError(f"the contracts know no rows of '{field}' ({spec.meaning}); teach them in tests/contracts/common.py")
  found["tokens"] = np.where(found["segments"] > 0, found["tokens"], 0).astype(np.int32)
  return found


def batch(objective, count: int, seed: int = 0, start: int = 0, packed: bool = True) -> Batch:
  index = np.stack([np.zeros(count), start + np.arange(count)], axis=1).astype(np.uint32)
  return Batch(rows(objective, count, seed, packed), index, np.ones(count, bool))


def state(params, optimizer, seed: int = 0) -> TrainState:
  return TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params), jax.random.key(seed))
