"""Sentence encoders (Reimers and Gurevych 2019, Sentence-BERT): how a model's hidden states become the vector of a text.

Beside the model lies modules.json, which names the steps: the Transformer, a pooling (1_Pooling/config.json) and, for most, a
normalisation. They have no tensors and become one head without parameters, `embedding`.
"""

from __future__ import annotations

import json
import os
from typing import Any

from research.core.errors import UserError
from research.hf import files
from research.hf.config import HfConfig
from research.hf.family import Described
from research.model import transformer
from research.model.inputs import EMBEDDING, HeadConfig

MODULES = "modules.json"
AGAIN = f"fetch it again, or leave out {MODULES} to import the model without its steps"
LIMIT = "sentence_bert_config.json"  # how many tokens a text may have
POOLS = {"mean": "pooling_mode_mean_tokens", "first": "pooling_mode_cls_token"}
OTHERS = (
    "pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"
)  # fmt: skip


def described(model: Described, folder: str) -> Described:
  """With the head `embedding` and the length of the folder's modules.json; the same where there is none.

  Raises:
    UserError: a step or a pooling that is not supported, or a file that is missing or broken.
  """
  path = os.path.join(folder, MODULES)
  if not os.path.isfile(path):
    return model
  modules = files.read_json(path, AGAIN, list)
  kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules if isinstance(module, dict)]
  if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or modules[0].get("path"):
    raise UserError(f"unsupported value in '{path}': its steps are {', '.join(kinds)}; supported: Transformer (in the folder itself), Pooling, and then Normalize "
                    "or nothing. Leave the file out to import the model without them.")  # fmt: skip
  if not isinstance(model.cfg, transformer.Config) or model.cfg.encoder_layers or model.cfg.patches is not None or model.objective == "objectives.causal_lm":
    raise UserError(f"unsupported value in '{path}': a text's vector is read from an encoder alone. Leave the file out to import the model without it.")
  where = os.path.join(folder, str(modules[1].get("path")), "config.json")
  head = HeadConfig(kind="vector", pool=_pool(HfConfig(files.read_json(where, AGAIN), f"'{where}'"), model.cfg.width), normalize=len(kinds) == 3)
  length = model.length
  if os.path.isfile(os.path.join(folder, LIMIT)):
    where = os.path.join(folder, LIMIT)
    limit = HfConfig(files.read_json(where, AGAIN), f"'{where}'")
    length = min(length, limit("max_seq_length", None) or length)
    limit.only("do_lower_case", False)
    limit.finish()
  return model._replace(heads={**model.heads, EMBEDDING: head}, length=length, objective=None, objective_keys={})


def _pool(config: HfConfig, width: int) -> str:
  """What our head calls the one pooling that is asked for."""
  config.only("word_embedding_dimension", width)
  config.skip("include_prompt")  # whether the tokens of an instruction count; there is no instruction here
  for key in OTHERS:
    config.only(key, False)
  chosen = [pool for pool, key in POOLS.items() if config(key, False)]
  config.finish()
  if len(chosen) != 1:
    raise config.unsupported(POOLS["mean"], config(POOLS["mean"], False), f"exactly one of {' and '.join(POOLS.values())} must be true")
  return chosen[0]


def plain(model: Described) -> tuple[Described, HeadConfig | None]:
  """Without the head `embedding`, which no family's config.json tells of, and that head.

  A head with parameters of its own is left in place: it has no form here.
  """
  head = model.heads.get(EMBEDDING)
  if head is None or head not in (HeadConfig(kind="vector", pool=pool, normalize=normalize) for pool in POOLS for normalize in (False, True)):
    return model, None
  return model._replace(heads={name: other for name, other in model.heads.items() if name != EMBEDDING}), head


def write(folder: str, head: HeadConfig, width: int, length: int) -> list[str]:
  """Writes what `described` reads; returns the files' names."""
  package = "sentence_transformers.models."
  modules = [("Transformer", ""), ("Pooling", "1_Pooling"), *([("Normalize", "2_Normalize")] if head.normalize else [])]
  pooling = {"word_embedding_dimension": width, **{key: pool == head.pool for pool, key in POOLS.items()}, **dict.fromkeys(OTHERS, False)}
  contents: dict[str, Any] = {
      MODULES: [{"idx": i, "name": str(i), "path": path, "type": package + kind} for i, (kind, path) in enumerate(modules)],
      os.path.join("1_Pooling", "config.json"): pooling,
      LIMIT: {"max_seq_length": length, "do_lower_case": False},
  }
  for name, content in contents.items():
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
      json.dump(content, file, indent=2)
      file.write("\n")
  return list(contents)
