"""A finished or running run's model, from its workdir: what evaluation and generation start from."""

from __future__ import annotations

import os
from typing import NamedTuple

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
  return Restored(cfg, meta["step"], tokenizer, objective, model, transformer.bind(model), params)


def check_same(folder: str, saved: PyTree, wanted: PyTree) -> None:
  """Raises UserError naming the first parameter that is absent or of another shape in `saved`."""
  found = dict(named_leaves(saved))
  for name, leaf in named_leaves(wanted):
    if name not in found or tuple(found[name].shape) != tuple(leaf.shape):
      there = found[name].shape if name in found else "absent"
      raise UserError(f"{folder}: parameter '{name}' is {there} there and {leaf.shape} here; start from a run of the same model.")

