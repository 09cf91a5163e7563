"""BART and Marian against transformers: logits, gradients, padding, packing, cache, round trip; what is refused."""

import dataclasses

import numpy as np
import pytest

from research.core.errors import UserError
from research.hf import loading
from research.hf.family import describe
from tests.hf import common, seq2seq
from tests.hf.common import Case

# As published.
COMMON = dict(
    activation_dropout=0.0, add_bias_logits=False, add_final_layer_norm=False, classif_dropout=0.0, classifier_dropout=0.0, decoder_layerdrop=0.0,
    dropout=0.1, encoder_layerdrop=0.0, gradient_checkpointing=False, init_std=0.02, is_encoder_decoder=True, normalize_before=False, use_cache=True,
    _num_labels=3, id2label={"0": "LABEL_0"}, num_beams=4,
)  # fmt: skip
BART = COMMON | dict(
    model_type="bart", architectures=["BartForConditionalGeneration"], activation_function="gelu", attention_dropout=0.1, d_model=1024,
    decoder_attention_heads=16, decoder_ffn_dim=4096, decoder_layers=12, encoder_attention_heads=16, encoder_ffn_dim=4096, encoder_layers=12,
    extra_pos_embeddings=2, force_bos_token_to_be_generated=True, max_position_embeddings=1024, normalize_embedding=True, num_hidden_layers=12,
    pad_token_id=1, prefix=" ", scale_embedding=False, static_position_embeddings=False, vocab_size=50264,
)  # fmt: skip
MARIAN = COMMON | dict(
    model_type="marian", architectures=["MarianMTModel"], activation_function="swish", attention_dropout=0.0, bad_words_ids=[[58100]], d_model=512,
    decoder_attention_heads=8, decoder_ffn_dim=2048, decoder_layers=6, decoder_start_token_id=58100, decoder_vocab_size=58101, encoder_attention_heads=8,
    encoder_ffn_dim=2048, encoder_layers=6, eos_token_id=0, max_length=512, max_position_embeddings=512, normalize_embedding=False, num_hidden_layers=6,
    pad_token_id=58100, scale_embedding=True, share_encoder_decoder_embeddings=True, static_position_embeddings=True, vocab_size=58101,
)  # fmt: skip


def case(kind, seed):
  found = common.drawn(
      seed,
      encoder_layers=[1, 2], decoder_layers=[1, 2], heads=[1, 3, 4], ffn=[20, 28], activation_function=["gelu", "relu", "silu", "gelu_new"],
      scale_embedding=[True, False], vocab_size=[61, 83], max_position_embeddings=[12, 40],
  )  # fmt: skip
  heads, ffn = found.pop("heads"), found.pop("ffn")
  found |= dict(d_model=heads * 6, encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=ffn, decoder_ffn_dim=ffn)
  found |= dict(pad_token_id=found["vocab_size"] - 1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None)
  model = {"bart": "BartForConditionalGeneration", "marian": "MarianMTModel"}[kind]
  return Case(f"{kind}-{seed}", model, f"{kind.capitalize()}Config", found)


def finish(theirs):
  """Positions as their class makes them where they are no parameters, and a bias of the vocabulary that is not zero."""
  torch, _ = common.reference()
  for stack in (theirs.model.encoder, theirs.model.decoder):
    if hasattr(stack.embed_positions, "create_weight"):
      stack.embed_positions.weight.copy_(stack.embed_positions.create_weight())
  theirs.final_logits_bias.copy_(torch.randn(theirs.final_logits_bias.shape))


def golden_arrays(theirs, case):
  torch, _ = common.reference()
  with torch.no_grad():
    finish(theirs)
  return seq2seq.golden_arrays(theirs, case)


TINY = dict(vocab_size=19, max_position_embeddings=8, d_model=8, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=8, decoder_ffn_dim=8, pad_token_id=18, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2,
            forced_eos_token_id=2)  # fmt: skip
GOLDEN = [
    Case("bart", "BartForConditionalGeneration", "BartConfig", TINY),
    Case("marian", "MarianMTModel", "MarianConfig", TINY | dict(scale_embedding=True, activation_function="silu")),
]
CASES = [case("bart", 1), case("bart", 2), case("marian", 6), case("marian", 7)]


@pytest.fixture(scope="module", params=CASES, ids=str)
def pair(request, tmp_path_factory):
  return seq2seq.make_pair(request.param, tmp_path_factory.mktemp("bart"), 7, finish)


def test_the_draw_covers_what_matters():
  for kind in ("bart", "marian"):
    drawn = [case.config for case in CASES if case.name.startswith(kind)]
    assert {config["scale_embedding"] for config in drawn} == {True, False}
    assert any(config["encoder_layers"] != config["decoder_layers"] for config in drawn)
    assert len({config["activation_function"] for config in drawn}) > 1


def test_logits(pair):
  seq2seq.check_logits(pair)


def test_padding(pair):
  seq2seq.check_padding(pair)


def test_packed(pair):
  seq2seq.check_packed(pair)


