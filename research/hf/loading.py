"""From a folder of Hugging Face to a model that runs, and back."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from research.core.config import make
from research.core.errors import UserError, nearest
from research.core.types import PyTree
from research.hf import files, sentence
from research.hf.family import Described, Family, describe, exported, families, with_types
from research.hf.rules import Report, export_params, import_params
from research.model import towers, transformer
from research.parallel import mesh as meshes

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "encoder.json", "vocab.txt", "source.spm")


class Loaded(NamedTuple):
  """An imported model with all that is known of it."""

  family: Family
  described: Described
  model: transformer.Transformer | towers.Towers
  params: PyTree
  report: Report
  config: dict[str, Any]  # its config.json


def load(folder: str, mesh: jax.sharding.Mesh | None = None, dtype: str = "float32", param_dtype: str | None = None):
  """(model, params, tokenizer) of a folder of Hugging Face.

  >>> model, params, tokenizer = research.hf.load("models/gpt2")
  >>> output = transformer.bind(model)(params, Inputs(tokens), read={"lm": None})
  >>> logits = output.heads["lm"].logits()

  Args:
    folder: holds config.json and model.safetensors, or shards of it and their index.
    mesh: where the parameters go, each straight to its devices; None: the default device.
    dtype: of activations and matmuls.
    param_dtype: of the parameters; None: as stored (float16 becomes float32, which holds it exactly).

  Returns:
    The module, its parameters, and the tokenizer, None where the folder has none.

  Raises:
    UserError: a file that is missing or damaged, an architecture or a value of config.json that is not supported, or a tensor that is
      missing, unused or of the wrong shape; the sentence names it.
  """
  loaded = load_model(folder, mesh, dtype, param_dtype)
  return loaded.model, loaded.params, load_tokenizer(folder)


def load_model(folder: str, mesh: jax.sharding.Mesh | None = None, dtype: str = "float32", param_dtype: str | None = None) -> Loaded:
  """As `load`, without the tokenizer and with the family and the report."""
  source = files.Folder(folder)
  family, described = describe(source.config, f"'{os.path.join(folder, files.CONFIG)}'")
  described = sentence.described(described, folder)
  stored = param_dtype or _stored(source)
  described = described._replace(cfg=with_types(described.cfg, dtype, stored))
  model = build(described, source.path)
  boxed = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
  wanted = nn.unbox(boxed)
  if mesh is not None:
    shardings = meshes.state_shardings(boxed, wanted, mesh)
    wanted = jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), wanted, shardings)
  params, report = import_params(family.rules(described), source, wanted, family.names(described))
  return Loaded(family, described, model, params, report, source.config)


def build(described: Described, where: str):
  """The module of a description."""
  model = make(described.cfg, described.vocab_size, described.heads, described.length)
  try:
    jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
  except ValueError as error:  # a module's own check of its config, such as a width that the heads do not divide
    raise UserError(f"the config.json of '{where}' describes no model that can be built: {error}.") from error
  return model


def load_tokenizer(folder: str):
  """The tokenizer of a folder of Hugging Face, or None where it has none."""
  if not any(os.path.isfile(os.path.join(folder, name)) for name in TOKENIZER_FILES):
    return None
  from research.data import imported

  return imported.load(folder)


def _stored(source: files.Folder) -> str:
  """The type of the parameters that holds every tensor exactly."""
  found = {tensor.dtype for tensor in source.tensors.values() if tensor.dtype in files.DTYPES.values()}
  return "float64" if "float64" in found else "bfloat16" if found == {"bfloat16"} else "float32"


def param_types(params: PyTree) -> str:
  """`float32`, or several names with commas."""
  return ", ".join(sorted({np.dtype(leaf.dtype).name for leaf in jax.tree.leaves(params)}))


def export(folder: str, model: transformer.Transformer | towers.Towers, params: PyTree, family: str | None = None, shard_bytes: int = files.SHARD_BYTES,
           more: dict[str, Any] | None = None) -> list[str]:  # fmt: skip
  """Writes a folder that transformers loads: config.json and safetensors, the exact inverse of `load`; returns the files' names.

  Args:
    family: name of a family; None: the only one that has a form for this model.
    more: keys of config.json that do not touch the arithmetic, such as eos_token_id.

  Raises:
    UserError: the family (or none, or more than one) has a form for this model; the folder holds a model already.
  """
  if isinstance(model, towers.Towers):
    cfg = towers.Config(dict(model.cfg))
  else:
    model, params = transformer.unrolled(model, params)
    cfg = model.cfg
  vocab_size = model.vocab_size if getattr(cfg, "patches", None) is None else 1
  described, embedding = sentence.plain(Described(cfg, dict(model.heads), vocab_size, model.length))
  chosen, config = _choose(described, family)
  config = {"dtype": np.dtype(next(iter(jax.tree.leaves(params))).dtype).name, **config, **(more or {})}
  written = files.write(folder, config, export_params(chosen.rules(described), params), shard_bytes)
  return written if embedding is None else [*written, *sentence.write(folder, embedding, cfg.width, model.length)]


def _choose(described: Described, name: str | None) -> tuple[Family, dict[str, Any]]:
  known = families()
  if name is not None:
    if name not in known:
      raise UserError(f"no family '{name}'.{nearest(name, known)}")
    return known[name], exported(known[name], described)
  fit, reasons = {}, []
  for family in known.values():
    try:
      fit[family.name] = exported(family, described)
    except UserError as error:
      reasons.append(str(error))
    except (AttributeError, KeyError, TypeError):  # it is built of other components than this family's
      continue
  if len(fit) == 1:
    return next((known[name], config) for name, config in fit.items())
  if fit:
    raise UserError(f"this model can be exported as {' or as '.join(sorted(fit))}: say which.")
  raise UserError("no family has a form for this model; the nearest reason: " + (min(reasons, key=len) if reasons else "it has other components than all of them."))
