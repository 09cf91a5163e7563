"""Vocabularies: what goes in comes out, the bulk encoder equals the reference, reserved ids stay out of text."""

import gzip
import os
import random

import numpy as np
import pytest

from research.core.errors import UserError
from research.data import tokenizer
from research.data.sources.files import PACKAGE, expand
from research.data.tokenizer import FIRST, RESERVED, Config

ODD = [
  "", " ", "plain words", "  two  spaces ", "tab\tand\nnewline\r\n\r\n end", "e\u0301 combining \u00e9", "漢字かな交じり文 中文", "👩‍👩‍👧 🏳️‍🌈 😀",
  "nul \0 inside", "\ufeffmark", "مرحبا שלום", "\u00a0\u2003\u3000", "\U0010ffff\x7f\x80", "don't we'll I'M 12345 ½ ₂", "a" * 300,
]  # fmt: skip
LOOKALIKES = ["<mask>", "<pad>", "[MASK]", "[UNK]", "<|endoftext|>", "<s>", "sentinel_0", "<sentinel_0>"]


@pytest.fixture(scope="module")
def corpus():
  with gzip.open(expand((PACKAGE + "tinyshakespeare.txt.gz",))[0], "rt", encoding="utf-8") as file:
    return [file.read(60_000), "in 1984 and 42, 1984 and 42; " * 50, *ODD, *LOOKALIKES]


@pytest.fixture(scope="module")
def trained(corpus):
  return {kind: tokenizer.train(Config(kind=kind, vocab_size=900), corpus) for kind in ("byte", "character", "bpe", "wordpiece")}


@pytest.mark.parametrize("kind", ["byte", "character", "bpe"])
def test_what_goes_in_comes_out(trained, corpus, kind):
  tokens = trained[kind]
  for text, ids in zip(corpus, tokens.encode_batch(corpus)):
    assert ids.dtype == np.int32
    assert tokens.decode(ids) == text
    assert tokens.vocab.byte_length[ids].sum() == len(text.encode())
    np.testing.assert_array_equal(ids, tokens.encode(text))


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_characters_never_seen_in_training_come_out_too(kind):
  tokens = tokenizer.train(Config(kind=kind, vocab_size=400), ["only ascii here"])
  for text in ODD:
    assert tokens.decode(tokens.encode(text)) == text


def test_bulk_encoder_equals_the_trainers_own(trained, corpus):
  tokens, rng = trained["bpe"], random.Random(0)
  points = [chr(c) for c in [*range(0x400), *rng.sample(range(0x400, 0xD800), 3000), *rng.sample(range(0xE000, 0x110000), 1000)]]
  texts = [*corpus, *(f"a{c}b {c}  {c}." for c in points), *("".join(rng.choices("etaoin sh'\n", k=30)) for _ in range(1000))]
  for text, fast, exact in zip(texts, tokens.encode_batch(texts), tokens._model.encode_batch(texts)):
    assert fast.tolist() == [i + FIRST for i in exact.ids], repr(text)


def test_bulk_encoder_is_exact_where_pieces_overlap():
  rng = random.Random(1)  # two letters: almost every piece can be put together in several ways
  for size in (20, 60, 150):
    words = [" ".join("".join(rng.choices("ab", k=rng.randint(1, 12))) for _ in range(300))]
    tokens = tokenizer.train(Config(kind="bpe", vocab_size=FIRST + 256 + size), words)
    texts = ["".join(rng.choices("ab", k=rng.randint(1, 30))) for _ in range(300)]
    for fast, exact in zip(tokens.encode_batch(texts), tokens._model.encode_batch(texts)):
      assert fast.tolist() == [i + FIRST for i in exact.ids]