def test_cache(pair):
  seq2seq.check_cache(pair)


def test_cross_attention(pair):
  seq2seq.check_cross(pair)


def test_gradients(pair):
  seq2seq.check_gradients(pair)


def test_round_trip(pair, tmp_path):
  seq2seq.check_round_trip(pair, tmp_path)


@pytest.mark.parametrize("one", [CASES[0], CASES[2]], ids=str)
def test_without_head(one, tmp_path):
  """A folder of the model alone has bare names and no bias; its head reads the embeddings. Exported, it is that model again."""
  torch, transformers = common.reference()
  whole = common.make_theirs(one)
  with torch.no_grad():
    finish(whole)
    whole.final_logits_bias.zero_()
  whole.model.save_pretrained(tmp_path / "theirs")
  pair = common.Pair(one, whole, loading.load_model(str(tmp_path / "theirs")), str(tmp_path / "theirs"))
  assert not pair.loaded.described.heads["lm"].bias
  seq2seq.check_logits(pair)
  loading.export(str(tmp_path / "ours"), pair.loaded.model, pair.loaded.params)
  again, info = type(whole).from_pretrained(tmp_path / "ours", output_loading_info=True)
  assert not info["unexpected_keys"] and not info["missing_keys"], info
  source, target = seq2seq.rows(pair)
  np.testing.assert_array_equal(
      seq2seq.theirs(pair._replace(theirs=again.eval()), source, target).detach(), seq2seq.theirs(pair, source, target).detach()
  )


@pytest.mark.parametrize("one", GOLDEN, ids=str)
def test_golden(one, tmp_path):
  seq2seq.check_golden(one.name, tmp_path)


def test_a_position_past_the_table_shows(pair):
  """BART has a table of positions; what lies past it must not be read as its last row. Sinusoids have no end."""
  (source, target), (source_mask, target_mask) = seq2seq.rows(pair), seq2seq.masks()
  rows = seq2seq.inputs(source, target, source_mask, target_mask)
  for past in (0, 1):
    place = rows.source.positions + pair.theirs.config.max_position_embeddings - seq2seq.SOURCE + past
    found = np.asarray(seq2seq.ours(pair, rows.replace(source=rows.source.replace(positions=place))))
    assert np.isnan(found[1]).any() == (past == 1 and pair.case.name.startswith("bart"))


def test_stored_sinusoids_are_expected(tmp_path):
  common.reference()
  from safetensors.numpy import load_file, save_file

  pair = seq2seq.make_pair(CASES[2], tmp_path, 0, finish)
  tensors = load_file(tmp_path / "model.safetensors")
  extra = ["model.decoder.embed_positions.weight", "model.encoder.embed_positions.weight"]
  assert not set(extra) & set(tensors)
  table = pair.theirs.model.encoder.embed_positions.weight.numpy()
  save_file(tensors | {name: table.copy() for name in extra}, tmp_path / "model.safetensors", metadata={"format": "pt"})
  assert sorted(loading.load_model(str(tmp_path)).report.ignored) == extra


def test_published_configs_are_read():
  _, bart = describe(BART, "config.json")
  assert (bart.cfg.position.length, bart.cfg.position.offset, bart.cfg.embed_norm, bart.cfg.embed_scale, bart.length) == (1024, 2, True, False, 1024)
  _, marian = describe(MARIAN, "config.json")
  assert (marian.cfg.ffn.activation, marian.cfg.embed_norm, marian.cfg.embed_scale, marian.cfg.norm_place) == ("silu", False, True, "post")


@pytest.mark.parametrize("published,key,value", [
    (BART, "activation_function", "mish"), (BART, "tie_word_embeddings", False), (BART, "decoder_attention_heads", 8), (BART, "decoder_ffn_dim", 64),
    (BART, "normalize_before", True), (BART, "normalize_embedding", False), (BART, "add_final_layer_norm", True), (BART, "add_bias_logits", True),
    (BART, "static_position_embeddings", True), (BART, "extra_pos_embeddings", 0), (BART, "encoder_layerdrop", 0.1), (BART, "is_encoder_decoder", False),
    (BART, "num_hidden_layers", 6), (BART, "scale_embedding", "yes"), (BART, "use_mystery", 1),
    (MARIAN, "share_encoder_decoder_embeddings", False), (MARIAN, "decoder_vocab_size", 100), (MARIAN, "normalize_embedding", True),
    (MARIAN, "static_position_embeddings", False), (MARIAN, "d_model", 511),
])  # fmt: skip
def test_unsupported_values_are_refused(published, key, value):
  with pytest.raises(UserError, match=f"'{key}'"):
    describe(published | {key: value}, "config.json")


def test_an_epsilon_that_has_no_key_is_not_exported(pair, tmp_path):
  model = pair.loaded.model.clone(cfg=dataclasses.replace(pair.loaded.model.cfg, epsilon=1e-6))
  with pytest.raises(UserError, match="epsilon"):
    loading.export(str(tmp_path), model, pair.loaded.params, family=pair.loaded.family.name)
