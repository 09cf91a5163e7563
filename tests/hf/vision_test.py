"""ViT and CLIP against transformers: scores and embeddings, gradients, padding, packing, round trip."""

import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.errors import UserError
from research.hf import loading
from research.hf.family import describe
from research.hf.vision import VIT_RENAMES, text_ends
from research.model.inputs import Inputs, positions_within
from tests.compiling import FULL
from tests.hf import common
from tests.hf.common import Case, close

ACTIVATIONS = ["gelu", "quick_gelu", "relu", "gelu_new"]
SIZES = [(6, 2), (8, 4), (9, 3)]  # image_size, patch_size
STACK = dict(num_hidden_layers=[1, 2], intermediate_size=[20, 28], hidden_act=ACTIVATIONS, layer_norm_eps=[1e-12, 1e-3])


def vit_cases(count=4):
  drawn = common.spread(
      count, 1,
      **STACK, heads=[1, 3, 5], size=[*SIZES, ([4, 6], 2)], num_channels=[1, 2, 3], qkv_bias=[True, True, False], num_labels=[3, 7],
      pooler_act=["tanh", "relu"], model=["ViTForImageClassification", "ViTModel"],
  )  # fmt: skip
  for i, config in enumerate(drawn):
    model, heads, (image, patch) = config.pop("model"), config.pop("heads"), config.pop("size")
    config.pop("pooler_act" if model == "ViTForImageClassification" else "num_labels")
    config |= dict(num_attention_heads=heads, hidden_size=heads * 8, image_size=image, patch_size=patch)
    yield Case(f"vit-{i}", model, "ViTConfig", config)


def clip_cases(count=3):
  texts = common.spread(count, 2, **STACK, num_attention_heads=[1, 3], eos_token_id=[2, 40], max_position_embeddings=[12, 17])
  images = common.spread(count, 3, **STACK, num_attention_heads=[2, 5], size=SIZES, num_channels=[1, 3])
  whole = common.spread(count, 4, projection_dim=[6, 9], logit_scale_init_value=[2.6592, 1.0])
  for i, (text, image, config) in enumerate(zip(texts, images, whole)):
    size, patch = image.pop("size")
    text |= dict(vocab_size=41, hidden_size=text["num_attention_heads"] * 8, pad_token_id=0, bos_token_id=1)
    image |= dict(hidden_size=image["num_attention_heads"] * 4, image_size=size, patch_size=patch)
    yield Case(f"clip-{i}", "CLIPModel", "CLIPConfig", config | dict(text_config=text, vision_config=image))


