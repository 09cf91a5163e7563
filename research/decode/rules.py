"""What a model family demands of generated text beside its scores: how its prompt is read, where it starts and stops, tokens that are forced or never drawn.

Each rule but the first is a function on scores that sets −∞ where a token may not be drawn; `ruled` applies them in the order of transformers'
generate. They act the same on logits and on log-probabilities, and rows do not depend on each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.core.errors import UserError
from research.core.types import Array


@dataclasses.dataclass(frozen=True)
class Rules:
  """The tokens of a family's generate. A token is an id of the vocabulary."""

  prefix: bool = False  # the prompt is read in both directions, as a prefix LM does
  stop: tuple[int, ...] = ()  # a text ends with the first of these
  start: int | None = None  # what the decoder of an encoder–decoder reads first (decoder_start_token_id)
  first: int | None = None  # always the first token drawn after a prompt of one token (forced_bos_token_id of BART)
  last: int | None = None  # always the last token of a text that has not ended at its limit (forced_eos_token_id of BART and Marian)
  never: tuple[int, ...] = ()  # never drawn (bad_words_ids of Marian: its padding)
  least: int = 0  # tokens drawn before one may stop (min_new_tokens)
  no_repeat: int = 0  # no n tokens in a row occur twice in prompt and text (no_repeat_ngram_size of BART); 0: any may
  renormalize: bool = False  # what the rules leave sums to one again, which beam search notices (renormalize_logits of Marian)

  def __post_init__(self):
    if self.least < 0:
      raise ValueError(f"least must be at least 0; got {self.least}")
    if self.no_repeat < 0:
      raise ValueError(f"no_repeat must be at least 0; got {self.no_repeat}")

  @property
  def fill(self) -> int:
    """What stands in an array of tokens after a text's end."""
    return self.stop[0] if self.stop else 0

  def check(self, vocab_size: int) -> None:
    """Raises ValueError where a token is no entry of the vocabulary."""
    for name in ("stop", "start", "first", "last", "never"):
      value = getattr(self, name)
      for token in value if isinstance(value, tuple) else () if value is None else (value,):
        if not 0 <= token < vocab_size:
          raise ValueError(f"token {token} of rule '{name}' is not in the vocabulary, which has {vocab_size} entries")


class Written(NamedTuple):
  """The texts so far, of which the rules speak."""

  prompt: Array  # int32 [B, P], padded on the left, with −1: so every text goes on at the same place
  tokens: Array  # int32 [B, N]: what was drawn after it
  count: Array  # int32 []: places of `tokens` that are written
  before: Array  # int32 []: tokens drawn before these, where the text was read anew


def ruled(rules: Rules, scores: Array, written: Written, limit: Array) -> Array:
  """The scores [B, V] of the next token, −∞ where the rules forbid it; at most `limit` int32 [] tokens will be drawn."""
  drawn = written.before + written.count
  if rules.no_repeat:
    history = jnp.concatenate([written.prompt, written.tokens], axis=1)
    scores = no_repeat(scores, history, written.prompt.shape[1] + written.count, rules.no_repeat)
  if rules.never:
    scores = scores.at[:, np.array(rules.never)].set(-jnp.inf)
  if rules.least and rules.stop:
    scores = jnp.where(drawn < rules.least, scores.at[:, np.array(rules.stop)].set(-jnp.inf), scores)
  if rules.first is not None:
    alone = jnp.sum(written.prompt >= 0, axis=1) == 1
    scores = jnp.where((alone & (drawn == 0))[:, None], only(scores, rules.first), scores)
  if rules.last is not None:
    scores = jnp.where(drawn == limit - 1, only(scores, rules.last), scores)
  return jax.nn.log_softmax(scores) if rules.renormalize else scores


def only(scores: Array, token: int) -> Array:
  """Scores that leave nothing but one token: 0 there, −∞ elsewhere."""
  return jnp.full_like(scores, -jnp.inf).at[:, token].set(0)


