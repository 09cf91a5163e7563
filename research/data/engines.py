"""What encodes with a published vocabulary: the `tokenizers` library, or SentencePiece.

Each engine is made of the files that `save` writes again, and has

  spelled        {id: piece}, as the vocabulary spells it
  surfaces       {id: bytes of text that the piece stands for}
  tells_starts   whether a surface shows that a word begins there: by the white space that leads it
  keeps_spaces   whether the pieces hold the white space of the text; else surfaces begin with one where a word begins
  encode_batch   texts -> ids, without tokens around them
  decode         ids of pieces -> text
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from research.core.errors import UserError
from research.data.tokenizer import THREADS, byte_of_symbol

SPACE = "\u2581"  # SentencePiece's stand-in
END_OF_WORD = "</w>"  # CLIP's mark on the last piece of a word
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a byte of a character that has no piece


class Library:
  """A tokenizer.json. Truncation and padding, which such a file may ask for, are left to the rows of the data."""

  kind = "tokenizers"

  def __init__(self, files: Mapping[str, bytes], options: Mapping[str, Any] | None = None):
    """Raises ValueError where the library cannot read the file."""
    from tokenizers import Tokenizer as Model

    self.files, self.options = dict(files), None
    text = self.files["tokenizer.json"].decode()
    try:
      self._model = Model.from_str(text)
    except Exception as error:  # the library raises no narrower one
      raise ValueError(str(error)) from error
    self._model.no_truncation()
    self._model.no_padding()
    self.record = json.loads(text)
    self.spelled = {i: piece for piece, i in self._model.get_vocab(with_added_tokens=True).items()}
    self.tells_starts = not self._ends_words
    self.keeps_spaces = self.record["model"].get("type") not in ("WordPiece", "WordLevel")

  @property
  def controls(self) -> set[int]:
    """Ids of the added tokens that are marked special."""
    return {i for i, token in self._model.get_added_tokens_decoder().items() if token.special}

  @property
  def _ends_words(self) -> bool:
    return self.record["model"].get("end_of_word_suffix") == END_OF_WORD

  @functools.cached_property
  def surfaces(self) -> dict[int, bytes]:
    model, added = self.record["model"], set(self._model.get_added_tokens_decoder())
    steps = json.dumps([self.record.get(part) for part in ("pre_tokenizer", "decoder")])
    prefix = model.get("continuing_subword_prefix") or ""
    if not self.keeps_spaces:
      # The text's white space is lost: as for a trained vocabulary, a piece that begins a word counts the space before it.
      surface = lambda piece: (piece.removeprefix(prefix) if prefix and piece.startswith(prefix) else " " + piece).encode()
    elif '"ByteLevel"' in steps:
      surface = _byte_level
    else:
      surface = _sentencepiece
    return {i: piece.encode() if i in added else surface(piece) for i, piece in self.spelled.items()}

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [item.ids for item in self._model.encode_batch(list(texts), add_special_tokens=False)]

  def decode(self, ids: Sequence[int]) -> str:
    text = self._model.decode(list(ids), skip_special_tokens=False)
    return text.replace(END_OF_WORD, " ").strip() if self._ends_words else text


class SentencePiece:
  """A SentencePiece model; for XLNet with the cleaning of the text that its code does before it (options: accents, lowercase).

  Accents are XLNet's own notion of them, characters of a combining class; a tokenizer.json of it drops other marks too (U+FE0F, vowel signs).
  """

  kind = "sentencepiece"
  tells_starts = keeps_spaces = True

  def __init__(self, files: Mapping[str, bytes], options: Mapping[str, Any] | None = None):
    """Raises ValueError where the file is no such model."""
    self.files, self.options = dict(files), options
    self._model = _processor(self.files["tokenizer.model"], "tokenizer.model")
    self.spelled = {i: self._model.id_to_piece(i) for i in range(self._model.get_piece_size())}

  @property
  def controls(self) -> set[int]:
    return {i for i in self.spelled if self._model.is_control(i) or self._model.is_unknown(i)}

  @functools.cached_property
  def surfaces(self) -> dict[int, bytes]:
    return {i: _sentencepiece(piece) for i, piece in self.spelled.items()}

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    if self.options:
      texts = [_cleaned(text, **self.options) for text in texts]
    return self._model.encode(list(texts), out_type=int, num_threads=THREADS)

  def decode(self, ids: Sequence[int]) -> str:
    return self._model.decode(list(ids))


class Marian:
  """Two SentencePiece models, of the source and the target language, whose pieces are numbered by one vocab.json.

  Encodes the source language, or with the option `target` the target language; decodes the target language. Punctuation stays as it
  is: `transformers` regularises it first where sacremoses is installed.
  """

  kind = "marian"
  tells_starts = keeps_spaces = True

  def __init__(self, files: Mapping[str, bytes], options: Mapping[str, Any] | None = None):
    """Raises ValueError where the files are no such models, KeyError without an `<unk>`."""
    self.files, self.options = dict(files), options
    self._ids = {str(piece): int(i) for piece, i in json.loads(self.files["vocab.json"]).items()}
    self._unk = self._ids["<unk>"]
    self._source, self._target = (_processor(self.files[name], name) for name in ("source.spm", "target.spm"))
    self.spelled = {i: piece for piece, i in self._ids.items()}

  @property
  def controls(self) -> set[int]:
    return {i for piece, i in self._ids.items() if piece in ("<unk>", "<pad>", "<s>", "</s>") or _language_code(piece) == piece}

  @functools.cached_property
  def surfaces(self) -> dict[int, bytes]:
    return {i: _sentencepiece(piece) for i, piece in self.spelled.items()}

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    codes = [_language_code(text) for text in texts]
    model = self._target if self.options and self.options["target"] else self._source
    pieces = model.encode([text.removeprefix(code) for text, code in zip(texts, codes)], out_type=str, num_threads=THREADS)
    return [[self._ids.get(piece, self._unk) for piece in ([code] if code else []) + list(found)] for code, found in zip(codes, pieces)]

  def decode(self, ids: Sequence[int]) -> str:
    return self._target.decode([self.spelled[i] for i in ids])


ENGINES = {engine.kind: engine for engine in (Library, SentencePiece, Marian)}


def byte_level(pieces: Mapping[str, int], merges: Sequence[Sequence[str]], special: Sequence[str], prefix_space: bool, clip: bool) -> Library:
  """GPT-2's byte-level BPE from its two files (Radford et al. 2019), or CLIP's lower-case kind of it (Radford et al. 2021).

  Args:
    special: tokens that a text which spells them has.
  """
  from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
  from tokenizers import Tokenizer as Model

  merges = [tuple(pair) for pair in merges]
  try:
    if clip:
      model = Model(models.BPE(dict(pieces), merges, unk_token="<|endoftext|>", end_of_word_suffix=END_OF_WORD))
    else:
      model = Model(models.BPE(dict(pieces), merges))
  except Exception as error:  # the library raises no narrower one
    raise ValueError(str(error)) from error
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
  if clip:
    model.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    model.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(words, behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    ])  # fmt: skip
  model.decoder = decoders.ByteLevel()
  model.add_special_tokens([AddedToken(token, lstrip=token == "<mask>", normalized=False, special=True) for token in special])
  return Library({"tokenizer.json": model.to_str().encode()})


def bert(pieces: Mapping[str, int], lowercase: bool, strip_accents: bool | None, chinese: bool) -> Library:
  """BERT's WordPiece (Devlin et al. 2019). A text that spells one of its five special tokens has that token, as in `transformers`."""
  from tokenizers import Tokenizer as Model
  from tokenizers import decoders, models, normalizers, pre_tokenizers

  model = Model(models.WordPiece(dict(pieces), unk_token="[UNK]"))
  model.normalizer = normalizers.BertNormalizer(
      clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
  )
  model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  model.decoder = decoders.WordPiece(prefix="##")
  model.add_special_tokens([token for token in ("[UNK]", "[SEP]", "[CLS]", "[PAD]", "[MASK]") if token in pieces])
  return Library({"tokenizer.json": model.to_str().encode()})


