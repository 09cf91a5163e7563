"""Encoders of image patches: ViT (Dosovitskiy et al. 2021), and CLIP's two towers, of text and of images (Radford et al. 2021).

Images are [B, height, width, channels] here and [B, channels, height, width] there. Both have learned positions and norms before the
sublayers; CLIP's image tower has one more norm after the embeddings.

ViT's folders hold the names of transformers 4, which version 5 reads and writes too; the names that it uses itself are read as well.

CLIP's text tower reads causally, and its embedding is that of the place where the text ends, which has the highest id of the row in every
published vocabulary: `text_ends` finds it. Both embeddings have length 1; their products times the head `scale` are CLIP's logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from research.core.types import Array
from research.hf.config import EXPORTED, HARMLESS, HfConfig
from research.hf.family import Described, Family
from research.hf.rules import FLAT, SAME, Naming, Rule, each, leading, linear, permuted
from research.model import patches, towers, transformer
from research.model.attention import grouped
from research.model.ffn import dense
from research.model.inputs import HeadConfig
from research.model.position import learned

CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of OpenAI's image processor
PIXELS = permuted(3, 2, 0, 1)  # our kernel [p, p, C, D] is their convolution's [D, C, p, p]

# --- what both have in common --------------------------------------------------------------------------------------------------


def image_patches(hf: HfConfig, patch: int, bias: bool) -> patches.Config:
  """The patches that image_size, patch_size and num_channels tell; `patch` is the default of patch_size."""
  size, side = hf("image_size", None), hf("patch_size", None)
  height, width = size if isinstance(size, list) and len(size) == 2 else [224 if size is None else size] * 2
  side = side[0] if isinstance(side, list) and len(side) == 2 and side[0] == side[1] else patch if side is None else side
  for key, value in (("image_size", height), ("image_size", width), ("patch_size", side)):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      more = " or a pair, height and width" if key == "image_size" else "; patches are square"
      raise hf.unsupported(key, hf(key), "it must be a number of pixels" + more)
  if height % side or width % side:
    raise hf.unsupported("image_size", size, f"it must be a multiple of patch_size, {side}")
  return patches.Config(height=height, width=width, patch=side, channels=hf("num_channels", 3), bias=bias)


def places(images: patches.Config) -> int:
  """Places of a row: the patches and the class token."""
  return (images.height // images.patch) * (images.width // images.patch) + 1


def pixels(images: patches.Config, mean: Sequence[float] = (0.5,) * 3, deviation: Sequence[float] = (0.5,) * 3) -> dict[str, Any]:
  """The keys of an objective that reads such images; `mean` and `deviation` are those of the family's image processor, for 3 channels."""
  if images.channels != 3:
    mean = deviation = (0.5,) * images.channels
  return {"height": images.height, "width": images.width, "channels": images.channels, "mean": tuple(mean), "deviation": tuple(deviation)}


def image_values(images: patches.Config) -> dict[str, Any]:
  """The inverse of `image_patches`."""
  size = images.height if images.height == images.width else [images.height, images.width]
  return {"image_size": size, "patch_size": images.patch, "num_channels": images.channels}


def blocks(cfg: transformer.Config, block: str, *, attention_norm: str, query: str, key: str, value: str, out: str, ffn_norm: str, up: str,
           down: str) -> list[Rule]:  # fmt: skip
  """The rules of the blocks of a stack, whose parts are torch modules of these names."""
  found = [*norm(attention_norm, block + "attention_norm"), *norm(ffn_norm, block + "ffn_norm")]
  for theirs, ours in ((query, "query"), (key, "key"), (value, "value")):
    found.append(Rule(f"{theirs}.weight", f"{block}self_attention/{ours}/kernel", linear()))
    if cfg.attention.bias:
      found.append(Rule(f"{theirs}.bias", f"{block}self_attention/{ours}/bias", FLAT))
  for theirs, ours, inputs in ((out, "self_attention/out", 2), (up, "feed_forward/up", 1), (down, "feed_forward/down", 1)):
    found += [Rule(f"{theirs}.weight", f"{block}{ours}/kernel", linear(inputs)), Rule(f"{theirs}.bias", f"{block}{ours}/bias", SAME)]
  return each(cfg.layers, *found)


