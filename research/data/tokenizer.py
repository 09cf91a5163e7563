"""Tokenizers: bytes, characters, byte-level BPE and WordPiece, trained on the spot or read from a folder; published ones: `imported`.

Every trained vocabulary begins with the same reserved tokens, so that one vocabulary serves every objective. They lie outside the text's
own pieces: a text that spells `<mask>` is encoded as those six characters.

`word_start` marks a piece that begins a word: for BPE, bytes and characters one whose first byte is white space (white space leads the word
that follows it); for WordPiece one without the `##` of a continuation.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from research.core.errors import UserError
from research.core.types import Vocab

RESERVED = ("pad", "unk", "bos", "eos", "cls", "sep", "mask", "fim_prefix", "fim_middle", "fim_suffix", *(f"sentinel_{i}" for i in range(100)))
FIRST = len(RESERVED)  # id of the first piece of text
THREADS = min(8, os.cpu_count() or 1)  # that encode
UNKNOWN = "[UNK]"  # WordPiece's own name of it
GPT2_WORDS = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""  # Radford et al. 2019; splits text before BPE
WHITE = b" \t\n\r\x0b\x0c"
BLANK_RUN = 100_000  # characters; tiktoken's regular expressions overflow their stack on ten times as much white space in a row


@dataclasses.dataclass(frozen=True)
class Config:
  kind: Literal["byte", "character", "bpe", "wordpiece"] = "bpe"
  vocab_size: int = 4096  # entries of a trained bpe or wordpiece vocabulary, reserved ones included
  lowercase: bool = False  # fold the text to lower case first
  sample: int = 100_000_000  # characters of the training split that a bpe or wordpiece vocabulary is trained on, at most
  path: str = ""  # folder of a saved tokenizer to use as it is


class Tokenizer:
  """Text to ids and back; ids below FIRST are reserved and never come out of `encode`, but for `unk`."""

  def __init__(self, kind: str, lowercase: bool, pieces: Sequence[Any], model: str = "", ranked: bool | None = None):
    """A vocabulary.

    Args:
      pieces: what each id from FIRST on stands for: bytes (byte, bpe), a character, or a WordPiece string.
      model: the training library's own JSON of it (bpe, wordpiece).
      ranked: whether `is_ranked` holds, where that is known already.
    """
    self.kind, self.lowercase, self._pieces, self._json, self._known_ranked = kind, lowercase, list(pieces), model, ranked
    self.special = {name: i for i, name in enumerate(RESERVED)}

  @functools.cached_property
  def vocab(self) -> Vocab:
    word_start = np.zeros(FIRST + len(self._pieces), bool)
    byte_length = np.zeros(FIRST + len(self._pieces), np.int32)
    for i, piece in enumerate(self._pieces, start=FIRST):
      if self.kind == "wordpiece":
        word_start[i] = not piece.startswith("##")
        # The text's white space is lost: a piece that begins a word counts one byte for the space before it. So a sum is too large
        # by one for each punctuation mark, which stands without a space, and too small where the text has more than one.
        byte_length[i] = len(piece.removeprefix("##").encode()) + int(word_start[i])
      else:
        raw = piece.encode() if isinstance(piece, str) else piece
        word_start[i], byte_length[i] = raw[:1] in {WHITE[j : j + 1] for j in range(len(WHITE))}, len(raw)
    return Vocab(len(word_start), self.special, word_start, byte_length)

  @functools.cached_property
  def digest(self) -> str:
    """Sixteen hex digits that name the vocabulary."""
    pieces = [piece if isinstance(piece, str) else piece.hex() for piece in self._pieces]
    return hashlib.sha256(json.dumps([self.kind, self.lowercase, pieces, self._json]).encode()).hexdigest()[:16]

  def encode(self, text: str) -> np.ndarray:
    """int32 ids of a text, without added special tokens; errors as `encode_batch`."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """int32 ids of each text.

    Raises:
      UserError: a text holds half of a surrogate pair, which no encoding of Unicode can write down.
    """
    for text in texts:
      refuse_surrogates(text)
    if self.lowercase:
      texts = [text.lower() for text in texts]
    if self.kind == "byte":
      return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + FIRST for text in texts]
    if self.kind == "character":
      return [self._lookup[np.minimum(_codes(text), len(self._lookup) - 1)] for text in texts]
    if self.kind == "bpe":
      if self._ranked and not any(map(_blank_run, texts)):
        return [np.array(ids, np.int32) + FIRST for ids in self._fast.encode_ordinary_batch(list(texts), num_threads=THREADS)]
      return [ids + FIRST for ids in self._exact(texts)]
    return [np.where(ids == 0, self.special["unk"], ids + FIRST - 1) for ids in self._exact(texts)]  # the model's own id 0 is UNKNOWN

  def _exact(self, texts: Sequence[str]) -> list[np.ndarray]:
    """The training library's own ids."""
    return [np.array(item.ids, np.int32) for item in self._model.encode_batch(list(texts), add_special_tokens=False)]

  def decode(self, ids: Iterable[int]) -> str:
    """The text of ids; reserved ones are left out, and bytes that are no UTF-8 become U+FFFD."""
    pieces = [self._pieces[i - FIRST] for i in map(int, ids) if i >= FIRST]
    if self.kind == "character":
      return "".join(pieces)
    if self.kind == "wordpiece":
      return "".join(piece[2:] if piece.startswith("##") else " " + piece for piece in pieces).strip()
    return b"".join(pieces).decode("utf-8", "replace")

  @property
  def pad(self) -> int:
    """The id that fills a row up. Nobody sees or scores padding, so where an imported vocabulary has none, any id will do."""
    return self.special.get("pad", 0)

  def wrap(self, ids: Sequence[int]) -> np.ndarray:
    """int32 ids with the tokens around them that the vocabulary's model expects around a text: none here, some in an imported one."""
    return np.asarray(ids, np.int32)

  def around(self) -> tuple[list[int], list[int]]:
    """The ids that `wrap` puts before and after a text. Errors as of `wrap`."""
    ids = self.wrap([-1]).tolist()  # −1 is no token's id, so it tells where the text is
    return ids[: ids.index(-1)], ids[ids.index(-1) + 1 :]

  def join(self, first: Sequence[int], second: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One text or a pair as a classifier reads it, [CLS] first [SEP] second [SEP] (Devlin et al. 2019, section 3): int32 ids, and their types, 0 and 1."""
    before, between = [self.special["cls"], *first, self.special["sep"]], [] if second is None else [*second, self.special["sep"]]
    return np.array([*before, *between], np.int32), np.repeat(np.array([0, 1], np.int32), [len(before), len(between)])

  def token(self, i: int) -> str:
    """One id as a person reads it."""
    if i < FIRST:
      return f"<{RESERVED[i]}>"
    piece = self._pieces[i - FIRST]
    return piece if isinstance(piece, str) else piece.decode("utf-8", "backslashreplace")

  @functools.cached_property
  def _lookup(self) -> np.ndarray:
    """Id by code point, one entry past the largest known for all others."""
    codes = [ord(c) for c in self._pieces]
    table = np.full(max(codes, default=0) + 2, self.special["unk"], np.int32)
    table[codes] = np.arange(FIRST, FIRST + len(codes))
    return table

  @functools.cached_property
  def _fast(self):
    """The same merges in tiktoken, which encodes several times faster than the library that trains them."""
    import tiktoken

    return tiktoken.Encoding("trained", pat_str=GPT2_WORDS, mergeable_ranks={p: i for i, p in enumerate(self._pieces)}, special_tokens={})

  @functools.cached_property
  def _model(self):
    from tokenizers import Tokenizer as Model

    return Model.from_str(self._json)

  @functools.cached_property
  def _ranked(self) -> bool:
    if self._known_ranked is not None:
      return self._known_ranked
    to_byte = byte_of_symbol()
    merges = [[bytes(to_byte[symbol] for symbol in part) for part in pair] for pair in json.loads(self._json)["model"]["merges"]]
    return is_ranked(self._pieces, merges)

  def save(self, folder: str) -> None:
    """Writes tokenizer.json (the library's own form, for bpe and wordpiece) and then vocabulary.json, each whole or not at all."""
    os.makedirs(folder, exist_ok=True)
    saved = {"kind": self.kind, "lowercase": self.lowercase, "characters": None, "ranked": None, "digest": self.digest}
    if self.kind == "character":
      saved["characters"] = self._pieces
    if self.kind == "bpe":
      saved["ranked"] = self._ranked
    if self._json:
      write_whole(os.path.join(folder, "tokenizer.json"), self._json)
    write_whole(os.path.join(folder, "vocabulary.json"), json.dumps(saved))


def load(folder: str) -> Tokenizer:
  """A saved tokenizer.

  Raises:
    UserError: no tokenizer there, or its files do not belong together.
  """
  try:
    with open(os.path.join(folder, "vocabulary.json"), encoding="utf-8") as file:
      saved = json.load(file)
    if saved["kind"] == "imported":
      from research.data import imported  # which builds on this file

      tokenizer = imported.read(folder, saved)
    else:
      model = ""
      if saved["kind"] in ("bpe", "wordpiece"):
        with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as file:
          model = file.read()
      tokenizer = _assemble(saved["kind"], saved["lowercase"], saved["characters"], model, saved["ranked"])
    digest = saved["digest"]
  except FileNotFoundError as error:
    raise UserError(f"no tokenizer in '{folder}': '{error.filename}' is missing.") from error
  except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:  # what broken JSON and wrong JSON lead to
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
    raise UserError(f"the tokenizer in '{folder}' cannot be read ({reason}): bring the old files back.") from error
  if tokenizer.digest != digest:
    raise UserError(f"the tokenizer in '{folder}' has changed since it was saved (digest {tokenizer.digest}, saved {digest}): bring the old files back.")
  return tokenizer


def train(cfg: Config, texts: Iterable[str]) -> Tokenizer:
  """A vocabulary of the most useful pieces of `texts` (or the saved one that cfg.path names).

  BPE: Sennrich et al. 2016, on bytes as in Radford et al. 2019. WordPiece: Schuster and Nakajima 2012, with BERT's splitting.

  Raises:
    UserError: vocab_size leaves no room for the reserved tokens and the alphabet.
  """
  if cfg.path:
    return load(cfg.path)
  if cfg.kind == "byte":
    return _assemble("byte", cfg.lowercase)
  if cfg.kind == "character":
    seen: set[str] = set()
    for text in texts:
      refuse_surrogates(text)
      seen.update(text.lower() if cfg.lowercase else text)
    return _assemble("character", cfg.lowercase, sorted(seen))
  least = FIRST + (256 if cfg.kind == "bpe" else 2)
  if cfg.vocab_size <= least:
    raise UserError(f"data.tokenizer.vocab_size is {cfg.vocab_size}; a {cfg.kind} vocabulary needs more than {least} entries ({FIRST} are reserved).")
  return _assemble(cfg.kind, cfg.lowercase, None, _train_model(cfg, _sampled(texts, cfg.sample)))


def _sampled(texts: Iterable[str], characters: int) -> Iterable[str]:
  left = characters
  for text in texts:
    if left <= 0:
      return
    yield text[:left]
    left -= len(text)


def _train_model(cfg: Config, texts: Iterable[str]) -> str:
  from tokenizers import Tokenizer as Model
  from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

  # In pieces: the trainer counts words of one text at a time, and a single long text would be one job.
  cut = itertools.chain.from_iterable((text[i : i + 100_000] for i in range(0, len(text), 100_000)) for text in texts)
  if cfg.kind == "bpe":
    model = Model(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=cfg.vocab_size - FIRST, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False
    )
    model.train_from_iterator((t.lower() for t in cut) if cfg.lowercase else cut, trainer)
    return model.to_str()
  model = Model(models.WordPiece(unk_token=UNKNOWN))
  model.normalizer = normalizers.BertNormalizer(lowercase=cfg.lowercase)
  model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  trainer = trainers.WordPieceTrainer(vocab_size=cfg.vocab_size - FIRST + 1, special_tokens=[UNKNOWN], show_progress=False)
  model.train_from_iterator(cut, trainer)
  # Built again without added tokens: a text that spells [UNK] is three pieces.
  clean = Model(models.WordPiece(vocab=model.get_vocab(), unk_token=UNKNOWN))
  clean.normalizer, clean.pre_tokenizer = model.normalizer, model.pre_tokenizer
  return clean.to_str()


def _assemble(
    kind: str, lowercase: bool, characters: list[str] | None = None, model: str = "", ranked: bool | None = None
) -> Tokenizer:
  if kind == "byte":
    return Tokenizer(kind, lowercase, [bytes([b]) for b in range(256)])
  if kind == "character":
    return Tokenizer(kind, lowercase, characters)
  ids = json.loads(model)["model"]["vocab"]
  pieces = sorted(ids, key=ids.get)
  if kind == "bpe":
    to_byte = byte_of_symbol()
    pieces = [bytes(to_byte[symbol] for symbol in piece) for piece in pieces]
  elif pieces[0] == UNKNOWN:
    pieces = pieces[1:]  # it is the reserved `unk`
  else:
    raise ValueError(f"its first piece is '{pieces[0]}', not '{UNKNOWN}'")
  return Tokenizer(kind, lowercase, pieces, model, ranked)


def is_ranked(pieces: Sequence[bytes], merges: Sequence[tuple[bytes, bytes]]) -> bool:
  """Whether joining by the rank of the *result* (tiktoken) gives the ids that joining by the rank of the *pair* (the BPE paper) gives.

  They part where a piece can be reached by a pair that is not its merge: with the merges a+b, b+c, a+bc the text `abc` is `ab c` by pairs
  and `abc` by results. They cannot part if every merge comes out as its own two parts when only the merges before it are made: take
  the first join by result that is not one by pair. No join so far crossed the bounds of the piece, so inside it stands what the earlier
  merges alone make of it, and those are the merge's own two parts.
  """
  ranks = {piece: i for i, piece in enumerate(pieces)}
  first = len(pieces) - len(merges)
  for rank, (left, right) in enumerate(merges, start=first):
    parts = [bytes([b]) for b in left + right]
    while len(parts) > 2:
      lowest, at = min((ranks.get(a + b, rank), i) for i, (a, b) in enumerate(zip(parts, parts[1:])))
      if lowest >= rank:
        break
      parts[at : at + 2] = [parts[at] + parts[at + 1]]
    if ranks.get(left + right) != rank or parts != [left, right]:
      return False
  return True


def _blank_run(text: str) -> bool:
  """Whether some stretch of BLANK_RUN characters is all white space; any run twice as long holds such a stretch."""
  return any(text[i : i + BLANK_RUN].isspace() for i in range(0, len(text), BLANK_RUN) if i + BLANK_RUN <= len(text))


def refuse_surrogates(text: str) -> None:
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise UserError(f"data: a text holds half of a surrogate pair (U+{ord(text[error.start]):04X}, character {error.start}), which is no text: "
                    "mend or leave out that document.") from error  # fmt: skip


def write_whole(path: str, content: str | bytes) -> None:
  """Writes a file whole or not at all."""
  scratch = f"{path}.{uuid.uuid4().hex}"  # of its own for each process that writes here
  with open(scratch, "wb") as file:
    file.write(content if isinstance(content, bytes) else content.encode())
  os.replace(scratch, path)


def byte_of_symbol() -> dict[str, int]:
  """The printable stand-ins of byte-level BPE (Radford et al. 2019): printable Latin-1 stands for itself, the others from U+0100 on."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in plain]
  return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def _codes(text: str) -> np.ndarray:
  return np.frombuffer(text.encode("utf-32-le"), np.uint32)
