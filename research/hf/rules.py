"""The language in which a family says how its Hugging Face tensors and our parameters are the same thing.

A `Rule` pairs one of their tensors with one of our leaves (or several, where theirs is a fused one) and a `Transform`, which runs both
ways. So one table serves import and export, and export is the exact inverse. Ours keep heads as axes of their own and kernels as
[inputs, outputs]; theirs are flat matrices, usually [outputs, inputs].
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from research.core.errors import UserError
from research.core.trees import map_named, named_leaves
from research.core.types import PyTree
from research.hf.files import Folder, Written

Shape = tuple[int, ...]


class Transform(NamedTuple):
  """How one of their tensors is made of our leaves, and back; every function gets one entry for each of our leaves."""

  shape: Callable[[Sequence[Shape]], Shape]  # shapes of ours -> shape of theirs
  split: Callable[[np.ndarray, Sequence[Shape]], list[np.ndarray]]  # theirs, shapes of ours -> ours
  join: Callable[[Sequence[np.ndarray]], np.ndarray]  # ours -> theirs


class Rule(NamedTuple):
  """One of their tensors and the leaves of ours that hold the same numbers."""

  theirs: str  # full name, with the prefix of the model inside its head's class: transformer.h.0.ln_1.weight
  ours: str | tuple[str, ...]  # as core/trees names leaves: stack/block_0/attention_norm/scale
  how: Transform
  copies: tuple[str, ...] = ()  # other names that the same tensor has where it is tied: read in its stead, or checked to be equal

  @property
  def leaves(self) -> tuple[str, ...]:
    return (self.ours,) if isinstance(self.ours, str) else self.ours


def each(count: int, *rules: Rule) -> list[Rule]:
  """The rules for layers 0 … count − 1: `{i}` in their names is the layer."""
  put = lambda text, i: text.replace("{i}", str(i))
  return [
      Rule(put(rule.theirs, i), tuple(put(name, i) for name in rule.leaves), rule.how, tuple(put(name, i) for name in rule.copies))
      for i in range(count)
      for rule in rules
  ]


# --- transforms --------------------------------------------------------------------------------------------------------------


def _single(shape: Callable[[Shape], Shape], split: Callable[[np.ndarray, Shape], np.ndarray], join: Callable[[np.ndarray], np.ndarray]) -> Transform:
  """A transform of one leaf."""
  return Transform(lambda shapes: shape(*shapes), lambda theirs, shapes: [split(theirs, *shapes)], lambda ours: join(*ours))


# The same shape: embeddings, norms, biases of width D.
SAME = _single(lambda shape: shape, lambda theirs, shape: theirs, lambda ours: ours)

# All axes in one: the bias [H, d] of a projection to heads is [H·d].
FLAT = _single(lambda shape: (math.prod(shape),), lambda theirs, shape: theirs.reshape(shape), lambda ours: ours.reshape(-1))


def linear(inputs: int = 1) -> Transform:
  """torch's Linear: [out, in], for our kernel of which the first `inputs` axes are inputs (2 for the kernel [H, d, D] that leaves heads)."""
  sizes = lambda shape: (math.prod(shape[inputs:]), math.prod(shape[:inputs]))
  return _single(sizes, lambda theirs, shape: theirs.T.reshape(shape), lambda ours: ours.reshape(sizes(ours.shape)[::-1]).T)


def matrix(inputs: int = 1) -> Transform:
  """As `linear`, stored [in, out] (GPT-2's Conv1D)."""
  sizes = lambda shape: (math.prod(shape[:inputs]), math.prod(shape[inputs:]))
  return _single(sizes, lambda theirs, shape: theirs.reshape(shape), lambda ours: ours.reshape(sizes(ours.shape)))


def permuted(*axes: int) -> Transform:
  """Theirs is ours with the axes in another order, as in transpose: ours [P, P, C, D], theirs [D, C, P, P] is permuted(3, 2, 0, 1)."""
  back = tuple(int(i) for i in np.argsort(axes))
  return _single(lambda shape: tuple(shape[i] for i in axes), lambda theirs, shape: theirs.transpose(back), lambda ours: ours.transpose(axes))


