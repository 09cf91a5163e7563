"""Names for the leaves of a tree, and choosing leaves by regular expression."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


def leaf_name(path: tuple[Any, ...]) -> str:
  """`block_0/self_attention/query/kernel` for a path as jax.tree_util gives it."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield leaf_name(path), leaf


def map_named(function: Callable[[str, Any], Any], tree: Any) -> Any:
  """`function(name, leaf)` at every leaf."""
  return jax.tree_util.tree_map_with_path(lambda path, leaf: function(leaf_name(path), leaf), tree)


def match(pattern: str, tree: Any) -> Any:
  """A tree of bools: True where `pattern` is found in the leaf's name (re.search)."""
  compiled = re.compile(pattern)
  return map_named(lambda name, _: compiled.search(name) is not None, tree)


def size(tree: Any) -> int:
  """Number of scalars in all leaves."""
  return int(sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(tree)))