@pytest.fixture(scope="module", params=vit_cases(), ids=str)
def vit(request, tmp_path_factory):
  return common.make_pair(request.param, tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module", params=clip_cases(), ids=str)
def clip(request, tmp_path_factory):
  return common.make_pair(request.param, tmp_path_factory.mktemp("clip"))


def drawn_images(loaded, count=3, seed=0) -> np.ndarray:
  """[B, height, width, channels]."""
  cfg = loaded.described.cfg
  images = (cfg.towers["image"] if hasattr(cfg, "towers") else cfg).patches
  return np.random.default_rng(seed).normal(size=(count, images.height, images.width, images.channels)).astype(np.float32)


def pixels(images: np.ndarray):
  """[B, channels, height, width], for transformers."""
  torch, _ = common.reference()
  return torch.tensor(images.transpose(0, 3, 1, 2).copy())


def seen(images: np.ndarray) -> Inputs:
  return Inputs(images=jnp.asarray(images), kind="full")


def drawn_texts(count=3, length=11, end=40, seed=0) -> tuple[np.ndarray, np.ndarray]:
  """Texts of unequal length that end with the highest id, padded on the right: tokens and mask [B, L]."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(3, end, (count, length)).astype(np.int32)
  ends = rng.permutation(np.arange(3, length))[:count]
  mask = (np.arange(length) <= ends[:, None]).astype(np.int32)
  tokens[np.arange(count), ends] = end
  return np.where(mask, tokens, 0), mask


# --- ViT -----------------------------------------------------------------------------------------------------------------------


def of_vit(pair, model, images):
  """What transformers' class gives: classes, or hidden states and their pooled first."""
  out = model(pixel_values=pixels(images))
  return out.logits if "class" in pair.loaded.described.heads else out.pooler_output


def test_vit_scores_and_gradients(vit):
  images, (head,) = drawn_images(vit.loaded), vit.loaded.described.heads

  def loss(params):
    out = vit.apply(params, seen(images), read={head: None})
    return jnp.sum(jnp.square(out.heads[head])), (out.heads[head][:, 0], vit.apply(params, seen(images), read={}).hidden)

  grads, (scores, hidden) = common.quick(jax.grad(loss, has_aux=True))(vit.loaded.params)
  theirs = of_vit(vit, vit.theirs, images)
  close(scores, theirs.detach().numpy())
  close(hidden, getattr(vit.theirs, "vit", vit.theirs)(pixel_values=pixels(images)).last_hidden_state.detach().numpy())
  found = common.their_gradients(vit, theirs.square().sum())
  for new, old in VIT_RENAMES.items():  # the classes have the names of transformers 5, the folders and so our rules those of 4
    found = {re.sub(new, old, name): gradient for name, gradient in found.items()}
  common.compare_gradients(vit, grads, found)


def test_vit_round_trip(vit, tmp_path):
  images = drawn_images(vit.loaded)
  common.check_round_trip(vit, tmp_path, inputs=lambda model: of_vit(vit, model, images))


def test_vit_names_of_transformers_5(vit, tmp_path):
  """A folder with the names that transformers uses itself, rather than those that it writes."""
  vit.theirs.save_pretrained(tmp_path, save_original_format=False)
  again = loading.load_model(str(tmp_path))
  jax.tree.map(np.testing.assert_array_equal, again.params, vit.loaded.params)


# --- CLIP ----------------------------------------------------------------------------------------------------------------------


def of_clip(pair, model, texts, mask, images, **more):
  torch, _ = common.reference()
  return model(input_ids=torch.tensor(texts, dtype=torch.long), attention_mask=torch.tensor(mask), pixel_values=pixels(images), **more)


def embedded(apply, params, texts, mask, images):
  """Embeddings of texts and images, and their scores."""
  tokens = jnp.asarray(texts)
  text = apply(params, Inputs(tokens, segments=jnp.asarray(mask)), read={"text": text_ends(tokens), "scale": None}, tower="text").heads
  image = apply(params, seen(images), read={"image": None}, tower="image").heads["image"][:, 0]
  return text["text"][:, 0], image, text["scale"] * text["text"][:, 0] @ image.T


def test_clip_embeddings_with_padding_and_gradients(clip):
  """Of the loss that CLIP is trained with."""
  (texts, mask), images = drawn_texts(), drawn_images(clip.loaded)

  def loss(params):
    text, image, scores = embedded(clip.apply, params, texts, mask, images)
    both = jnp.diag(jax.nn.log_softmax(scores)) + jnp.diag(jax.nn.log_softmax(scores.T))
    return -jnp.mean(both) / 2, (text, image, scores)

  # As runs are compiled: in a hurry, zero gradients are noisier.
  (ours, (text, image, scores)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=FULL)(clip.loaded.params)
  theirs = of_clip(clip, clip.theirs, texts, mask, images, return_loss=True)
  close(text, theirs.text_embeds.detach().numpy())
  close(image, theirs.image_embeds.detach().numpy())
  close(scores, theirs.logits_per_text.detach().numpy())
  assert abs(float(ours) - theirs.loss.item()) < 1e-5
  common.compare_gradients(clip, grads, common.their_gradients(clip, theirs.loss))


def test_clip_texts_packed(clip):
  """Two texts in one row, against their separate rows."""
  torch, _ = common.reference()
  texts = np.array([[5, 9, 13, 40, 7, 21, 8, 33, 40, 0, 0]], np.int32)
  segments = jnp.array([[1] * 4 + [2] * 5 + [0] * 2])
  inputs = Inputs(jnp.asarray(texts), segments=segments, positions=positions_within(segments))
  ends = text_ends(jnp.asarray(texts), segments, 2)
  np.testing.assert_array_equal(ends, [[3, 8]])
  packed = common.quick(lambda params: clip.apply(params, inputs, read={"text": ends}, tower="text").heads["text"])(clip.loaded.params)
  for i, part in enumerate((slice(0, 4), slice(4, 9))):
    with torch.no_grad():
      alone = clip.theirs.get_text_features(input_ids=torch.tensor(texts[:, part], dtype=torch.long)).pooler_output.numpy()
    close(packed[:, i], alone / np.linalg.norm(alone, axis=-1, keepdims=True))


def test_clip_round_trip(clip, tmp_path):
  (texts, mask), images = drawn_texts(), drawn_images(clip.loaded)
  outer = {key: clip.case.config[key] for key in ("projection_dim",)}
  common.check_round_trip(clip._replace(case=clip.case._replace(config=outer)), tmp_path,
                          inputs=lambda model: of_clip(clip, model, texts, mask, images).logits_per_text)  # fmt: skip
  written = json.loads((tmp_path / "config.json").read_text())
  assert written["logit_scale_init_value"] == pytest.approx(clip.case.config["logit_scale_init_value"], abs=1e-12)
  for tower in ("text_config", "vision_config"):
    expected = clip.case.config[tower]
    ids = {"eos_token_id", "pad_token_id", "bos_token_id"}
    assert {key: written[tower][key] for key in expected.keys() - ids} == {key: expected[key] for key in expected.keys() - ids}


def test_clip_config_of_old_files(clip, tmp_path):
  """Old files keep the towers' keys once more under NAME_config_dict, which is what counts."""
  clip.theirs.save_pretrained(tmp_path)
  file = tmp_path / "config.json"
  config = json.loads(file.read_text())
  for tower in ("text", "vision"):
    config[f"{tower}_config_dict"] = config[f"{tower}_config"]
    config[f"{tower}_config"] = config[f"{tower}_config"] | {"hidden_act": "relu", "num_hidden_layers": 9}
  file.write_text(json.dumps(config))
  assert loading.load_model(str(tmp_path)).described == clip.loaded.described


def test_where_texts_end():
  tokens = jnp.array([[4, 9, 2, 9], [9, 1, 1, 1]])
  np.testing.assert_array_equal(text_ends(tokens), [[1], [0]])
  np.testing.assert_array_equal(text_ends(tokens, jnp.array([[1, 1, 2, 2], [1, 2, 2, 0]]), 3), [[1, 3, 0], [0, 1, 0]])


# --- config --------------------------------------------------------------------------------------------------------------------

VIT = dict(
    architectures=["ViTForImageClassification"], attention_probs_dropout_prob=0.0, hidden_act="gelu", hidden_dropout_prob=0.0, hidden_size=768,
    id2label={str(i): f"name {i}" for i in range(10)}, image_size=224, initializer_range=0.02, intermediate_size=3072, layer_norm_eps=1e-12,
    model_type="vit", num_attention_heads=12, num_channels=3, num_hidden_layers=12, patch_size=16, qkv_bias=True, encoder_stride=16,
)  # fmt: skip
GENERATION = dict(
    add_cross_attention=False, bad_words_ids=None, chunk_size_feed_forward=0, cross_attention_hidden_size=None, do_sample=False, early_stopping=False,
    is_decoder=False, is_encoder_decoder=False, length_penalty=1.0, max_length=20, min_length=0, num_beams=1, pruned_heads={}, return_dict=True,
    temperature=1.0, tie_encoder_decoder=False, tie_word_embeddings=True, top_k=50, top_p=1.0, torch_dtype=None, use_bfloat16=False,
)  # fmt: skip
CLIP = dict(
    architectures=["CLIPModel"], initializer_factor=1.0, logit_scale_init_value=2.6592, model_type="clip", projection_dim=512,
    text_config=GENERATION | dict(
        attention_dropout=0.0, bos_token_id=0, dropout=0.0, eos_token_id=2, hidden_act="quick_gelu", hidden_size=512, initializer_factor=1.0,
        initializer_range=0.02, intermediate_size=2048, layer_norm_eps=1e-05, max_position_embeddings=77, model_type="clip_text_model",
        num_attention_heads=8, num_hidden_layers=12, pad_token_id=1, projection_dim=512, vocab_size=49408,
    ),
    text_config_dict=None,
    vision_config=GENERATION | dict(
        attention_dropout=0.0, dropout=0.0, hidden_act="quick_gelu", hidden_size=768, image_size=224, initializer_factor=1.0, initializer_range=0.02,
        intermediate_size=3072, layer_norm_eps=1e-05, model_type="clip_vision_model", num_attention_heads=12, num_channels=3, num_hidden_layers=12,
        patch_size=32, projection_dim=512,
    ),
    vision_config_dict=None,
)  # fmt: skip


def test_published_configs():
  _, vit = describe(VIT, "config.json")
  assert vit.cfg.patches.patch == 16 and vit.length == 197 and vit.heads["class"].outputs == 10
  _, clip = describe(CLIP, "config.json")
  assert clip.vocab_size == 49408 and clip.length == 77 and clip.cfg.towers["image"].position.length == 50
  assert clip.heads["scale"].initial == pytest.approx(1 / 0.07, rel=1e-4) and clip.cfg.towers["text"].ffn.activation == "gelu_quick"
  # A file may say no more than the classes' defaults do.
  short = dict(model_type="clip", text_config={}, vision_config={})
  assert describe(short, "config.json")[1] == clip


@pytest.mark.parametrize("values, where, key, value", [
    (VIT, None, "hidden_act", "mish"), (VIT, None, "patch_size", [16, 14]), (VIT, None, "image_size", 225), (VIT, None, "pooler_output_size", 32),
    (VIT, None, "image_size", "large"), (VIT, None, "a_new_key", 1), (CLIP, "text_config", "eos_token_id", 7),
    (CLIP, "text_config", "hidden_act", "mish"), (CLIP, "vision_config", "image_size", [224, 192]), (CLIP, "vision_config", "a_new_key", 1),
    (CLIP, "text_config", "is_decoder", True), (CLIP, None, "a_new_key", 1),
])  # fmt: skip
def test_what_is_not_supported_is_named(values, where, key, value):
  changed = values | ({where: values[where] | {key: value}} if where else {key: value})
  named = f"{where}.{key}" if where else key
  with pytest.raises(UserError, match=rf"unsupported value in config.json: '{named}' is ") as error:
    describe(changed, "config.json")
  assert json.dumps(value) in str(error.value)


# --- golden --------------------------------------------------------------------------------------------------------------------

GOLDEN_VIT = Case("vit", "ViTForImageClassification", "ViTConfig", dict(
    hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, image_size=6, patch_size=2, num_channels=2, num_labels=3,
))  # fmt: skip
GOLDEN_CLIP = Case("clip", "CLIPModel", "CLIPConfig", dict(
    projection_dim=6,
    text_config=dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, vocab_size=41, max_position_embeddings=12,
                     eos_token_id=40, pad_token_id=0, bos_token_id=1),
    vision_config=dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=16, image_size=6, patch_size=3, num_channels=1),
))  # fmt: skip