def leading(count: int) -> Transform:
  """Theirs has `count` axes of length 1 before ours: a vector [D] that they store as [1, 1, D]."""
  return _single(lambda shape: (*[1] * count, *shape), lambda theirs, shape: theirs.reshape(shape), lambda ours: ours.reshape(*[1] * count, *ours.shape))


def fused(part: Transform, axis: int = 0) -> Transform:
  """Several leaves, each transformed by `part`, one behind the other along an axis of theirs (query, key and value in one matrix)."""

  def shape(shapes: Sequence[Shape]) -> Shape:
    parts = [list(part.shape([one])) for one in shapes]
    whole = parts[0]
    whole[axis] = sum(p[axis] for p in parts)
    return tuple(whole)

  def split(theirs: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
    ends = np.cumsum([part.shape([one])[axis] for one in shapes])[:-1]
    return [part.split(piece, [one])[0] for piece, one in zip(np.split(theirs, ends, axis), shapes)]

  return Transform(shape, split, lambda ours: np.concatenate([part.join([one]) for one in ours], axis))


# --- import ------------------------------------------------------------------------------------------------------------------


class Naming(NamedTuple):
  """How the names in a folder may differ from those in the rules."""

  prefix: str = ""  # that a folder of the model without its head leaves out: 'transformer.'
  renames: Mapping[str, str] = {}  # regular expression -> replacement, for old names: {r'\.gamma$': '.weight'}
  ignored: Mapping[str, str] = {}  # regular expression of a tensor that needs no place -> why


class Report(NamedTuple):
  """What an import did."""

  read: int  # tensors
  ignored: Mapping[str, str]  # tensor -> why it is not needed
  parameters: int
  bytes: int  # of the parameters


def import_params(rules: Sequence[Rule], folder: Folder, wanted: PyTree, naming: Naming) -> tuple[PyTree, Report]:
  """The parameters that a folder holds.

  Every name and shape is checked before the first tensor is read. Each tensor is placed on its devices as it is read, the largest first,
  and dropped on the host: the memory needed is that of the parameters, their largest excepted.

  Args:
    wanted: a tree of jax.ShapeDtypeStruct, with shardings where the parameters go onto a mesh; tensors are cast to its dtypes.

  Raises:
    UserError: a tensor that is missing, has another shape, or that no rule uses.
    ValueError: the rules do not match the model; a defect of the family's table.
  """
  shapes = dict(named_leaves(wanted))
  _check_table(rules, shapes)
  found = _names(rules, folder, naming)
  ignored = _check_unused(rules, folder, found, naming)
  plan = _plan(rules, folder, found, naming, shapes)
  params, read = {}, 0
  for rule, names in sorted(plan, key=lambda item: -folder.tensors[item[1][0]].bytes):
    theirs = folder.read(names[0])
    for other in names[1:]:
      if not np.array_equal(theirs, folder.read(other)):
        raise UserError(f"tensors '{names[0]}' and '{other}' of '{folder.path}' differ, though its config.json says that they are one (tied): "
                        "set tie_word_embeddings to false there if both are meant.")  # fmt: skip
    for name, ours in zip(rule.leaves, rule.how.split(theirs, [shapes[leaf].shape for leaf in rule.leaves])):
      leaf = shapes[name]
      params[name] = jax.device_put(np.asarray(ours.astype(leaf.dtype, copy=False), order="C"), getattr(leaf, "sharding", None))
      params[name].block_until_ready()
    del theirs, ours
    read += len(names)
  count = sum(math.prod(leaf.shape) for leaf in shapes.values())
  size = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in shapes.values())
  return map_named(lambda name, _: params[name], wanted), Report(read, ignored, count, size)


