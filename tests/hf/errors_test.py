"""Mistakes in a folder: each is one sentence that names the key, tensor and file and the way to mend it."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.core.errors import UserError
from research.hf import files, loading
from research.hf.rules import SAME, Naming, Rule, fused, import_params, leading, linear, matrix, permuted
from research.model import transformer
from research.model.attention import grouped
from research.model.ffn import dense
from research.model.inputs import HeadConfig, Inputs
from tests import drawn
from tests.hf import common


@pytest.fixture
def folder(tmp_path):
  """A whole GPT-2 folder to break."""
  shutil.copytree(common.GOLDEN / "gpt2", tmp_path / "gpt2")
  return tmp_path / "gpt2"


@pytest.fixture
def llama(tmp_path):
  shutil.copytree(common.GOLDEN / "llama", tmp_path / "llama")
  return tmp_path / "llama"


def fails(folder, *parts):
  with pytest.raises(UserError) as error:
    loading.load_model(str(folder))
  text = str(error.value)
  assert "\n" not in text and len(text) < 700, text
  for part in parts:
    assert part in text, f"'{part}' is not in: {text}"


def set_config(folder, **changes):
  path = folder / "config.json"
  config = json.loads(path.read_text())
  path.write_text(json.dumps({key: value for key, value in {**config, **changes}.items() if value is not ...}))


def set_tensors(folder, change):
  tensors = load_file(folder / files.SINGLE)
  save_file(change(tensors) or tensors, folder / files.SINGLE)


def shard(folder):
  """The same folder in several files and an index."""
  loaded = loading.load_model(str(folder))
  other = folder.parent / "sharded"
  loading.export(str(other), loaded.model, loaded.params, loaded.family.name, shard_bytes=2000)
  return other


# --- files -------------------------------------------------------------------------------------------------------------------


def test_a_whole_folder_loads(folder, llama):
  assert loading.load_model(str(folder)).report.read > 20 and loading.load_model(str(llama)).report.read > 15


def test_missing_files(folder, tmp_path):
  fails(tmp_path / "absent", "no folder", "absent")
  (folder / "model.safetensors").unlink()
  fails(folder, "neither model.safetensors nor")
  (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
  fails(folder, "pytorch_model.bin", "pickle", "never read")
  (folder / "config.json").unlink()
  fails(folder, "config.json", "missing")


def test_config_that_is_no_json(folder):
  (folder / "config.json").write_text('{"model_type": ')
  fails(folder, "config.json", "JSON")
  (folder / "config.json").write_text("[]")
  fails(folder, "config.json", "object")


@pytest.mark.parametrize("keep", [0.99, 0.5, 0.001])
def test_truncated_safetensors(folder, keep):
  path = folder / "model.safetensors"
  content = path.read_bytes()
  path.write_bytes(content[: int(keep * len(content))])
  fails(folder, "model.safetensors", "cut off or damaged")


def test_safetensors_that_is_none(folder):
  (folder / "model.safetensors").write_bytes(b"<!DOCTYPE html> sign in first" * 9)
  fails(folder, "model.safetensors", "cut off or damaged")


def test_shards(folder):
  sharded = shard(folder)
  index = json.loads((sharded / files.INDEX).read_text())
  assert len(set(index["weight_map"].values())) > 3
  a, b = loading.load_model(str(folder)), loading.load_model(str(sharded))
  np.testing.assert_array_equal(common.our_logits(a, np.arange(8)[None]), common.our_logits(b, np.arange(8)[None]))


def test_missing_shard(folder):
  sharded = shard(folder)
  index = json.loads((sharded / files.INDEX).read_text())
  name, file = list(index["weight_map"].items())[5]
  (sharded / file).unlink()
  fails(sharded, file, "missing", "fetch it")
  index["weight_map"][name] = "../elsewhere.safetensors"
  (sharded / files.INDEX).write_text(json.dumps(index))
  fails(sharded, "missing")


def test_tensor_in_the_index_but_not_in_its_shard(folder):
  sharded = shard(folder)
  index = json.loads((sharded / files.INDEX).read_text())
  index["weight_map"]["transformer.h.9.ln_1.weight"] = next(iter(index["weight_map"].values()))
  (sharded / files.INDEX).write_text(json.dumps(index))
  fails(sharded, "transformer.h.9.ln_1.weight", "does not hold it")


# --- tensors -----------------------------------------------------------------------------------------------------------------


def test_missing_tensor(folder):
  set_tensors(folder, lambda tensors: tensors.pop("transformer.h.1.mlp.c_fc.bias") is None)
  fails(folder, "transformer.h.1.mlp.c_fc.bias", "missing", "stack/block_1/feed_forward/up/bias")


def test_unused_tensor(folder):
  set_tensors(folder, lambda tensors: {**tensors, "transformer.h.0.adapter.weight": np.zeros((2, 2), np.float32)})
  fails(folder, "transformer.h.0.adapter.weight", "no place", "model.safetensors")


def test_wrong_shape(folder):
  set_tensors(folder, lambda tensors: {**tensors, "transformer.wpe.weight": np.zeros((9, 16), np.float32)})  # transposed: as many numbers
  fails(folder, "transformer.wpe.weight", "[9, 16]", "[16, 9]", "model.safetensors")


def test_a_tensor_twice(folder):
  set_tensors(folder, lambda tensors: {**tensors, "wpe.weight": tensors["transformer.wpe.weight"]})
  fails(folder, "wpe.weight", "same tensor")


def test_integer_weights(folder):
  set_tensors(folder, lambda tensors: {**tensors, "transformer.wpe.weight": np.zeros((16, 9), np.int8)})
  fails(folder, "transformer.wpe.weight", "I8", "quantisation")


def test_tied_tensors_that_differ(folder):
  head = lambda tensors, by: {**tensors, "lm_head.weight": tensors["transformer.wte.weight"] + np.float32(by)}
  set_tensors(folder, lambda tensors: head(tensors, 0))
  loading.load_model(str(folder))
  set_tensors(folder, lambda tensors: head(tensors, 1))
  fails(folder, "lm_head.weight", "transformer.wte.weight", "differ", "tie_word_embeddings")
  set_config(folder, tie_word_embeddings=False)
  assert loading.load_model(str(folder)).params["head_lm"]["kernel"].shape == (19, 9)


def test_tied_tensor_under_its_other_name_alone(folder):
  def rename(tensors):
    tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")

  before = loading.load_model(str(folder)).params["embed"]["embedding"]
  set_tensors(folder, rename)
  np.testing.assert_array_equal(loading.load_model(str(folder)).params["embed"]["embedding"], before)


# --- config.json -------------------------------------------------------------------------------------------------------------

GPT2_VALUES = [
    (dict(model_type="gpt3"), ["unknown model_type 'gpt3'", "gpt2"]),
    (dict(model_type=...), ["unknown model_type None"]),
    (dict(architectures=["GPT2ForTokenClassification"]), ["unknown architecture 'GPT2ForTokenClassification'"]),
    (dict(activation_function="mish"), ["'activation_function' is \"mish\"", "gelu_new"]),
    (dict(scale_attn_by_inverse_layer_idx=True), ["'scale_attn_by_inverse_layer_idx' is true", "false"]),
    (dict(add_cross_attention=True), ["'add_cross_attention' is true"]),
    (dict(n_layer="two"), ["'n_layer' is \"two\"", "whole number"]),
    (dict(n_layer=1.5), ["'n_layer' is 1.5"]),
    (dict(layer_norm_epsilon=None), ["'layer_norm_epsilon' is null"]),
    (dict(num_hidden_layers=7), ["'n_layer' is 2", "'num_hidden_layers'"]),
    (dict(embd_pdrop=0.3), ["'embd_pdrop' is 0.3", "resid_pdrop"]),
    (dict(sliding_window=4), ["'sliding_window' is 4", "not known to have"]),
    (dict(quantization_config={"bits": 4}), ["'quantization_config'"]),
    (dict(scale_attn_weight=False), ["'scale_attn_weight'", "Did you mean 'scale_attn_weights'"]),
    (dict(n_head=4), ["9", "4"]),
]  # fmt: skip


@pytest.mark.parametrize("changes,parts", GPT2_VALUES, ids=lambda value: str(value)[:60])
def test_gpt2_values(folder, changes, parts):
  set_config(folder, **changes)
  fails(folder, "config.json", *parts)


LLAMA_VALUES = [
    (dict(rope_parameters={"rope_type": "quantum", "rope_theta": 5.0}), ["'rope_parameters.rope_type' is \"quantum\"", "llama3"]),
    (dict(rope_parameters={"rope_type": "linear", "rope_theta": 5.0}), ["'rope_parameters.factor'"]),
    (dict(rope_parameters={"rope_type": "linear", "factor": 2.0, "colour": 3}), ["'rope_parameters.colour' is 3"]),
    (dict(rope_parameters={"rope_type": "default", "factor": 2.0}), ["'rope_parameters.factor' is 2.0"]),
    (dict(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}), ["partial_rotary_factor"]),
    (dict(rope_scaling={"type": "linear", "factor": 2.0}), ["rope_scaling", "rope_parameters"]),
    (dict(hidden_act="gelu_10"), ["'hidden_act' is \"gelu_10\""]),
    (dict(num_key_value_heads=3), ["kv_heads 3"]),
    (dict(layer_types=["full_attention", "sliding_attention"]), ["'layer_types'"]),
    (dict(auto_map={"AutoModel": "mine.Model"}), ["'auto_map'"]),
]  # fmt: skip


@pytest.mark.parametrize("changes,parts", LLAMA_VALUES, ids=lambda value: str(value)[:60])
def test_llama_values(llama, changes, parts):
  set_config(llama, **changes)
  fails(llama, "config.json", *parts)


def test_rotary_scaling_as_it_was_written_before(llama):
  """rope_theta and rope_scaling of older folders mean what rope_parameters of newer ones does."""
  new = json.loads((llama / "config.json").read_text())["rope_parameters"]
  before = loading.load_model(str(llama)).described
  old = {("type" if key == "rope_type" else key): value for key, value in new.items() if key != "rope_theta"}
  set_config(llama, rope_parameters=..., rope_theta=new["rope_theta"], rope_scaling=old)
  assert loading.load_model(str(llama)).described == before


def test_harmless_keys(folder):
  set_config(folder, torch_dtype="float16", temperature=0.7, id2label={"0": "a", "1": "b"}, n_ctx=16, summary_type="mean", task_specific_params={"a": 1})
  loading.load_model(str(folder))


# --- export ------------------------------------------------------------------------------------------------------------------


def tiny(**changes):
  cfg = transformer.Config(**{"layers": 1, "width": 8, "attention": grouped.Config(heads=2), **changes})
  model = transformer.make(cfg, 11, {"lm": HeadConfig()}, 8)
  return model, drawn.parameters(model)


def test_a_model_without_a_published_form(tmp_path):
  model, params = tiny(attention=grouped.Config(heads=2, qk_norm=True), ffn=dense.Config(activation="silu", gated=True))
  with pytest.raises(UserError, match="model.attention.qk_norm is True here and can only be False"):
    loading.export(str(tmp_path), model, params, "llama")
  with pytest.raises(UserError, match="no family has a form"):
    loading.export(str(tmp_path), model, params)
  with pytest.raises(UserError, match="no family 'lama'. Did you mean 'llama'"):
    loading.export(str(tmp_path), model, params, "lama")
  assert not list(tmp_path.iterdir())


def test_export_keeps_what_is_there(folder):
  loaded = loading.load_model(str(folder))
  with pytest.raises(UserError, match="holds a config.json already"):
    loading.export(str(folder), loaded.model, loaded.params)


def test_a_scanned_model_is_exported_as_its_layers(tmp_path):
  changes = dict(layers=3, ffn=dense.Config(activation="silu", gated=True))
  model, params = tiny(**changes, scan=True)
  loading.export(str(tmp_path), model, params, "llama")
  flat, apart = transformer.unrolled(model, params)
  back = loading.load_model(str(tmp_path))
  tokens = np.arange(8)[None]
  ours, _ = common.forward(flat, "lm", apart, Inputs(jnp.asarray(tokens)))
  np.testing.assert_array_equal(common.our_logits(back, tokens), ours)


# --- rules -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how,shapes,theirs",
    [
        (SAME, [(3, 4)], (3, 4)), (linear(), [(3, 2, 5)], (10, 3)), (linear(2), [(2, 5, 3)], (3, 10)), (matrix(), [(3, 2, 5)], (3, 10)),
        (matrix(2), [(2, 5, 3)], (10, 3)), (permuted(3, 2, 0, 1), [(2, 3, 4, 5)], (5, 4, 2, 3)), (leading(2), [(4,)], (1, 1, 4)),
        (fused(linear()), [(3, 2, 5), (3, 1, 5), (3, 1, 5)], (20, 3)), (fused(matrix(), axis=1), [(3, 2, 5), (3, 1, 5)], (3, 15)),
    ],
)  # fmt: skip
def test_transforms_are_invertible(how, shapes, theirs):
  array = np.random.default_rng(0).random(theirs)
  ours = how.split(array, shapes)
  assert [part.shape for part in ours] == shapes and how.shape(shapes) == theirs
  np.testing.assert_array_equal(how.join(ours), array)


def test_a_table_that_does_not_fit_its_model(folder):
  source = files.Folder(str(folder))
  wanted = {"a": jnp.zeros((16, 9)), "b": jnp.zeros(3)}
  good = Rule("transformer.wpe.weight", "a", SAME)
  for rules, part in (([good], "'b' has no rule"), ([good, good], "'a' has two rules"), ([good, Rule("x", "b", SAME), Rule("y", "c", SAME)], "'c' is in a rule")):
    with pytest.raises(ValueError, match=part):
      import_params(rules, source, wanted, Naming())