def norm(theirs: str, ours: str) -> list[Rule]:
  """The rules of a layer norm."""
  return [Rule(f"{theirs}.weight", f"{ours}/scale", SAME), Rule(f"{theirs}.bias", f"{ours}/bias", SAME)]


# --- ViT -----------------------------------------------------------------------------------------------------------------------


def vit_config(hf: HfConfig) -> Described:
  hf.skip("encoder_stride")  # of the head that reconstructs images
  width, images, bias = hf("hidden_size", 768), image_patches(hf, patch=16, bias=True), hf("qkv_bias", True)
  attention = grouped.Config(
      heads=hf("num_attention_heads", 12), bias=bias, out_bias=None if bias else True,
      dropout=float(hf("attention_probs_dropout_prob", 0.0)),
  )  # fmt: skip
  cfg = transformer.Config(
      layers=hf("num_hidden_layers", 12), width=width, attention=attention,
      ffn=dense.Config(hidden=hf("intermediate_size", 3072), activation=hf.activation("hidden_act", "gelu"), bias=True),
      position=learned.Config(length=places(images)), norm="layer", norm_bias=True, epsilon=hf("layer_norm_eps", 1e-12), patches=images,
      dropout=float(hf("hidden_dropout_prob", 0.0)), deviation=hf("initializer_range", 0.02), residual_init="same",
  )  # fmt: skip
  pooled = hf("pooler_output_size", None)
  if pooled not in (None, width):
    raise hf.unsupported("pooler_output_size", pooled, f"it must be hidden_size, {width}")
  pooler = HeadConfig(kind="vector", pool="first", transform=True, activation=hf.activation("pooler_act", "tanh"))
  if hf.architecture == "ViTForImageClassification":
    labels = hf("id2label", None)
    outputs = hf("num_labels", 2) if labels is None else len(labels)
    head = HeadConfig(kind="vector", pool="first", outputs=outputs, bias=True)
    return Described(cfg, {"class": head}, 1, places(images), "objectives.image_classification", {"classes": outputs, **pixels(images)})
  return Described(cfg, {"pooled": pooler}, 1, places(images), "objectives.reading", {"pixels": pixels(images)})


def vit_export(model: Described) -> dict[str, Any]:
  cfg = model.cfg
  values = {
      "model_type": "vit",
      "hidden_size": cfg.width,
      "num_hidden_layers": cfg.layers,
      "num_attention_heads": cfg.attention.heads,
      "intermediate_size": cfg.ffn.hidden or 4 * cfg.width,
      "hidden_act": EXPORTED[cfg.ffn.activation],
      "hidden_dropout_prob": cfg.dropout,
      "attention_probs_dropout_prob": cfg.attention.dropout,
      "initializer_range": cfg.deviation,
      "layer_norm_eps": cfg.epsilon,
      "qkv_bias": cfg.attention.bias,
      **image_values(cfg.patches),
  }
  if "class" in model.heads:
    return {**values, "architectures": ["ViTForImageClassification"], "num_labels": model.heads["class"].outputs}
  return {**values, "architectures": ["ViTModel"], "pooler_act": EXPORTED[model.heads["pooled"].activation]}


def vit_rules(model: Described) -> list[Rule]:
  base = "vit." if "class" in model.heads else ""  # the name of the model inside the class with the head
  layer = base + "encoder.layer.{i}."
  head, ours = ("classifier", "head_class/outputs") if "class" in model.heads else ("pooler.dense", "head_pooled/transform")
  return [
      Rule(base + "embeddings.cls_token", "patches/class_token", leading(2)),
      Rule(base + "embeddings.position_embeddings", "position/table/embedding", leading(1)),
      Rule(base + "embeddings.patch_embeddings.projection.weight", "patches/pixels/kernel", PIXELS),
      Rule(base + "embeddings.patch_embeddings.projection.bias", "patches/pixels/bias", SAME),
      *blocks(
          model.cfg, "stack/block_{i}/",
          attention_norm=layer + "layernorm_before", query=layer + "attention.attention.query", key=layer + "attention.attention.key",
          value=layer + "attention.attention.value", out=layer + "attention.output.dense", ffn_norm=layer + "layernorm_after",
          up=layer + "intermediate.dense", down=layer + "output.dense",
      ),
      *norm(base + "layernorm", "final_norm"),
      Rule(f"{head}.weight", f"{ours}/kernel", linear()),
      Rule(f"{head}.bias", f"{ours}/bias", SAME),
  ]  # fmt: skip


