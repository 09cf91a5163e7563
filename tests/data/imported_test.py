"""Published vocabularies: their ids are the published ones, what is missing is told, and what was saved comes back."""

import io
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from research.core.errors import UserError
from research.data import imported, tokenizer
from research.data.tokenizer import RESERVED

DATA = pathlib.Path(os.environ.get("RESEARCH_DATA", pathlib.Path(__file__).parents[3] / "shared" / "data")) / "tokenizers"
FILES = {  # name of the expected ids -> the vocabulary's files, and what they are called in a model's folder
    "gpt2": {"gpt2/encoder.json": "encoder.json", "gpt2/vocab.bpe": "vocab.bpe"},
    "bert": {"bert-base-uncased/vocab.txt": "vocab.txt"},
    "mistral_v1": {"mistral-v1/tokenizer.model": "tokenizer.model"},
    "spm_test": {"sentencepiece-test/test_model.model": "spiece.model"},
}
QUIET = lambda line: None


def folder_of(name, folder, **objects):
  """A folder with a published vocabulary and the given JSON files."""
  for source, there in FILES[name].items():
    if not (DATA / source).is_file():
      pytest.skip(f"no {DATA / source}: set RESEARCH_DATA")
    if source.endswith(".model"):
      pytest.importorskip("sentencepiece")
    shutil.copy(DATA / source, folder / there)
  write(folder, **objects)
  return str(folder)


def write(folder, **objects):
  for name, value in objects.items():
    (folder / f"{name}.json").write_text(json.dumps(value))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  known = {}

  def get(name):
    if name not in known:
      known[name] = imported.load(folder_of(name, tmp_path_factory.mktemp(name)))
    return known[name]

  return get


def expected(name):
  return json.loads((DATA / "expected" / f"{name}.json").read_text())


@pytest.mark.parametrize("name", FILES)
def test_published_ids(published, name):
  tokens, cases = published(name), expected(name)
  assert len(cases) == 157
  for case, ids in zip(cases, tokens.encode_batch([case["text"] for case in cases])):
    assert ids.dtype == np.int32 and ids.tolist() == case["ids"], repr(case["text"])
    assert tokens.encode(case["text"]).tolist() == case["ids"], "alone and in bulk"


@pytest.mark.parametrize("name", ["gpt2", "mistral_v1"])
def test_what_goes_in_comes_out(published, name):
  tokens = published(name)
  for case in expected(name):
    assert tokens.decode(case["ids"]) == case["text"]
    prefix = int(name == "mistral_v1" and case["text"] != "")  # the space that SentencePiece puts first
    assert tokens.vocab.byte_length[case["ids"]].sum() == len(case["text"].encode()) + prefix, repr(case["text"])


@pytest.mark.parametrize("name, starts", [
    ("gpt2", [" the", " king", "\n"]), ("bert", ["so", "the", "king", "un"]), ("mistral_v1", [" So", " the", " king", "\n"]),
])  # fmt: skip
def test_word_starts(published, name, starts):
  tokens = published(name)
  ids = tokens.encode("So the king\nunspeakably")
  assert [tokens.token(int(i)) for i in ids if tokens.vocab.word_start[i]] == starts and len(ids) > 5


@pytest.mark.parametrize("name", FILES)
def test_saved_and_loaded(published, name, tmp_path):
  tokens = published(name)
  tokens.save(str(tmp_path))
  again = tokenizer.load(str(tmp_path))
  texts = [case["text"] for case in expected(name)]
  assert again.digest == tokens.digest and again.special == tokens.special and again.vocab.size == tokens.vocab.size
  for ids, same in zip(again.encode_batch(texts), tokens.encode_batch(texts)):
    np.testing.assert_array_equal(ids, same)
    assert again.decode(ids) == tokens.decode(ids)
  np.testing.assert_array_equal(again.vocab.byte_length, tokens.vocab.byte_length)
  record = json.loads((tmp_path / "vocabulary.json").read_text())
  write(tmp_path, vocabulary=record | {"size": record["size"] + 1})
  with pytest.raises(UserError, match="has changed since it was saved"):
    tokenizer.load(str(tmp_path))


