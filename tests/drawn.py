"""Parameters of a model for tests: drawn on the host, where an initialisation would compile a program for every shape."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from research.core.trees import map_named
from research.model import transformer


def parameters(model: nn.Module, seed: int = 0) -> Any:
  """Values that hide nothing: no zero bias, no unit scale."""
  rng = np.random.default_rng(seed)
  draw = lambda name, leaf: rng.normal(name.endswith("scale"), 0.2 if leaf.ndim < 2 else 0.6 / leaf.shape[-1] ** 0.5, leaf.shape).astype(leaf.dtype)
  return jax.tree.map(jax.numpy.asarray, map_named(draw, nn.unbox(boxed(model))))


@functools.cache
def boxed(model: nn.Module) -> Any:
  """Shapes of its parameters, each boxed with its logical axes; not to be asked for first under a mesh."""
  return jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
