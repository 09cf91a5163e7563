"""The few types that every floor shares, and the letters that name axes.

Array names carry their axes as a suffix, `scores_BxHxLxK`:

  B  rows of a batch        L  positions of a row (queries)   K  keys              P  positions that are predicted
  D  width of the model     H  query heads                    G  key/value heads   d  width of a head
  F  width inside the FFN   V  vocabulary                     S  slots of a KV cache
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
PyTree = Any
Metrics = Mapping[str, "Mean"]


class Field(NamedTuple):
  """One array of ONE row that the host delivers: what an objective asks of the data."""

  shape: tuple[int, ...]  # static; without the batch axis
  dtype: str  # numpy name
  axes: tuple[str | None, ...]  # logical axis names, one per dimension
  meaning: str  # a sentence for the reader of `preview`


class Vocab(NamedTuple):
  """What an objective may know of a vocabulary; the arrays are gathered from on the device."""

  size: int  # number of ids; every id is in [0, size)
  special: Mapping[str, int]  # 'pad', 'unk', 'bos', 'eos', 'cls', 'sep', 'mask', 'fim_prefix', …, 'sentinel_0', …
  word_start: np.ndarray  # bool [V]: the token begins a word
  byte_length: np.ndarray  # int32 [V]: UTF-8 bytes that the token stands for; 0 for special tokens

  @property
  def plain(self) -> np.ndarray:
    """Ids that stand for text, int32: the ones a random replacement is drawn from."""
    return np.setdiff1d(np.arange(self.size, dtype=np.int32), np.array(sorted(self.special.values()), np.int32))


@flax.struct.dataclass
class Mean:
  """A sum and its weight. Sums add across tokens, microbatches, devices and batches; the division is done once, at the end."""

  total: Array
  weight: Array

  def __add__(self, other: "Mean") -> "Mean":
    return Mean(self.total + other.total, self.weight + other.weight)

  def value(self) -> Array:
    """total / weight; zero where nothing was weighed."""
    return jnp.where(self.weight == 0, 0.0, self.total / jnp.where(self.weight == 0, 1.0, self.weight))

  @classmethod
  def of(cls, values: Array, weights: Array) -> "Mean":
    """Σ values·weights and Σ weights, in at least float32."""
    dtype = jnp.promote_types(jnp.float32, jnp.result_type(values))
    weights = weights.astype(dtype)
    return cls(jnp.sum(values.astype(dtype) * weights), jnp.sum(weights))


class Batch(NamedTuple):
  """Rows of the stream as the step receives them."""

  rows: Mapping[str, Array]  # name -> [B, *Field.shape]
  index: Array  # uint32 [B, 2]: high and low word of each row's index in its stream; keys the corruption of that row
  valid: Array  # bool [B]: False for the rows that pad a last evaluation batch


@flax.struct.dataclass
class TrainState:
  """All that a checkpoint holds: arrays only. Rows drawn so far = step · batch size."""

  step: Array  # int32 []: updates asked for, skipped ones too
  params: PyTree  # gradients are taken of these only
  frozen: PyTree  # parameters without a gradient
  opt_state: PyTree
  key: Array  # the root of every random draw inside the step