@functools.cache
def _symbols() -> dict[str, int]:
  return byte_of_symbol()


def _byte_level(piece: str) -> bytes:
  ending = piece.endswith(END_OF_WORD)
  symbols = piece.removesuffix(END_OF_WORD)
  if not all(symbol in _symbols() for symbol in symbols):
    return piece.encode()
  return bytes(_symbols()[symbol] for symbol in symbols) + b" " * ending


def _sentencepiece(piece: str) -> bytes:
  if byte := _BYTE.fullmatch(piece):
    return bytes([int(byte[1], 16)])
  return piece.replace(SPACE, " ").replace(END_OF_WORD, " ").encode()


def _language_code(text: str) -> str:
  """The `>>fr<<` that begins a text, or nothing."""
  end = text.find("<<")
  return text[: end + 2] if text.startswith(">>") and end > 0 else ""


def _cleaned(text: str, accents: bool, lowercase: bool) -> str:
  text = " ".join(text.split()).replace("``", '"').replace("''", '"')
  if not accents:
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
  return text.lower() if lowercase else text


def _processor(model: bytes, name: str):
  try:
    import sentencepiece
  except ImportError as error:
    raise UserError(f"'{name}' is a SentencePiece model: `pip install sentencepiece` to read it, or bring the vocabulary's tokenizer.json.") from error
  try:
    return sentencepiece.SentencePieceProcessor(model_proto=model)
  except RuntimeError as error:
    raise ValueError(f"{name}: {error}") from error
