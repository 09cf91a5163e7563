"""A strict reader of config.json: each key is read, known to be harmless, or refused. Nothing that changes the arithmetic is passed over.

transformers leaves keys at their default out of the file in places, so a family writes the defaults of its own configuration class where
it reads a key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from research.core.errors import UserError, nearest

# Of no consequence for what a model computes: who wrote the file, how it is stored, what generate and fine-tuning do with it.
HARMLESS = frozenset({
    "architectures", "model_type", "transformers_version", "_name_or_path", "_commit_hash", "torch_dtype", "dtype", "use_cache",
    "gradient_checkpointing", "output_attentions", "output_hidden_states", "return_dict", "return_dict_in_generate", "output_scores",
    "torchscript", "use_bfloat16", "tf_legacy_loss", "chunk_size_feed_forward", "attn_implementation", "_attn_implementation",
    "_attn_implementation_autoset", "_flash_attn_2_enabled", "tokenizer_class", "pad_token_id", "bos_token_id", "eos_token_id",
    "sep_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "id2label", "label2id", "num_labels",
    "problem_type", "finetuning_task", "task_specific_params", "prefix", "do_sample", "temperature", "top_k", "top_p", "typical_p",
    "max_length", "min_length", "num_beams", "num_beam_groups", "num_return_sequences", "early_stopping", "repetition_penalty",
    "length_penalty", "diversity_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "suppress_tokens",
    "begin_suppress_tokens", "exponential_decay_length_penalty", "remove_invalid_values",
})  # fmt: skip

# Theirs -> ours. Several of theirs are one formula, written or rounded differently.
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh", "quick_gelu": "gelu_quick", "relu": "relu", "relu2": "relu2", "silu": "silu",
    "swish": "silu", "tanh": "tanh",
}  # fmt: skip
# Ours -> theirs, the name that both old and new transformers know.
EXPORTED = {"gelu": "gelu", "gelu_tanh": "gelu_new", "gelu_quick": "quick_gelu", "relu": "relu", "relu2": "relu2", "silu": "silu", "tanh": "tanh"}

_REQUIRED = object()


class HfConfig:
  """Hands out the keys of a config.json and remembers which were asked for; `finish` refuses the rest."""

  def __init__(self, values: Mapping[str, Any], where: str, under: str = ""):
    self._values, self._where, self._under, self._read = values, where, under, set()

  def __call__(self, key: str, default: Any = _REQUIRED, *, also: str = "") -> Any:
    """The value of `key` (or of its other name `also`); `default` where it is absent.

    The value must be of the default's type; a key that is null and has a default other than None is refused.
    """
    self._read |= {key, also}
    names = [name for name in (key, also) if name and name in self._values]
    if not names:
      if default is _REQUIRED:
        raise UserError(f"{self._where} has no key '{self._under}{key}', which {self._model()} needs: mend the file.")
      return default
    value = self._values[names[0]]
    if len(names) == 2 and self._values[also] != value:
      raise UserError(f"{self._where}: '{self._under}{key}' is {_text(value)} but '{self._under}{also}', which means the same, is {_text(self._values[also])}.")
    if not _fits(value, default):
      raise self.unsupported(key, value, f"it must be {_kind(default)}")
    return value

  def nullable(self, key: str, default: Any) -> Any:
    """As a call, for a key whose null means None and not the default."""
    self._read.add(key)
    return None if key in self._values and self._values[key] is None else self(key, default)

  def only(self, key: str, *values: Any) -> Any:
    """Reads a key of which just these values are supported; the first is the default of transformers' own class."""
    self._read.add(key)
    value = self._values.get(key, values[0])
    if not any(type(value) is type(allowed) and value == allowed for allowed in values):
      raise self.unsupported(key, value, f"supported: {', '.join(map(_text, values))}")
    return value

  def activation(self, key: str, default: str) -> str:
    """Our name of the activation that a key names."""
    value = self(key, default)
    if value not in ACTIVATIONS:
      raise self.unsupported(key, value, f"supported: {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[value]

  def inner(self, key: str) -> "HfConfig":
    """A reader of the object under a key; its own `finish` is the caller's to call."""
    self._read.add(key)
    value = self._values.get(key)
    if not isinstance(value, Mapping):
      raise self.unsupported(key, value, "it must be an object")
    return HfConfig(value, self._where, f"{self._under}{key}.")

  def has(self, key: str) -> bool:
    """Whether the key is there and not null; does not count as reading it."""
    return self._values.get(key) is not None

  def skip(self, *keys: str) -> None:
    """Marks keys as read that are harmless in this family, whatever their value."""
    self._read |= set(keys)

  @property
  def architecture(self) -> str:
    """The class that the weights were saved from, such as 'GPT2LMHeadModel'; '' where the file does not say."""
    named = self._values.get("architectures") or [""]
    return named[0] if isinstance(named, list) else str(named)

  def unsupported(self, key: str, value: Any, mend: str) -> UserError:
    """The error for a value that has no counterpart here."""
    return UserError(f"unsupported value in {self._where}: '{self._under}{key}' is {_text(value)}; {mend}.")

  def finish(self) -> None:
    """Raises UserError for a key that nobody read, unless it is harmless, null or empty."""
    for key, value in self._values.items():
      if key not in self._read and not (not self._under and key in HARMLESS) and value not in (None, {}, []):
        known = {name for name in self._read if name}
        hint = nearest(key, known) if "Did you mean" in nearest(key, known) else ""
        raise UserError(f"unsupported value in {self._where}: '{self._under}{key}' is {_text(value)}, a key that {self._model()} is not known to have.{hint}")

  def _model(self) -> str:
    return f"a model of type '{self._values['model_type']}'" if "model_type" in self._values else "it"


def _fits(value: Any, default: Any) -> bool:
  if default is _REQUIRED or default is None:
    return True
  if isinstance(default, bool):
    return isinstance(value, bool)
  if isinstance(default, (int, float)):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and (isinstance(default, float) or value == int(value))
  return isinstance(value, type(default))


def _kind(default: Any) -> str:
  return {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list", dict: "an object"}[type(default)]


def _text(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) < 120 else text[:110] + "…"