VIT_RENAMES = {  # the names of transformers 5 -> those of 4
    r"^(vit\.)?layers\.": r"\1encoder.layer.",
    r"\.attention\.q_proj\.": ".attention.attention.query.",
    r"\.attention\.k_proj\.": ".attention.attention.key.",
    r"\.attention\.v_proj\.": ".attention.attention.value.",
    r"\.attention\.o_proj\.": ".attention.output.dense.",
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
}

# --- CLIP ----------------------------------------------------------------------------------------------------------------------


def clip_config(hf: HfConfig) -> Described:
  hf.skip("initializer_factor")  # of how it was drawn
  text, image = _tower(hf, "text"), _tower(hf, "vision")
  vocab_size, length = text("vocab_size", 49408), text("max_position_embeddings", 77)
  end = text("eos_token_id", 49407)  # 2 is a slip in old files, which transformers takes for "the highest id of the row", OpenAI's rule
  if end not in (2, vocab_size - 1):
    raise text.unsupported("eos_token_id", end, f"it must be vocab_size - 1, {vocab_size - 1}, for a text is read where its highest id is")
  pictures = image_patches(image, patch=32, bias=False)
  if pictures.height != pictures.width:
    raise image.unsupported("image_size", image("image_size"), "images must be square, as in transformers")
  config = towers.Config({
      "text": _clip_stack(text, 512, 8, 2048, position=learned.Config(length=length)),
      "image": _clip_stack(image, 768, 12, 3072, position=learned.Config(length=places(pictures)), patches=pictures, embed_norm=True),
  })  # fmt: skip
  text.finish()
  image.finish()
  projected = dict(kind="vector", outputs=hf("projection_dim", 512), normalize=True)
  heads = {
      "text": HeadConfig(**projected, tower="text"),
      "image": HeadConfig(**projected, pool="first", tower="image"),
      "scale": HeadConfig(kind="scale", initial=math.exp(hf("logit_scale_init_value", 2.6592))),
  }
  keys = {"outputs": projected["outputs"], "scale": heads["scale"].initial, **pixels(pictures, CLIP_MEAN, CLIP_DEVIATION)}
  return Described(config, heads, vocab_size, length, "objectives.image_text", keys)


def _tower(hf: HfConfig, name: str) -> HfConfig:
  """The reader of a tower's config: NAME_config_dict where old files have it, which transformers prefers, else NAME_config."""
  old, key = f"{name}_config_dict", f"{name}_config"
  hf.skip(old, key)
  tower = hf.inner(old if hf.has(old) else key)
  tower.only("is_decoder", False)
  tower.only("add_cross_attention", False)
  tower.skip(*HARMLESS, "is_encoder_decoder", "tie_encoder_decoder", "tie_word_embeddings", "initializer_factor")
  tower.skip("dropout", "projection_dim")  # read nowhere; the projection's size is the whole model's
  return tower


def _clip_stack(hf: HfConfig, width: int, heads: int, hidden: int, **changes: Any) -> transformer.Config:
  """One tower, given the sizes that its class of transformers has by default."""
  return transformer.Config(
      layers=hf("num_hidden_layers", 12), width=hf("hidden_size", width),
      attention=grouped.Config(heads=hf("num_attention_heads", heads), bias=True, dropout=float(hf("attention_dropout", 0.0))),
      ffn=dense.Config(hidden=hf("intermediate_size", hidden), activation=hf.activation("hidden_act", "quick_gelu"), bias=True), norm="layer",
      norm_bias=True, epsilon=hf("layer_norm_eps", 1e-5), deviation=hf("initializer_range", 0.02), residual_init="same", **changes,
  )  # fmt: skip