def no_repeat(scores: Array, history: Array, end: Array, n: int) -> Array:
  """Forbids the tokens that would end n tokens which the history holds already.

  Args:
    history: int32 [B, T]; −1 where nothing is written.
    end: int32 [], places of the history that are filled, those before a shorter prompt included.
  """
  rows, places = history.shape
  starts = places - n + 1  # of every run of n places
  if starts < 1:
    return scores
  recent = jnp.take(history, end - n + 1 + jnp.arange(n - 1), axis=1, mode="clip")  # [B, n − 1]: the newest tokens
  same = jnp.ones((rows, starts), bool) & (end >= n)
  for i in range(n - 1):
    same &= (history[:, i : i + starts] == recent[:, i : i + 1]) & (recent[:, i : i + 1] >= 0)
  final = history[:, n - 1 :]
  same &= (jnp.arange(starts) + n - 1 < end) & (final >= 0)
  forbidden = jnp.where(same, final, scores.shape[1])  # an index past the end is dropped
  return scores.at[jnp.arange(rows)[:, None], forbidden].set(-jnp.inf, mode="drop")


# Keys of generation_config.json that do not change what greedy and beam search return, or that the caller sets.
HARMLESS = {
    "transformers_version", "_from_model_config", "bos_token_id", "pad_token_id", "use_cache", "max_length", "max_new_tokens", "max_time", "do_sample",
    "temperature", "top_k", "top_p", "min_p", "typical_p", "num_beams", "length_penalty", "early_stopping", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate", "cache_implementation", "cache_config",
    "low_memory", "is_assistant", "prefill_chunk_size",
}  # fmt: skip
NEUTRAL = {  # Keys without a counterpart here, and the values with which they do nothing.
    "repetition_penalty": (1.0,), "encoder_repetition_penalty": (1.0,), "encoder_no_repeat_ngram_size": (0,), "num_beam_groups": (1,),
    "diversity_penalty": (0.0,), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "remove_invalid_values": (False,), "guidance_scale": (1.0,),
    "token_healing": (False,), "top_h": (1.0,),
}  # fmt: skip


def read(values: Mapping[str, Any], where: str, encoder_decoder: bool) -> Rules:
  """The rules in a generation_config.json (in old folders: among the keys of config.json, of which only those of generation are to be given).

  Raises:
    UserError: a key that would change the text and has no counterpart here; the message names it and the file.
  """
  known: dict[str, Any] = {}
  bad: tuple[int, ...] = ()
  refuse = lambda key, why: UserError(f"unsupported value in {where}: '{key}' is {values[key]!r}; {why}.")
  for key, value in values.items():
    if value is None or key in HARMLESS or value in NEUTRAL.get(key, ()):
      continue
    if key == "eos_token_id":
      known["stop"] = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    elif key in ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"):
      if not isinstance(value, int):
        raise refuse(key, "one token is supported")
      known[{"decoder_start_token_id": "start", "forced_bos_token_id": "first", "forced_eos_token_id": "last"}[key]] = value
    elif key == "bad_words_ids":
      if any(len(word) != 1 for word in value):
        raise refuse(key, "only words of one token can be forbidden")
      bad = tuple(word[0] for word in value)
    elif key == "suppress_tokens":
      known["never"] = tuple(value)
    elif key in ("no_repeat_ngram_size", "renormalize_logits"):
      known[{"no_repeat_ngram_size": "no_repeat", "renormalize_logits": "renormalize"}[key]] = value
    elif key == "min_new_tokens":
      known["least"] = max(known.get("least", 0), value)
    elif key == "min_length" and (encoder_decoder or not value):  # it counts the decoder's start token, too
      known["least"] = max(known.get("least", 0), value - 1)
    elif key == "min_length":
      raise refuse(key, "it counts the prompt's tokens: write min_new_tokens instead")
    else:
      raise refuse(key, "it would change what is generated and has no counterpart here")
  known["never"] = known.get("never", ()) + tuple(token for token in bad if token not in known.get("stop", ()))  # a bad word may stop, there as here
  return Rules(**known)
