"""Published tokenizers: the vocabulary of a Hugging Face folder, or of a folder that holds vocabulary files alone.

Read, the first that is there: `tokenizer.json`; `source.spm`, `target.spm` and `vocab.json` (Marian); a SentencePiece model
(`tokenizer.model`, `spiece.model`); `vocab.json` and `merges.txt`, or as OpenAI named them `encoder.json` and `vocab.bpe`; `vocab.txt`.

Ids are those of the published model, so there is no block of reserved ones: `special` holds the special tokens that the vocabulary has,
under our names where they have one (GPT-2: `bos` and `eos` are both `<|endoftext|>`) and else as they are spelled, and `unused_i` for
each row i of the model that no token has. One that is missing raises UserError where it is asked for; `load(extend=True)` adds them.

A text that spells a special token has that token where `transformers` reads it so: with a tokenizer.json (as that says), BERT's
vocab.txt, and byte-level BPE of a model's folder. It is a text like any other with bare byte-level files and SentencePiece models.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.core.types import Vocab
from research.data import engines, published
from research.data.tokenizer import RESERVED, Tokenizer, refuse_surrogates, write_whole


class Special(dict):
  """Ids of special tokens by name; a missing name is told in a sentence. `get` and `in` ask without raising."""

  def __missing__(self, name: str) -> int:
    raise UserError(f"the imported vocabulary has no '{name}' token, which is needed here: import it once more with extend, which adds the tokens that it "
                    "lacks, or choose an objective and data keys that do without.")  # fmt: skip


class Imported(Tokenizer):
  """A published vocabulary behind the interface of a trained one."""

  def __init__(self, engine: Any, special: Mapping[str, int], size: int, around: tuple[Sequence[int], Sequence[int]] | None):
    """
    Args:
      engine: one of `engines.ENGINES`.
      special: ids that stand for no text.
      size: rows of the model's embedding.
      around: ids before and after a text; None where nothing tells.
    """
    self.kind, self.lowercase = "imported", False
    self.special = Special(special)
    self._engine, self._size, self._around = engine, size, around
    self._outside = frozenset(self.special.values())

  @functools.cached_property
  def vocab(self) -> Vocab:
    # For SentencePiece a sum of lengths counts the space that it puts before a text; lengths are those of the text as it was normalised.
    word_start, byte_length = np.zeros(self._size, bool), np.zeros(self._size, np.int32)
    for i, surface in self._engine.surfaces.items():
      if i not in self._outside:
        # Where nothing in a piece tells that a word begins (CLIP marks only ends), each is taken for a word of its own.
        word_start[i] = surface[:1].isspace() or not self._engine.tells_starts
        byte_length[i] = len(surface)
    return Vocab(self._size, self.special, word_start, byte_length)

  @functools.cached_property
  def digest(self) -> str:
    files = {name: hashlib.sha256(content).hexdigest() for name, content in self._engine.files.items()}
    return hashlib.sha256(json.dumps([self._record(), files], sort_keys=True).encode()).hexdigest()[:16]

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    for text in texts:
      refuse_surrogates(text)
    return [np.array(ids, np.int32) for ids in self._engine.encode_batch(texts)]

  def decode(self, ids: Iterable[int]) -> str:
    return self._engine.decode([i for i in map(int, ids) if i not in self._outside])

  def wrap(self, ids: Sequence[int]) -> np.ndarray:
    """int32 ids with the tokens around them that the model expects: BERT's [CLS] … [SEP], T5's … </s>.

    Raises:
      UserError: the files that were imported do not tell.
    """
    if self._around is None:
      raise UserError("the imported vocabulary does not tell which tokens stand around a text: import it from a folder with its tokenizer.json, or its "
                      "config.json beside the vocabulary files.")  # fmt: skip
    return np.array([*self._around[0], *ids, *self._around[1]], np.int32)

  def join(self, first: Sequence[int], second: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One text or a pair with the tokens around and between that the model expects, int32 ids, and their types.

    The tokenizer.json tells how a pair is joined. Without one: byte-level BPE as RoBERTa, `<s> first </s></s> second </s>` of one type;
    others first with its end, second with its end, of types 0 and 1 (BERT's [CLS] first [SEP] second [SEP]; T5's first </s> second </s>).

    Raises:
      UserError: as `wrap`.
    """
    if second is None:
      ids = self.wrap(first)
      return ids, np.zeros(len(ids), np.int32)
    parts = published.written_pair(self._engine.record.get("post_processor")) if self._engine.kind == "tokenizers" else None
    if parts is None:
      self.wrap([])  # raises where nothing tells
      before, after = self._around
      doubled = self._engine.keeps_spaces and len(before) > 0 and len(after) > 0
      parts = [(before, 0), (0, 0), (after, 0), *([(after, 0)] if doubled else []), (1, 0 if doubled else 1), (after, 0 if doubled else 1)]
    found = [((first, second)[part] if isinstance(part, int) else part, kind) for part, kind in parts]
    ids = np.array([i for part, _ in found for i in part], np.int32)
    return ids, np.array([kind for part, kind in found for _ in part], np.int32)

  @property
  def target(self) -> Imported:
    """The same vocabulary, encoding the target's text: another one only for Marian, which splits each language by its own model."""
    if self._engine.kind != "marian":
      return self
    return Imported(engines.Marian(self._engine.files, {"target": True}), self.special, self._size, self._around)

  def token(self, i: int) -> str:
    if i in self._outside:
      return self._engine.spelled.get(i) or next(f"<{name}>" for name, at in self.special.items() if at == i)
    return self._engine.surfaces[i].decode("utf-8", "backslashreplace") if self._engine.keeps_spaces else self._engine.spelled[i]

  def _record(self) -> dict[str, Any]:
    around = self._around and [list(map(int, part)) for part in self._around]
    return {"kind": self.kind, "engine": self._engine.kind, "options": self._engine.options, "files": sorted(self._engine.files),
            "special": dict(self.special), "size": self._size, "around": around}  # fmt: skip

  def save(self, folder: str) -> None:
    """Writes the engine's files and then vocabulary.json, each whole or not at all."""
    os.makedirs(folder, exist_ok=True)
    for name, content in self._engine.files.items():
      write_whole(os.path.join(folder, name), content)
    write_whole(os.path.join(folder, "vocabulary.json"), json.dumps({**self._record(), "digest": self.digest}))


