"""What the tests of encoders share: the outputs of both models, by the names of our heads, for padded rows with token types."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.model import transformer
from research.model.inputs import Inputs, positions_within
from tests.compiling import QUICK

FIRST = 5  # ids below it are padding and the like, which no text holds
THEIRS = {  # our head -> where their output has it
    "mlm": ("prediction_logits", "logits"),
    "nsp": ("seq_relationship_logits", "logits"),
    "pooler": ("pooler_output",),
    "discriminator": ("logits",),
    "class": ("logits",),
    "tags": ("logits",),
    "hidden": ("last_hidden_state",),
}


class Rows(NamedTuple):
  """int32 [B, L] each."""

  tokens: np.ndarray
  mask: np.ndarray  # 1 where there is text
  types: np.ndarray


def rows(config: Any, count: int = 3, length: int = 11, left: bool = False, seed: int = 0) -> Rows:
  """Texts of unequal length for a config of transformers; padding stands at the right, or at the left."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(FIRST, config.vocab_size, (count, length))
  mask = np.arange(length) < np.array([length, *rng.integers(3, length, count - 1)])[:, None]
  mask = mask[:, ::-1] if left else mask
  tokens = np.where(mask, tokens, config.pad_token_id)
  types = rng.integers(0, getattr(config, "type_vocab_size", 0) or 1, (count, length)) * mask
  return Rows(*(np.ascontiguousarray(part, np.int32) for part in (tokens, mask, types)))


def their_arguments(model: Any, given: Rows) -> dict[str, Any]:
  import torch

  names = ("input_ids", "attention_mask", "token_type_ids") if getattr(model.config, "type_vocab_size", 0) else ("input_ids", "attention_mask")
  return {name: torch.tensor(part, dtype=torch.long) for name, part in zip(names, given)}


def named(output: Any, heads: Any) -> dict[str, Any]:
  """Their output's tensors by the names of our heads; `hidden` where there are no logits."""
  wanted = set(heads) if set(heads) - {"pooler"} else {*heads, "hidden"}
  found = {}
  for head in wanted:
    found[head] = next(output[key] for key in THEIRS[head] if key in output)
  return found


def their_outputs(model: Any, given: Rows, heads: Any) -> dict[str, np.ndarray]:
  import torch

  with torch.no_grad():
    return {name: tensor.numpy() for name, tensor in named(model(**their_arguments(model, given)), heads).items()}


def our_outputs(model: Any, params: Any, given: Rows, positions: Any, places: Any) -> dict[str, jax.Array]:
  """Every head and the hidden states; positions int [B, L]; heads of a document's first place at `places` [B, P]. The mask may hold segments."""
  types = jnp.asarray(given.types) if model.cfg.token_types else None
  inputs = Inputs(jnp.asarray(given.tokens), positions=positions, segments=jnp.asarray(given.mask), types=types, kind="full")
  firsts = {name for name, head in model.heads.items() if head.pool == "first"}
  apply = transformer.bind(model)
  output = apply(params, inputs, read={name: places if name in firsts else None for name in model.heads})
  found = {"hidden": apply(params, inputs, read={}).hidden}
  for name, value in output.heads.items():
    value = value.logits() if model.heads[name].kind == "token" else value
    found[name] = value[..., 0] if name == "discriminator" else value
  return found


_run = jax.jit(our_outputs, static_argnums=0, compiler_options=QUICK)


def run(model: Any, params: Any, given: Rows, positions: np.ndarray | None = None, places: np.ndarray | None = None) -> dict[str, np.ndarray]:
  """`our_outputs`; without positions they restart at every document, without places a row's first is read and loses its axis P."""
  positions = positions_within(jnp.asarray(given.mask)) if positions is None else jnp.asarray(positions)
  found = _run(model, params, given, positions, jnp.zeros((len(given.mask), 2), jnp.int32) if places is None else jnp.asarray(places))
  only = lambda name: places is None and name in model.heads and model.heads[name].pool == "first"
  return {name: np.asarray(value)[:, 0] if only(name) else np.asarray(value) for name, value in found.items()}