def _check_table(rules: Sequence[Rule], shapes: Mapping[str, Any]) -> None:
  """Every leaf has one rule, and every rule its leaves."""
  ruled = [leaf for rule in rules for leaf in rule.leaves]
  wrong = {leaf: "has two rules" for leaf in ruled if ruled.count(leaf) > 1} if len(ruled) != len(set(ruled)) else {}
  wrong |= {leaf: "has no rule" for leaf in shapes if leaf not in set(ruled)}
  wrong |= {leaf: "is in a rule but not in the model" for leaf in ruled if leaf not in shapes}
  if wrong:
    raise ValueError("the family's table does not fit the model: " + "; ".join(f"'{leaf}' {why}" for leaf, why in sorted(wrong.items())[:8]))


def _names(rules: Sequence[Rule], folder: Folder, naming: Naming) -> dict[str, str]:
  """Name in the rules (or, where no rule knows it, the renamed one) -> name in the folder."""
  known = {name for rule in rules for name in (rule.theirs, *rule.copies)}
  found: dict[str, str] = {}
  for actual in folder.tensors:
    name = actual
    for pattern, replacement in naming.renames.items():
      name = re.sub(pattern, replacement, name)
    if name not in known and naming.prefix + name in known:
      name = naming.prefix + name
    if name in found:
      raise UserError(f"'{folder.path}' holds both '{found[name]}' and '{actual}', which are the same tensor: leave one of them out.")
    found[name] = actual
  return found


def _check_unused(rules: Sequence[Rule], folder: Folder, found: Mapping[str, str], naming: Naming) -> dict[str, str]:
  """The tensors that the family's table expects and does not need, with the reason."""
  known = {name for rule in rules for name in (rule.theirs, *rule.copies)}
  ignored, unused = {}, []
  for name, actual in found.items():
    if name not in known:
      why = next((why for pattern, why in naming.ignored.items() if re.search(pattern, name)), None)
      if why is None:
        unused.append(actual)
      else:
        ignored[actual] = why
  if unused:
    raise UserError(f"{len(unused)} tensor(s) of '{folder.path}' have no place in the model that its config.json describes: {_some(unused)} (first in "
                    f"{folder.where(unused[0])}); the folder is of another architecture than it says, or of one that is not supported.")  # fmt: skip
  return ignored


def _plan(rules: Sequence[Rule], folder: Folder, found: Mapping[str, str], naming: Naming, shapes: Mapping[str, Any]) -> list[tuple[Rule, list[str]]]:
  """Each rule with the tensors of the folder that it reads; more than one where copies are there too."""
  plan, missing = [], []
  for rule in rules:
    names = [found[name] for name in (rule.theirs, *rule.copies) if name in found]
    if not names:
      missing.append(rule)
    for name in names:
      want, tensor = rule.how.shape([shapes[leaf].shape for leaf in rule.leaves]), folder.tensors[name]
      if tensor.shape != want:
        raise UserError(f"tensor '{name}' in {folder.where(name)} is {list(tensor.shape)}, but its config.json asks for {list(want)}: "
                        "the two files do not belong together.")  # fmt: skip
    plan.append((rule, names))
  if missing:
    raise UserError(f"{len(missing)} tensor(s) are missing in '{folder.path}': {_some([rule.theirs for rule in missing])} (first for parameter "
                    f"'{missing[0].leaves[0]}'); fetch all of the model's files, or mend its config.json.")  # fmt: skip
  return plan


def _some(names: Sequence[str]) -> str:
  return ", ".join(f"'{name}'" for name in names[:5]) + (", …" if len(names) > 5 else "")


# --- export ------------------------------------------------------------------------------------------------------------------


def export_params(rules: Sequence[Rule], params: PyTree) -> Iterator[Written]:
  """Their tensors, each made when it is written; the exact inverse of `import_params`. Copies are left out, as transformers does."""
  leaves = dict(named_leaves(params))
  _check_table(rules, leaves)
  for rule in rules:
    ours = [leaves[leaf] for leaf in rule.leaves]
    make = lambda rule=rule, ours=ours: rule.how.join([np.asarray(leaf) for leaf in ours])
    yield Written(rule.theirs, rule.how.shape([leaf.shape for leaf in ours]), np.dtype(ours[0].dtype).name, make)
