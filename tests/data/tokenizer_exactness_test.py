"""The fast encoder gives the training library's ids, or is not used."""

import pytest

from research.core.errors import UserError
from research.data import tokenizer as tokenizers


def _library_model(merges):
  """The training library's JSON of a byte-level vocabulary with the given merges."""
  from tokenizers import Tokenizer, models, pre_tokenizers

  symbols = {byte: symbol for symbol, byte in tokenizers.byte_of_symbol().items()}
  ids = {symbols[byte]: byte for byte in range(256)}
  for left, right in merges:
    ids[left + right] = len(ids)
  model = Tokenizer(models.BPE(vocab=ids, merges=merges))
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  return model.to_str()


def test_merges_that_the_two_read_differently_go_to_the_library():
  tokenizer = tokenizers._assemble("bpe", False, None, _library_model([("a", "b"), ("b", "c"), ("a", "bc")]))
  assert not tokenizer._ranked and [tokenizer.token(i) for i in tokenizer.encode("abc")] == ["ab", "c"]
  assert tokenizer._fast.encode_ordinary("abc") == [258], "the case no longer tells the two apart"


def test_the_verdict_is_saved(tmp_path):
  tokenizer = tokenizers.train(tokenizers.Config(vocab_size=600), ["ab abab aab the cat sat on the mat " * 30])
  assert tokenizer._ranked
  tokenizer.save(str(tmp_path))
  again = tokenizers.load(str(tmp_path))
  assert again.digest == tokenizer.digest and again._known_ranked
  assert again.decode(again.encode("the cat\0")) == "the cat\0"


def test_more_white_space_than_the_fast_encoder_stands():
  tokenizer = tokenizers.train(tokenizers.Config(vocab_size=400), ["a b " * 30])
  text = "x" + "\n" * 1_500_000 + "x"
  assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", ["byte", "character", "bpe", "wordpiece"])
def test_half_a_surrogate_pair_is_refused(kind):
  tokenizer = tokenizers.train(tokenizers.Config(kind=kind, vocab_size=400), ["a b " * 30])
  with pytest.raises(UserError, match="surrogate"):
    tokenizer.encode("a\ud800b")