def golden_vit(model, case):
  """Images and the scores of their classes, for the golden folder."""
  torch, _ = common.reference()
  images = np.random.default_rng(0).normal(size=(2, 6, 6, case.config["num_channels"])).astype(np.float32)
  with torch.no_grad():
    return {"images": images, "classes": model(pixel_values=pixels(images)).logits.numpy()}


def golden_clip(model, case):
  """Texts, images and their embeddings, for the golden folder."""
  torch, _ = common.reference()
  (texts, mask), images = drawn_texts(), np.random.default_rng(0).normal(size=(3, 6, 6, 1)).astype(np.float32)
  with torch.no_grad():
    out = of_clip(None, model, texts, mask, images)
  found = {"text": out.text_embeds.numpy(), "image": out.image_embeds.numpy(), "scores": out.logits_per_text.numpy()}
  return {"texts": texts, "mask": mask, "images": images, **found}


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_golden(name, tmp_path):
  folder, arrays = common.golden(name)
  loaded = loading.load_model(folder)
  apply = common.Pair(None, None, loaded, folder).apply
  if name == "vit":
    scores = common.quick(lambda params: apply(params, seen(arrays["images"]), read={"class": None}).heads["class"])(loaded.params)
    close(scores[:, 0], arrays["classes"])
  else:
    ours = common.quick(lambda params: embedded(apply, params, arrays["texts"], arrays["mask"], arrays["images"]))(loaded.params)
    for mine, theirs in zip(ours, ("text", "image", "scores")):
      close(mine, arrays[theirs])
  again = pathlib.Path(tmp_path / "again")
  loading.export(str(again), loaded.model, loaded.params)
  assert json.loads((again / "config.json").read_text())["model_type"] == name
  jax.tree.map(np.testing.assert_array_equal, loading.load_model(str(again)).params, loaded.params)


def test_a_temperature_of_ones_own_is_exported(tmp_path):
  """Its first value is no part of what the model computes, so that it need not survive a logarithm to the last bit."""
  folder, _ = common.golden("clip")
  loaded = loading.load_model(folder)
  heads = {**loaded.model.heads, "scale": loaded.model.heads["scale"]._replace(initial=1 / 0.07)}
  loading.export(str(tmp_path / "again"), loaded.model.clone(heads=heads), loaded.params)
  assert json.loads((tmp_path / "again" / "config.json").read_text())["logit_scale_init_value"] == pytest.approx(math.log(1 / 0.07))