def clip_export(model: Described) -> dict[str, Any]:
  text, image = model.cfg.towers["text"], model.cfg.towers["image"]
  stack = lambda cfg: {
      "hidden_size": cfg.width,
      "num_hidden_layers": cfg.layers,
      "num_attention_heads": cfg.attention.heads,
      "intermediate_size": cfg.ffn.hidden or 4 * cfg.width,
      "hidden_act": EXPORTED[cfg.ffn.activation],
      "attention_dropout": cfg.attention.dropout,
      "layer_norm_eps": cfg.epsilon,
      "initializer_range": cfg.deviation,
      "projection_dim": model.heads["text"].outputs,
  }
  return {
      "architectures": ["CLIPModel"],
      "model_type": "clip",
      "projection_dim": model.heads["text"].outputs,
      "logit_scale_init_value": math.log(model.heads["scale"].initial),
      "text_config": {
          "model_type": "clip_text_model",
          **stack(text),
          "vocab_size": model.vocab_size,
          "max_position_embeddings": text.position.length or model.length,
          "eos_token_id": 2,  # the highest id of the row, whichever of the two the import had
      },
      "vision_config": {"model_type": "clip_vision_model", **stack(image), **image_values(image.patches)},
  }


def clip_rules(model: Described) -> list[Rule]:
  found = []
  for ours, theirs in (("text", "text_model"), ("image", "vision_model")):
    layer = theirs + ".encoder.layers.{i}."
    found += blocks(
        model.cfg.towers[ours], f"tower_{ours}/stack/block_{{i}}/",
        attention_norm=layer + "layer_norm1", query=layer + "self_attn.q_proj", key=layer + "self_attn.k_proj",
        value=layer + "self_attn.v_proj", out=layer + "self_attn.out_proj", ffn_norm=layer + "layer_norm2",
        up=layer + "mlp.fc1", down=layer + "mlp.fc2",
    )  # fmt: skip
    found.append(Rule(f"{theirs}.embeddings.position_embedding.weight", f"tower_{ours}/position/table/embedding", SAME))
  return [
      *found,
      Rule("text_model.embeddings.token_embedding.weight", "tower_text/embed/embedding", SAME),
      *norm("text_model.final_layer_norm", "tower_text/final_norm"),
      Rule("text_projection.weight", "tower_text/head_text/outputs/kernel", linear()),
      Rule("vision_model.embeddings.class_embedding", "tower_image/patches/class_token", SAME),
      Rule("vision_model.embeddings.patch_embedding.weight", "tower_image/patches/pixels/kernel", PIXELS),
      *norm("vision_model.pre_layrnorm", "tower_image/embed_norm"),
      *norm("vision_model.post_layernorm", "tower_image/final_norm"),
      Rule("visual_projection.weight", "tower_image/head_image/outputs/kernel", linear()),
      Rule("logit_scale", "head_scale/log_scale", SAME),
  ]


def text_ends(tokens: Array, segments: Array | None = None, documents: int = 1) -> Array:
  """Where each text ends: the place of its highest id, the first of several.

  Args:
    tokens: int [B, L].
    segments: int [B, L], of rows that hold `documents` texts, numbered from 1; None: a row is one text.

  Returns:
    int32 [B, documents], to be read as `read={"text": text_ends(tokens)}`. A text that is not there gives 0.
  """
  if segments is None:
    segments = jnp.ones_like(tokens)
  mine = segments[:, None, :] == jnp.arange(1, documents + 1)[None, :, None]
  return jnp.argmax(jnp.where(mine, tokens[:, None, :], -1), axis=-1).astype(jnp.int32)


FAMILIES = (
    Family(
        name="vit",
        architectures=("ViTForImageClassification", "ViTModel"),
        config=vit_config,
        rules=vit_rules,
        export_config=vit_export,
        naming=Naming(prefix="vit.", renames=VIT_RENAMES),
    ),
    Family(
        name="clip",
        architectures=("CLIPModel",),
        config=clip_config,
        rules=clip_rules,
        export_config=clip_export,
        naming=Naming(ignored={r"\.position_ids$": "0, 1, 2, …"}),
    ),
)
