"""What a folder of vocabulary files says: how to encode, which ids are special tokens, and which of them stand around a text.

One function for each kind of files; what they leave open, the folder's config.json, tokenizer_config.json and special_tokens_map.json tell.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from research.core.errors import UserError
from research.data import engines

NAMED = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")  # `<name>_token` in Hugging Face's files
SPELLINGS = {  # in published vocabularies; the first that is there
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "bos": ("<s>", "<|startoftext|>", "<|begin_of_text|>", "<bos>", "<|endoftext|>"),
    "eos": ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
    "fim_prefix": ("<fim_prefix>", "<|fim_prefix|>", "\u2581<PRE>"),
    "fim_middle": ("<fim_middle>", "<|fim_middle|>", "\u2581<MID>"),
    "fim_suffix": ("<fim_suffix>", "<|fim_suffix|>", "\u2581<SUF>"),
    **{f"sentinel_{i}": (f"<extra_id_{i}>",) for i in range(100)},
}
BERTS = {"", "bert", "distilbert", "electra", "mobilebert"}  # families whose vocab.txt is read; "": no config tells
# The tokens around a text, for the families whose files do not say it.
BYTE_LEVEL = {"": None, "gpt2": ((), ()), "roberta": (("bos",), ("eos",)), "bart": (("bos",), ("eos",)), "clip": (("bos",), ("eos",))}
PIECES = {
    "": None, "t5": ((), ("eos",)), "llama": (("bos",), ()), "codellama": (("bos",), ()), "mistral": (("bos",), ()), "mixtral": (("bos",), ()),
    "xlnet": ((), ("sep", "cls")),
}  # fmt: skip
ALIASES = {"roberta": {"cls": "bos", "sep": "eos"}, "bart": {"cls": "bos", "sep": "eos"}, "clip": {"pad": "eos"}}  # by their classes' defaults
Template = tuple[Sequence[str | int], Sequence[str | int]]  # names or ids of the tokens before and after a text


class Found(NamedTuple):
  engine: Any  # one of `engines.ENGINES`
  special: dict[str, int]  # ids that stand for no text, by our names or else their spelling
  template: Template | None  # None where nothing tells
  rows: int | None  # of the model's embedding, by config.json


def find(folder: str, say: Callable[[str], None]) -> Found:
  """The tokenizer of a folder; errors as `imported.load`."""
  if not os.path.isdir(folder):
    raise UserError(f"no folder '{folder}': name the folder of a Hugging Face model or of vocabulary files.")
  told = _Told(folder, *(_json(folder, f"{name}.json") for name in ("config", "tokenizer_config", "special_tokens_map")))
  reader = _reader(told)
  try:
    engine, controls, template = reader(told)
  except FileNotFoundError as error:
    raise UserError(f"the tokenizer in '{folder}' is not complete: '{os.path.basename(error.filename)}' is missing.") from error
  except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:  # what broken files lead to
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
    raise UserError(f"the tokenizer in '{folder}' cannot be read ({reason}): download its files once more.") from error
  special = _specials(told, engine.spelled | controls, set(controls) | engine.controls, say)
  return Found(engine, special, template, told.rows)


def resolved(template: Template | None, special: Mapping[str, int]) -> tuple[list[int], list[int]] | None:
  """A template's ids; None where it names a token that the vocabulary lacks."""
  if template is None or any(isinstance(item, str) and item not in special for part in template for item in part):
    return None
  before, after = ([special[item] if isinstance(item, str) else int(item) for item in part] for part in template)
  return before, after


# --- the folder --------------------------------------------------------------------------------------------------------------