def test_special_tokens(published):
  gpt2, bert = published("gpt2"), published("bert")
  assert gpt2.special == {"bos": 50256, "eos": 50256} and gpt2.vocab.size == 50257 and gpt2.pad == 0
  assert [bert.special[name] for name in ("pad", "unk", "cls", "sep", "mask")] == [0, 100, 101, 102, 103]
  assert 50256 not in gpt2.encode("<|endoftext|>") and gpt2.decode([15496, 50256]) == "Hello"
  assert len(gpt2.vocab.plain) == 50256 and not gpt2.vocab.byte_length[50256]
  with pytest.raises(UserError, match="no 'eos' token.*extend"):
    bert.special["eos"]
  with pytest.raises(UserError, match="no 'mask' token"):
    gpt2.vocab.special["mask"]


def test_half_a_surrogate_pair_is_refused(published):
  with pytest.raises(UserError, match="surrogate"):
    published("gpt2").encode("a\ud800b")


def test_around_a_text(published, tmp_path):
  assert published("bert").wrap([7, 8]).tolist() == [101, 7, 8, 102]
  assert published("gpt2").wrap([7, 8]).tolist() == [7, 8]
  with pytest.raises(UserError, match="does not tell which tokens stand around"):
    published("mistral_v1").wrap([7])
  folder = folder_of("mistral_v1", tmp_path, config={"model_type": "mistral", "vocab_size": 32000})
  assert imported.load(folder).wrap([7, 8]).tolist() == [1, 7, 8]
  write(tmp_path, tokenizer_config={"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": True})
  assert imported.load(folder).wrap([7, 8]).tolist() == [7, 8, 2]


def test_t5_adds_its_sentinels_behind_the_model(tmp_path):
  tokens = imported.load(folder_of("spm_test", tmp_path, config={"model_type": "t5", "vocab_size": 1128}), say=QUIET)
  assert tokens.special["sentinel_0"] == 1099 and tokens.special["sentinel_99"] == 1000
  assert tokens.vocab.size == 1128 and tokens.special["unused_1100"] == 1100
  assert tokens.decode([*tokens.encode("hello"), 1099, 1127]) == "hello" and tokens.token(1099) == "<sentinel_0>"
  assert tokens.wrap([5]).tolist() == [5, tokens.special["eos"]]


# --- small vocabularies, made here ---------------------------------------------------------------------------------------------

MERGES = [("a", "b"), ("Ġ", "ab"), ("ab", "c"), ("Ġab", "c")]


def byte_level(folder, extra=("<|endoftext|>",), **objects):
  symbols = sorted(tokenizer.byte_of_symbol(), key=tokenizer.byte_of_symbol().get)
  pieces = [*symbols, *("".join(pair) for pair in MERGES), *extra]
  (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in MERGES) + "\n", encoding="utf-8")
  write(folder, vocab={piece: i for i, piece in enumerate(pieces)}, **objects)
  return str(folder)


def bert(folder, **objects):
  (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "king", "K", "##ing", "é", "e"]) + "\n", encoding="utf-8")
  write(folder, **objects)
  return str(folder)


def test_byte_level(tmp_path):
  tokens = imported.load(byte_level(tmp_path))
  assert [tokens.token(int(i)) for i in tokens.encode("abc abc\nab")] == ["abc", " abc", "\n", "ab"]
  assert tokens.special == {"bos": 260, "eos": 260} and tokens.decode(tokens.encode("naïve 👩‍👩‍👧 ab")) == "naïve 👩‍👩‍👧 ab"