def read(folder: str, saved: Mapping[str, Any]) -> Imported:
  """What `save` wrote, by the record in its vocabulary.json; `tokenizer.load` checks the digest and words the errors."""
  files = {name: published.read_bytes(os.path.join(folder, name)) for name in saved["files"]}
  engine = engines.ENGINES[saved["engine"]](files, saved["options"])
  return Imported(engine, saved["special"], saved["size"], saved["around"])


def load(folder: str, size: int | None = None, extend: bool = False, say: Callable[[str], None] = print) -> Imported:
  """The tokenizer of a published model.

  Args:
    size: rows of the model's embedding; default: vocab_size of the folder's config.json, or as many as the tokenizer has ids.
    extend: adds the special tokens of ours that are missing, first on rows that no token has, then after the last: `vocab.size` may then be
      larger than `size`, and the embedding must grow to it.
    say: is told, a line each, what was added and what the files name but the vocabulary lacks.

  Raises:
    UserError: no tokenizer there, one that cannot be read here, or one with more ids than the model has rows.
  """
  engine, special, template, told = published.find(folder, say)
  count = 1 + max([*engine.spelled, *special.values()], default=-1)
  rows = size or told or count
  if count > rows:
    raise UserError(f"mismatching tokenizer in '{folder}': it has ids up to {count - 1}, but the model's embedding has {rows} rows (vocab_size); bring the "
                    "tokenizer that the model was trained with.")  # fmt: skip
  taken = {*engine.spelled, *special.values()}
  free = [i for i in range(rows) if i not in taken]
  if extend and (missing := [name for name in RESERVED if name not in special]):
    free += range(rows, rows + max(0, len(missing) - len(free)))
    special |= zip(missing, free)
    free, rows = free[len(missing) :], max(rows, free[len(missing) - 1] + 1)
    names = ", ".join(missing if len(missing) < 12 else [*missing[:11], "…"])
    say(f"the vocabulary of '{folder}' gained {len(missing)} special tokens, which its model has not learned: {names}; it has {rows} entries now")
  around = published.resolved(template, special)
  return Imported(engine, special | {f"unused_{i}": i for i in free}, rows, around)