class _Told(NamedTuple):
  """What a folder's own JSON files say."""

  folder: str
  config: Mapping[str, Any]
  tokenizer_config: Mapping[str, Any]
  special_tokens_map: Mapping[str, Any]

  @property
  def family(self) -> str:
    """'bert', 'codellama', …: the tokenizer's class, or else the model's type; empty where neither is told."""
    name = (self.tokenizer_config.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer")
    if name in ("", "PreTrained", "TokenizersBackend"):
      name = self.config.get("model_type") or ""
    return "".join(c for c in name.lower() if c not in "-_")

  @property
  def rows(self) -> int | None:
    return self.config.get("vocab_size") or (self.config.get("text_config") or {}).get("vocab_size")

  def has(self, *names: str) -> bool:
    return all(os.path.isfile(os.path.join(self.folder, name)) for name in names)

  def bytes(self, name: str) -> bytes:
    return read_bytes(os.path.join(self.folder, name))

  def template(self, by_default: Template | None) -> Template | None:
    """The tokens around a text, where tokenizer_config.json may say whether there are bos and eos."""
    flags = [self.tokenizer_config.get(f"add_{name}_token") for name in ("bos", "eos")]
    if flags == [None, None]:
      return by_default
    return (("bos",) if flags[0] else (), ("eos",) if flags[1] else ())


def read_bytes(path: str) -> bytes:
  with open(path, "rb") as file:
    return file.read()


def _json(folder: str, name: str) -> dict[str, Any]:
  """A JSON object, or {} where there is no such file."""
  path = os.path.join(folder, name)
  if not os.path.isfile(path):
    return {}
  try:
    found = json.loads(read_bytes(path))
    if not isinstance(found, dict):
      raise ValueError("it is no JSON object")
    return found
  except ValueError as error:
    raise UserError(f"'{path}' cannot be read ({error}): download it once more.") from error


# --- one function for each kind of files: -> engine, {control id: spelling} beyond the engine's own, template -------------------


def _reader(told: _Told) -> Callable[[_Told], tuple[Any, dict[int, str], Template | None]]:
  if told.has("tokenizer.json"):
    return _library
  if told.has("source.spm") or told.has("target.spm"):
    return _marian
  if told.has("tokenizer.model") or told.has("spiece.model"):
    return _sentencepiece
  if told.has("vocab.json", "merges.txt") or told.has("encoder.json", "vocab.bpe"):
    return _byte_level
  if told.has("vocab.txt"):
    return _bert
  raise UserError(f"no tokenizer in '{told.folder}': there is none of tokenizer.json, source.spm with target.spm, tokenizer.model, spiece.model, "
                  "vocab.json with merges.txt (or encoder.json with vocab.bpe), vocab.txt.")  # fmt: skip


def _refuse(told: _Told, known: Iterable[str], file: str) -> None:
  if told.family not in known:
    raise UserError(f"the tokenizer of '{told.folder}' is one of '{told.family}', which cannot be read from {file} alone (those of "
                    f"{', '.join(sorted(filter(None, known)))} can): bring its tokenizer.json.")  # fmt: skip


def _library(told: _Told):
  engine = engines.Library({"tokenizer.json": told.bytes("tokenizer.json")})
  return engine, {}, told.template(_written_template(engine.record.get("post_processor")))


def _written_template(step: Mapping[str, Any] | None) -> Template:
  """The tokens around one text that a tokenizer.json writes down."""
  kind = step["type"] if step else "ByteLevel"
  if kind == "ByteLevel":  # trims offsets only
    return (), ()
  if kind in ("BertProcessing", "RobertaProcessing"):
    return (step["cls"][1],), (step["sep"][1],)
  if kind == "Sequence":
    before, after = (), ()
    for inner in map(_written_template, step["processors"]):
      before, after = (*inner[0], *before), (*after, *inner[1])
    return before, after
  if kind != "TemplateProcessing":
    raise ValueError(f"post_processor '{kind}' is not known")
  sides = [[], []]
  at = 0
  for item in step["single"]:
    if "Sequence" in item:
      at = 1
    else:
      sides[at] += step["special_tokens"][item["SpecialToken"]["id"]]["ids"]
  return sides[0], sides[1]


def written_pair(step: Mapping[str, Any] | None) -> list[tuple[Sequence[int] | int, int]] | None:
  """How a tokenizer.json joins two texts: ids, or 0 and 1 for the texts, each with its type; None where it does not say."""
  kind = step["type"] if step else "ByteLevel"
  if kind in ("BertProcessing", "RobertaProcessing"):
    cls, sep, second = [step["cls"][1]], [step["sep"][1]], int(kind == "BertProcessing")
    return [(cls, 0), (0, 0), (sep, 0), *([] if second else [(sep, 0)]), (1, second), (sep, second)]
  if kind == "Sequence":
    return next(filter(None, map(written_pair, reversed(step["processors"]))), None)
  if kind != "TemplateProcessing":
    return None
  parts = []
  for item in step["pair"]:
    if "Sequence" in item:
      parts.append(("AB".index(item["Sequence"]["id"]), int(item["Sequence"]["type_id"])))
    else:
      token = item["SpecialToken"]
      parts.append((step["special_tokens"][token["id"]]["ids"], int(token["type_id"])))
  return parts


def _marian(told: _Told):
  if told.tokenizer_config.get("separate_vocabs"):
    raise UserError(f"the tokenizer in '{told.folder}' has separate_vocabs, one vocabulary for each language: only shared ones can be imported.")
  engine = engines.Marian({name: told.bytes(name) for name in ("source.spm", "target.spm", "vocab.json")})
  return engine, {}, ((), ("eos",))


def _sentencepiece(told: _Told):
  name = "tokenizer.model" if told.has("tokenizer.model") else "spiece.model"
  _refuse(told, PIECES, name)
  config, options = told.tokenizer_config, None
  if told.family == "xlnet":
    options = {"accents": bool(config.get("keep_accents", False)), "lowercase": bool(config.get("do_lower_case", False))}
  engine = engines.SentencePiece({"tokenizer.model": told.bytes(name)}, options)
  size = len(engine.spelled)
  added = {int(i): piece for piece, i in _json(told.folder, "added_tokens.json").items()}
  for i, token in (config.get("added_tokens_decoder") or {}).items():
    if int(i) >= size and not token.get("special"):
      raise UserError(f"'{os.path.join(told.folder, 'tokenizer_config.json')}' adds '{token['content']}' to the pieces of {name} as a piece of text: bring the "
                      "tokenizer.json, which tells how to find it.")  # fmt: skip
    added[int(i)] = token["content"]
  if told.family == "t5" and not added:
    extra = int(config.get("extra_ids", 100))
    added = {size + extra - 1 - i: f"<extra_id_{i}>" for i in range(extra)}
  return engine, {i: piece for i, piece in added.items() if i >= size}, told.template(PIECES[told.family])


def _byte_level(told: _Told):
  names = ("vocab.json", "merges.txt") if told.has("vocab.json", "merges.txt") else ("encoder.json", "vocab.bpe")
  _refuse(told, BYTE_LEVEL, " and ".join(names))
  pieces = {str(piece): int(i) for piece, i in json.loads(told.bytes(names[0])).items()}
  lines = told.bytes(names[1]).decode().replace("\r\n", "\n").split("\n")
  merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
  for pair in merges:
    if len(pair) != 2:
      raise ValueError(f"{names[1]}: '{' '.join(pair)}' is no pair of pieces")
  clip = told.family == "clip" or not told.family and "<|startoftext|>" in pieces
  # What no merge makes and no byte is, no text ever becomes: the special tokens, by whatever name.
  made = {left + right for left, right in merges}
  controls = {i: piece for piece, i in pieces.items() if piece not in made and len(piece.removesuffix("</w>")) > 1}
  known = {spelling for spellings in SPELLINGS.values() for spelling in spellings}
  found_in_text = [piece for piece in controls.values() if piece in known] if told.family else []
  engine = engines.byte_level(pieces, merges, found_in_text, bool(told.tokenizer_config.get("add_prefix_space", False)), clip)
  template = BYTE_LEVEL[told.family]
  if template is None:
    template = BYTE_LEVEL["clip" if clip else "roberta" if {"<s>", "</s>"} <= set(controls.values()) else "gpt2"]  # the bare files are known by these
  return engine, controls, told.template(template)


def _bert(told: _Told):
  _refuse(told, BERTS, "vocab.txt")
  config = told.tokenizer_config
  if config.get("do_basic_tokenize") is False:
    raise UserError(f"the tokenizer in '{told.folder}' has do_basic_tokenize=false, which cannot be read from vocab.txt: bring its tokenizer.json.")
  lines = told.bytes("vocab.txt").decode().replace("\r\n", "\n").split("\n")
  pieces = {piece: i for i, piece in enumerate(lines[:-1] if lines[-1] == "" else lines)}
  if "[UNK]" not in pieces:
    raise ValueError("vocab.txt has no [UNK]")
  engine = engines.bert(pieces, config.get("do_lower_case", True), config.get("strip_accents"), config.get("tokenize_chinese_chars", True))
  return engine, {}, (("cls",), ("sep",))


# --- special tokens ----------------------------------------------------------------------------------------------------------




def _specials(told: _Told, spelled: Mapping[int, str], controls: set[int], say: Callable[[str], None]) -> dict[str, int]:
  """Our names, and the spellings of control tokens that have none of ours, to ids."""
  ids = {piece: i for i, piece in spelled.items()}
  special: dict[str, int] = {}
  for name in NAMED:
    for source in (told.special_tokens_map, told.tokenizer_config):
      token = source.get(f"{name}_token")
      token = token.get("content") if isinstance(token, dict) else token
      if token in ids:
        special.setdefault(name, ids[token])
      elif token:
        say(f"'{told.folder}' names '{token}' as its {name} token, which its vocabulary does not have: left out")
  for name, spellings in SPELLINGS.items():
    among = [ids[s] for s in spellings if s in ids and (ids[s] in controls or name.startswith("fim_"))]
    if name not in special and among:
      special[name] = among[0]
  for name in NAMED:
    i = told.config.get(f"{name}_token_id")
    i = next(iter(i), None) if isinstance(i, list) else i  # Llama 3 has several eos
    if name not in special and i in controls:
      special[name] = i
  for name, other in ALIASES.get(told.family, {}).items():
    if name not in special and other in special:
      special[name] = special[other]
  named = set(special.values())
  return special | {spelled[i]: i for i in sorted(controls - named)}