@pytest.mark.parametrize("kind", ["byte", "character", "bpe", "wordpiece"])
def test_reserved_ids_come_first_and_never_from_text(trained, kind):
  tokens = trained[kind]
  vocab = tokens.vocab
  assert [vocab.special[name] for name in RESERVED] == list(range(FIRST)) and vocab.special["pad"] == 0
  assert not vocab.byte_length[:FIRST].any() and not vocab.word_start[:FIRST].any()
  assert vocab.byte_length[FIRST:].all() and len(vocab.plain) == vocab.size - FIRST
  reserved = set(range(FIRST)) - {vocab.special["unk"]} if kind == "wordpiece" else set(range(FIRST))
  for text in LOOKALIKES:
    assert not reserved & set(tokens.encode(text).tolist()), text
  assert tokens.decode([vocab.special["bos"], *tokens.encode("to be"), vocab.special["eos"]]) == "to be"
  assert tokens.token(vocab.special["mask"]) == "<mask>"


def test_sizes(trained, corpus):
  assert trained["byte"].vocab.size == FIRST + 256
  assert trained["character"].vocab.size == FIRST + len(set("".join(corpus)))
  assert trained["bpe"].vocab.size == 900 and trained["wordpiece"].vocab.size == 900


def test_characters_outside_the_vocabulary_are_unknown(trained):
  tokens = tokenizer.train(Config(kind="character"), ["abc"])
  assert tokens.encode("aXc\U0010ffff").tolist() == [FIRST, 1, FIRST + 2, 1]
  assert tokens.decode(tokens.encode("aXc")) == "ac"


def test_wordpiece_words(trained):
  tokens = trained["wordpiece"]
  assert tokens.decode(tokens.encode("the  king\nspeaks")) == "the king speaks"
  assert tokens.vocab.special["unk"] in tokens.encode("\U0001f9ff")
  ids = tokens.encode("the king of unspeakable")
  assert tokens.vocab.word_start[ids].sum() == 4
  assert "[UNK]" not in tokens._pieces, "it is the reserved unk, and must not be drawn as a random replacement"


def test_word_starts_of_bpe(trained):
  tokens = trained["bpe"]
  ids = tokens.encode("so the king\nsaid it")
  starts = [tokens.token(int(i)) for i in ids if tokens.vocab.word_start[i]]
  assert all(piece[0] in " \n" for piece in starts) and len(starts) == 4


def test_lowercase():
  for kind in ("byte", "character", "bpe", "wordpiece"):
    tokens = tokenizer.train(Config(kind=kind, vocab_size=400, lowercase=True), ["The King and THE queen " * 3])
    np.testing.assert_array_equal(tokens.encode("THE King"), tokens.encode("the king"))
    assert tokens.decode(tokens.encode("THE King")) == "the king"


@pytest.mark.parametrize("kind", ["byte", "character", "bpe", "wordpiece"])
def test_saved_and_loaded(trained, tmp_path, kind):
  tokens = trained[kind]
  tokens.save(str(tmp_path))
  again = tokenizer.train(Config(path=str(tmp_path)), [])
  assert again.digest == tokens.digest and again.kind == kind
  for text in ODD:
    np.testing.assert_array_equal(again.encode(text), tokens.encode(text))
  np.testing.assert_array_equal(again.vocab.word_start, tokens.vocab.word_start)


def test_digests_differ(trained):
  other = tokenizer.train(Config(kind="character"), ["another alphabet"])
  assert len({tokens.digest for tokens in [*trained.values(), other]}) == 5


def test_too_small_a_vocabulary():
  with pytest.raises(UserError, match="vocab_size is 300"):
    tokenizer.train(Config(kind="bpe", vocab_size=300), ["text"])


def test_no_tokenizer_there(tmp_path):
  with pytest.raises(UserError, match="vocabulary.json.* is missing"):
    tokenizer.load(str(tmp_path))


def test_unreadable_tokenizer(trained, tmp_path):
  trained["bpe"].save(str(tmp_path))
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(UserError, match="cannot be read"):
    tokenizer.load(str(tmp_path))


def test_changed_tokenizer(trained, tmp_path):
  trained["character"].save(str(tmp_path))
  path = os.path.join(tmp_path, "vocabulary.json")
  with open(path) as file:
    text = file.read()
  with open(path, "w") as file:
    file.write(text.replace('"a"', '"q"', 1))
  with pytest.raises(UserError, match="has changed since it was saved"):
    tokenizer.load(str(tmp_path))
