"""Llama, Code Llama and Mistral against transformers: logits, gradients, padding, packing, cache, round trip, rotary scalings."""

import functools

import pytest

from tests.hf import common
from tests.hf.common import Case

ROPES = {
    "none": {},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 24},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0, "beta_slow": 0.5},
    "yarn_mscale": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 0.7, "mscale_all_dim": 0.3},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "longrope": {"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 8, "short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 4.0, 7.0]},
}  # fmt: skip
HEADS = [(1, 1), (3, 1), (5, 5), (6, 2), (4, 2)]


def sizes(seed):
  heads, kv = HEADS[seed % len(HEADS)]
  found = common.drawn(
      seed, num_hidden_layers=[1, 2], intermediate_size=[20, 36], hidden_act=["silu", "gelu", "gelu_new", "relu"], tie_word_embeddings=[False, True],
      rms_norm_eps=[1e-6, 1e-3], vocab_size=[61, 83], head_dim=[6, None],
  )  # fmt: skip
  width = heads * 6 if found["head_dim"] is None else heads * 4  # a head's width that is not width / heads, too
  found = {key: value for key, value in found.items() if value is not None}
  return found | dict(hidden_size=width, num_attention_heads=heads, num_key_value_heads=kv, bos_token_id=0, eos_token_id=0)


def llama(seed, rope="none"):
  extra = common.drawn(seed + 50, attention_bias=[False, True], mlp_bias=[False, True], theta=[10000.0, 500.0])
  length = 6 if rope == "dynamic" else 64
  parameters = {"rope_theta": extra.pop("theta"), "rope_type": "default"} | ROPES[rope]
  config = sizes(seed) | extra | dict(max_position_embeddings=length, rope_parameters=parameters, head_dim=6)
  config["hidden_size"] = config["num_attention_heads"] * 6 if seed % 2 else config["num_attention_heads"] * 4
  return Case(f"llama-{seed}-{rope}", "LlamaForCausalLM", "LlamaConfig", config)


def mistral(seed):
  window = common.drawn(seed + 70, window=[3, 5, None])["window"]
  return Case(f"mistral-{seed}", "MistralForCausalLM", "MistralConfig", sizes(seed) | dict(sliding_window=window, max_position_embeddings=64))


CASES = [llama(0), llama(1), llama(2, "linear"), llama(3, "llama3"), llama(4, "yarn"), llama(5, "yarn_mscale"), mistral(0), mistral(1), mistral(4)]
BY_LENGTH = [llama(6, "dynamic"), llama(7, "longrope")]  # speeds hang on the length of the row, so packing and caches follow other rules


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """Both models of a case, made once."""
  return functools.cache(lambda case: common.make_pair(BY_NAME[case], tmp_path_factory.mktemp("llama")))


BY_NAME = {case.name: case for case in CASES + BY_LENGTH}
names = lambda cases: pytest.mark.parametrize("name", [case.name for case in cases])


@names(CASES + BY_LENGTH)
def test_round_trip(pairs, name, tmp_path):
  common.check_round_trip(pairs(name), tmp_path)


@names(CASES)
def test_padding_and_packing(pairs, name):
  common.check_rows(pairs(name))


@names(CASES)
def test_cache(pairs, name):
  common.check_cache(pairs(name))


@names(CASES)
def test_logits_and_gradients(pairs, name):
  common.check_gradients(pairs(name))


@names(BY_LENGTH)
@pytest.mark.parametrize("length", [4, 11])  # within pretraining's length, and beyond
def test_speeds_by_length(pairs, name, length):
  common.check_logits(pairs(name), length)