def test_roberta(tmp_path):
  folder = byte_level(tmp_path, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), config={"model_type": "roberta", "vocab_size": 265, "eos_token_id": 262})
  tokens = imported.load(folder)
  assert {name: tokens.special[name] for name in ("bos", "cls", "pad", "eos", "sep", "unk", "mask")} == {
      "bos": 260, "cls": 260, "pad": 261, "eos": 262, "sep": 262, "unk": 263, "mask": 264
  }  # fmt: skip
  assert tokens.wrap([5]).tolist() == [260, 5, 262]
  assert tokens.encode("ab <mask>").tolist() == [256, 264], "a model's folder: as the class of its tokenizer does"
  (tmp_path / "config.json").unlink()
  assert 264 not in imported.load(folder).encode("ab <mask>"), "bare files: a text like any other"
  write(tmp_path, tokenizer_config={"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True})
  assert [imported.load(folder).token(int(i)) for i in imported.load(folder).encode("ab")] == [" ab"]


def test_clip(tmp_path):
  symbols = [*tokenizer.byte_of_symbol()]
  pieces = [*symbols, *(s + "</w>" for s in symbols), "ab", "abc</w>", "<|startoftext|>", "<|endoftext|>"]
  write(tmp_path, vocab={piece: i for i, piece in enumerate(pieces)}, config={"model_type": "clip", "text_config": {"vocab_size": 516, "eos_token_id": 2}})
  (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nab c</w>\n")
  tokens = imported.load(str(tmp_path))
  assert tokens.encode("ABC  ab!").tolist() == [513, pieces.index("a"), pieces.index("b</w>"), pieces.index("!</w>")]
  assert tokens.special == {"bos": 514, "eos": 515, "pad": 515} and tokens.wrap([1]).tolist() == [514, 1, 515]
  assert tokens.decode([514, 513, 513, 515]) == "abc abc"


def test_wordpiece_settings(tmp_path):
  folder = bert(tmp_path)
  assert imported.load(folder).encode("The KING é [MASK]").tolist() == [5, 6, 10, 4]
  write(tmp_path, tokenizer_config={"do_lower_case": False, "strip_accents": False})
  tokens = imported.load(folder)
  assert tokens.encode("the King é").tolist() == [5, 7, 8, 9]
  assert tokens.vocab.word_start.tolist() == [False] * 5 + [True, True, True, False, True, True]
  assert tokens.vocab.byte_length.tolist() == [0] * 5 + [4, 5, 2, 3, 3, 2]
  assert imported.load(folder).digest != imported.load(bert(tmp_path, tokenizer_config={})).digest


@pytest.mark.parametrize("step, before, after", [
    (None, [], []),
    ({"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}, [2], [3]),
    ({"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
         "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
         "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}}}]}, [2], []),
])  # fmt: skip
def test_a_tokenizer_json(tmp_path, step, before, after):
  (tmp_path / "made").mkdir()
  (tmp_path / "read").mkdir()
  imported.load(bert(tmp_path / "made")).save(str(tmp_path / "made"))
  record = json.loads((tmp_path / "made" / "tokenizer.json").read_text())
  record["post_processor"] = step
  record["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
  record["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
  write(tmp_path / "read", tokenizer=record, special_tokens_map={"mask_token": {"content": "[MASK]"}, "bos_token": "<absent>"})
  said = []
  tokens = imported.load(str(tmp_path / "read"), say=said.append)
  assert tokens.encode("the king").tolist() == [5, 6] and tokens.encode("the " * 5).tolist() == [5] * 5, "neither cut nor padded"
  assert tokens.wrap([5]).tolist() == [*before, 5, *after]
  assert tokens.special == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
  assert len(said) == 1 and "names '<absent>' as its bos token" in said[0]


def test_a_unigram_tokenizer_json(tmp_path):
  from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

  pieces = ["<unk>", "</s>", "\u2581the", "\u2581k", "ing", "\u2581", *(f"<0x{b:02X}>" for b in range(256))]
  model = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0, byte_fallback=True))
  model.pre_tokenizer, model.decoder = pre_tokenizers.Metaspace(), decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
  model.add_special_tokens([AddedToken("<unk>", special=True), AddedToken("</s>", special=True)])
  model.save(str(tmp_path / "tokenizer.json"))
  tokens = imported.load(str(tmp_path))
  ids = tokens.encode("the king\n")
  assert [tokens.token(int(i)) for i in ids] == [" the", " k", "ing", "\n"] and tokens.decode(ids) == "the king\n"
  assert tokens.vocab.word_start[ids].tolist() == [True, True, False, True] and tokens.vocab.byte_length[ids].tolist() == [4, 2, 3, 1]


def test_nothing_is_added_unless_asked(tmp_path):
  folder, said = byte_level(tmp_path, config={"model_type": "gpt2", "vocab_size": 300}), []
  tokens = imported.load(folder, say=said.append)
  assert tokens.vocab.size == 300 and not said and set(tokens.special) == {"bos", "eos", *(f"unused_{i}" for i in range(261, 300))}
  assert len(tokens.vocab.plain) == 260, "rows without a token are never drawn"
  more = imported.load(folder, extend=True, say=said.append)
  assert len(said) == 1 and f"gained {len(RESERVED) - 2} special tokens" in said[0] and "pad, unk, cls" in said[0]
  assert more.special["bos"] == 260 and set(RESERVED) <= set(more.special)
  assert sorted(more.special[name] for name in RESERVED if name not in ("bos", "eos")) == [*range(261, 261 + len(RESERVED) - 2)]
  assert more.vocab.size == 261 + len(RESERVED) - 2 == 369 and more.digest != tokens.digest
  assert imported.load(folder, size=500, extend=True, say=QUIET).vocab.size == 500
  more.save(str(tmp_path / "saved"))
  assert tokenizer.load(str(tmp_path / "saved")).special == more.special
  np.testing.assert_array_equal(more.encode("ab \0"), tokens.encode("ab \0"))


def test_more_ids_than_rows(tmp_path):
  folder = byte_level(tmp_path, config={"vocab_size": 260})
  with pytest.raises(UserError, match="mismatching tokenizer.*ids up to 260.*260 rows"):
    imported.load(folder)
  assert imported.load(folder, size=261).vocab.size == 261


def test_marian(tmp_path):
  sentencepiece = pytest.importorskip("sentencepiece")
  pieces = ["</s>", "<unk>", ">>fr<<"]
  for name, text in (("source", "the cat sat on the mat"), ("target", "le chat est sur le tapis")):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter([text] * 50), model_writer=written, vocab_size=30, hard_vocab_limit=False, minloglevel=2)
    (tmp_path / f"{name}.spm").write_bytes(written.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    pieces += [piece for piece in map(model.id_to_piece, range(model.get_piece_size())) if piece not in (*pieces, "<s>")]
  pieces.append("<pad>")
  write(tmp_path, vocab={piece: i for i, piece in enumerate(pieces)}, config={"model_type": "marian", "vocab_size": len(pieces)})
  tokens = imported.load(str(tmp_path))
  assert tokens.encode(">>fr<< the cat")[0] == 2 and tokens.wrap([9]).tolist() == [9, 0] and tokens.special["pad"] == len(pieces) - 1
  assert tokens.decode(tokens.target.encode("le chat est")) == "le chat est"
  assert tokens.encode("chat").tolist() != tokens.target.encode("chat").tolist(), "each language by its own model"
  tokens.save(str(tmp_path / "saved"))
  np.testing.assert_array_equal(tokenizer.load(str(tmp_path / "saved")).encode("the mat"), tokens.encode("the mat"))
  (tmp_path / "target.spm").unlink()
  with pytest.raises(UserError, match="not complete: 'target.spm' is missing"):
    imported.load(str(tmp_path))


def test_no_tokenizer_there(tmp_path):
  with pytest.raises(UserError, match="no tokenizer in .*none of tokenizer.json"):
    imported.load(str(tmp_path))
  with pytest.raises(UserError, match="no folder"):
    imported.load(str(tmp_path / "absent"))


@pytest.mark.parametrize("file, text, words", [
    ("vocab.json", "{", "cannot be read"), ("vocab.json", "[1]", "cannot be read"), ("merges.txt", "a b c\n", "'a b c' is no pair"),
    ("merges.txt", "ab zz\n", "cannot be read"), ("config.json", "{", "config.json' cannot be read"), ("tokenizer_config.json", "[]", "no JSON object"),
    ("tokenizer.json", "{", "cannot be read"), ("tokenizer.json", '{"model": {}}', "cannot be read"),
    ("config.json", '{"model_type": "openai-gpt"}', "'openaigpt', which cannot be read from vocab.json and merges.txt alone"),
])  # fmt: skip
def test_unreadable(tmp_path, file, text, words):
  folder = byte_level(tmp_path)
  (tmp_path / file).write_text(text)
  with pytest.raises(UserError, match=words):
    imported.load(folder)


@pytest.mark.parametrize("settings, words", [
    ({"tokenizer_class": "BertJapaneseTokenizer"}, "'bertjapanese', which cannot be read from vocab.txt"), ({"do_basic_tokenize": False}, "do_basic_tokenize")
])  # fmt: skip
def test_settings_that_the_files_do_not_hold(tmp_path, settings, words):
  with pytest.raises(UserError, match=words):
    imported.load(bert(tmp_path, tokenizer_config=settings))


def test_broken_sentencepiece_model(tmp_path):
  pytest.importorskip("sentencepiece")
  (tmp_path / "tokenizer.model").write_bytes(b"no model")
  with pytest.raises(UserError, match="cannot be read.*tokenizer.model"):
    imported.load(str(tmp_path))


def test_without_sentencepiece(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
  (tmp_path / "tokenizer.model").write_bytes(b"")
  with pytest.raises(UserError, match="pip install sentencepiece"):
    imported.load(str(tmp_path))
