"""A finished or running run's model, from its workdir: what evaluation and generation start from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from research.core import config as configs
from research.core.errors import UserError
from research.core.trees import named_leaves
from research.core.types import PyTree
from research.data import tokenizer as tokenizers
from research.model import transformer
from research.objectives.base import Objective
from research.training import experiment
from research.training.checkpoint import Checkpoints

TOKENIZER = "tokenizer"  # the folder of the workdir that holds a copy of the vocabulary


class Restored(NamedTuple):
  cfg: experiment.Config
  step: int
  tokenizer: tokenizers.Tokenizer
  objective: Objective
  model: transformer.Transformer
  apply: transformer.Apply
  params: PyTree  # their moving average where the run keeps one
  labels: tuple[str, ...]  # the names of the classes that it was trained on, where there are such


def restore(workdir: str, step: int | None = None) -> Restored:
  """The model of a checkpoint (default: the latest).

  Raises:
    UserError: no run there, a damaged checkpoint, or a tokenizer that is not the one the model was trained with.
  """
  if not os.path.isdir(workdir):
    raise UserError(f"no folder '{workdir}': name the workdir of a run.")
  config = configs.read(os.path.join(workdir, "config.json"))
  cfg: experiment.Config = configs.typed(config)
  checkpoints = Checkpoints(workdir)
  meta = checkpoints.meta(step)
  tokenizer = tokenizers.load(os.path.join(workdir, TOKENIZER))
  if tokenizer.digest != meta["tokenizer"]:
    raise UserError(f"the vocabulary in '{os.path.join(workdir, TOKENIZER)}' ({tokenizer.vocab.size} entries, {tokenizer.digest}) is not the one that this model was "
                    f"trained with ({meta['tokenizer']}): bring that one back.")  # fmt: skip
  objective = configs.make(cfg.objective, tokenizer.vocab, cfg.data.length)
  model = configs.make(cfg.model, tokenizer.vocab.size, objective.heads, cfg.data.length)
  params = checkpoints.restore_params(meta["step"])
  return Restored(cfg, meta["step"], tokenizer, objective, model, transformer.bind(model), params, tuple(meta.get("labels", ())))


def heads_matched(saved: PyTree, wanted: PyTree) -> tuple[dict[str, Any], list[str]]:
  """The saved parameters by name, with None for those of a head that is not among them, without the heads that are not wanted; and what to say.

  A new classifier's dense map is BERT's pooler where the saved model has that one (transformers' classes share it too): in `head_pooler`, as a
  model without other heads has it, or in `head_nsp`, before next-sentence prediction.
  """
  found, here = dict(named_leaves(saved)), dict(named_leaves(wanted))
  lines, group = [], lambda name: name.partition("/")[0]
  old, new = ({group(name) for name in names if name.startswith("head_")} for names in (found, here))
  for head in sorted(new - old):
    missing = [name for name in here if group(name) == head]
    for name in missing:
      pooler = [f"{other}/{name.partition('/')[2]}" for other in ("head_pooler", "head_nsp") if head == "head_class" and "/transform/" in name]
      like = next((other for other in pooler if other in found and found[other].shape == here[name].shape), None)
      found[name] = None if like is None else found[like]
    taken = [name for name in missing if found[name] is not None]
    lines.append("starts at random: " + ", ".join(name for name in missing if found[name] is None))
    lines += [f"from its pooler: {', '.join(taken)}"] if taken else []
  for head in sorted(old - new):
    lines.append(f"not read, so dropped: {', '.join(name for name in found if group(name) == head)}")
    found = {name: leaf for name, leaf in found.items() if group(name) != head}
  return found, lines


def check_same(folder: str, found: Mapping[str, Any], wanted: PyTree) -> None:
  """Raises UserError naming the first parameter that is absent, of another shape or one too many.

  Args:
    found: name -> array, or None where any will do.
  """
  here = dict(named_leaves(wanted))
  for name in [*here, *found]:
    if name in here and name in found and found[name] is None:
      continue
    there, want = (tuple(leaves[name].shape) if name in leaves else "absent" for leaves in (found, here))
    if there != want:
      raise UserError(f"{folder}: parameter '{name}' is {there} there and {want} here; start from a run of the same model.")
