"""T5 and T5 v1.1 against transformers: logits, gradients, padding, packing, cache, round trip, buckets; what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.errors import UserError
from research.hf import loading
from research.hf.family import describe
from research.model.position import bias
from tests.hf import common, seq2seq
from tests.hf.common import Case

# As published: the original, and v1.1 (of which Flan is a fine-tuning).
ORIGINAL = dict(
    architectures=["T5ForConditionalGeneration"], d_ff=2048, d_kv=64, d_model=512, decoder_start_token_id=0, dropout_rate=0.1, eos_token_id=1,
    initializer_factor=1.0, is_encoder_decoder=True, layer_norm_epsilon=1e-6, model_type="t5", n_positions=512, num_heads=8, num_layers=6,
    output_past=True, pad_token_id=0, relative_attention_num_buckets=32, task_specific_params={"summarization": {"prefix": "summarize: "}}, vocab_size=32128,
)  # fmt: skip
V1_1 = ORIGINAL | dict(d_ff=1024, feed_forward_proj="gated-gelu", num_decoder_layers=8, num_layers=8, num_heads=6, relative_attention_max_distance=128,
                       tie_word_embeddings=False, tokenizer_class="T5Tokenizer", use_cache=True)  # fmt: skip


def case(seed):
  config = common.drawn(
      seed,
      num_layers=[1, 2], num_decoder_layers=[1, 2, None], num_heads=[1, 3, 4], d_kv=[4, 6], d_model=[12, 20, 24], d_ff=[20, 28],
      relative_attention_num_buckets=[6, 8, 32], relative_attention_max_distance=[7, 20, 128], layer_norm_epsilon=[1e-6, 1e-3],
      feed_forward_proj=["relu", "gated-gelu", "gated-silu", "gelu", "gelu_new"], tie_word_embeddings=[True, False], vocab_size=[61, 83],
  )  # fmt: skip
  if config["relative_attention_num_buckets"] == 32:
    config["relative_attention_max_distance"] = 128
  config = {key: value for key, value in config.items() if value is not None} | dict(pad_token_id=config["vocab_size"] - 1, decoder_start_token_id=0)
  return Case(f"t5-{seed}", "T5ForConditionalGeneration", "T5Config", config)


TINY = dict(vocab_size=19, d_model=6, d_kv=4, num_heads=2, d_ff=8, num_layers=1, num_decoder_layers=2, pad_token_id=18, decoder_start_token_id=0,
            relative_attention_num_buckets=8, relative_attention_max_distance=12)  # fmt: skip
GOLDEN = [
    Case("t5", "T5ForConditionalGeneration", "T5Config", TINY),
    Case("t5_v1_1", "T5ForConditionalGeneration", "T5Config", TINY | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
]
SEEDS = (1, 5, 6)
UNTIED = 1


def untie(theirs):
  torch, _ = common.reference()
  theirs.lm_head.weight = torch.nn.Parameter(torch.randn(theirs.lm_head.weight.shape) * 0.2)


def edit(folder, **values):
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module", params=SEEDS, ids=lambda seed: case(seed).name)
def pair(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp("t5")
  if request.param != UNTIED:
    return seq2seq.make_pair(case(request.param), folder, request.param)
  # As v1.1 was published; transformers 5 would call the head tied, though it is not.
  theirs = common.make_theirs(case(UNTIED), UNTIED)
  untie(theirs)
  theirs.save_pretrained(folder)
  edit(folder, tie_word_embeddings=False)
  return common.Pair(case(UNTIED), theirs, loading.load_model(str(folder)), str(folder))


def test_the_draw_covers_what_matters():
  drawn = [case(seed).config for seed in SEEDS]
  assert not case(UNTIED).config["tie_word_embeddings"] and case(UNTIED).config["feed_forward_proj"].startswith("gated")
  assert {config["tie_word_embeddings"] for config in drawn} == {True, False}
  assert len({config["feed_forward_proj"] for config in drawn}) == len({config["num_heads"] for config in drawn}) == 3
  assert any(config.get("num_decoder_layers", config["num_layers"]) != config["num_layers"] for config in drawn)
  assert any(config["num_heads"] * config["d_kv"] != config["d_model"] for config in drawn)


def test_the_head_is_of_its_own_where_it_was(pair):
  cfg, own = pair.loaded.described.cfg, pair.case.name == case(UNTIED).name
  assert (cfg.tie_head, cfg.head_scale) == (not own, not own)


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


@pytest.mark.parametrize("one", GOLDEN, ids=str)
def test_golden(one, tmp_path):
  seq2seq.check_golden(one.name, tmp_path)


@pytest.mark.parametrize("buckets,distance", [(32, 128), (32, 64), (8, 20), (7, 50), (4, 3), (64, 1000)])
def test_buckets(buckets, distance):
  """Every distance is in their bucket, compiled or not: near the bounds, rounding decides."""
  torch, _ = common.reference()
  from transformers.models.t5.modeling_t5 import T5Attention

  span = np.arange(-2 * distance - 5, 2 * distance + 6)
  for both_ways in (True, False):
    theirs = T5Attention._relative_position_bucket(torch.tensor(span), both_ways, buckets, distance).numpy()
    for call in (lambda f: f, jax.jit):
      ours = call(lambda x, both_ways=both_ways: bias.bucket(x, buckets, distance, both_ways))(jnp.asarray(span))
      wrong = span[np.asarray(ours) != theirs]
      assert wrong.size == 0, (both_ways, wrong)


def test_a_head_called_tied_that_is_not_is_refused(tmp_path):
  """transformers 5 calls every head tied, and tells by the tensors; the sentence says how to mend config.json."""
  common.reference()
  with pytest.raises(UserError, match=r"'shared.weight' and 'lm_head.weight'.*tie_word_embeddings"):
    seq2seq.make_pair(case(UNTIED), tmp_path, UNTIED, untie)


@pytest.mark.parametrize("published,tied,gated", [(ORIGINAL, True, False), (V1_1, False, True)])
def test_published_configs_are_read(published, tied, gated):
  _, described = describe(published, "config.json")
  cfg = described.cfg
  assert (cfg.tie_head, cfg.head_scale, cfg.ffn.gated, cfg.ffn.activation) == (tied, tied, gated, "gelu_tanh" if gated else "relu")
  assert (cfg.layers, cfg.encoder_layers, cfg.attention.scale, described.length) == (8 if gated else 6, 8 if gated else 6, 1.0, 512)


def test_old_names_are_read(tmp_path):
  """The copies of the embeddings and the unread cross-attention biases of old folders."""
  torch, _ = common.reference()
  from safetensors.numpy import load_file, save_file

  pair = seq2seq.make_pair(case(6), tmp_path, 6)
  tensors = load_file(tmp_path / "model.safetensors")
  for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
    tensors[name] = tensors["shared.weight"].copy()
  extra = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
  tensors[extra] = np.ones((32, 3), np.float32)
  save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
  loaded = loading.load_model(str(tmp_path))
  assert list(loaded.report.ignored) == [extra]
  np.testing.assert_array_equal(loaded.params["embed"]["embedding"], pair.loaded.params["embed"]["embedding"])


@pytest.mark.parametrize("key,value", [
    ("feed_forward_proj", "gated-mish"), ("dense_act_fn", "tanh"), ("is_gated_act", True), ("is_encoder_decoder", False), ("is_decoder", True),
    ("relative_attention_num_buckets", 2), ("relative_attention_max_distance", 16), ("num_layers", 0), ("num_decoder_layers", 0), ("d_kv", "wide"),
    ("tie_word_embeddings", "no"), ("use_mystery", True),
])  # fmt: skip
def test_unsupported_values_are_refused(key, value):
  with pytest.raises(UserError, match=f"'{key}'"):
    describe(ORIGINAL | {key: value}, "config.json")
  with pytest.raises(UserError, match="T5ForMagic"):
    describe(ORIGINAL | {"architectures": ["T5ForMagic"]}, "config.json")
