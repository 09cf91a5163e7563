"""Images and their captions in one space of vectors: each image is told its caption from the batch's others, and the reverse.

`softmax` is CLIP's symmetric cross-entropy (Radford et al. 2021, figure 3), `sigmoid` SigLIP's loss over all pairs (Zhai et al. 2023, equation 2),
whose bias stays negative here: it is −e^p of a parameter p. The model has the towers `text` and `image` (model.towers).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from research.core.types import Field, Mean, Vocab
from research.model.inputs import HeadConfig, Inputs
from research.objectives.base import ROW_AXES, SEGMENTS_MEANING, Example, Objective
from research.objectives.in_batch import info_nce, pairwise_sigmoid
from research.objectives.pixels import Pixels

START = {"softmax": 1 / 0.07, "sigmoid": 10.0}  # the scales that the papers start from
BIAS = -10.0  # and SigLIP's bias


@dataclasses.dataclass(frozen=True)
class Config(Pixels):
  form: Literal["softmax", "sigmoid"] = "softmax"  # CLIP's loss or SigLIP's
  outputs: int = 128  # numbers of a vector
  text_pool: Literal["last", "mean"] = "last"  # a text's vector is read at its last token, or is the mean of all
  text_causal: bool = True  # tokens of a text see the past only, as in CLIP
  scale: float | None = None  # of the cosines at the start; None: the paper's, 1/0.07 for softmax and 10 for sigmoid
  max_scale: float = 100.0  # what it may grow to


def make(cfg: Config, vocab: Vocab, length: int) -> Objective:
  del vocab

  def corrupt(key, row, step) -> Example:
    del step
    segments = (row["segments"] > 0).astype(jnp.int32)
    inputs = Inputs(row["tokens"], segments=segments, images=cfg.seen(key, row["images"]), kind="causal" if cfg.text_causal else "full")
    last = jnp.max(jnp.where(segments > 0, jnp.arange(length), 0))[None]
    return Example(inputs, {}, {"image_text": jnp.any(segments > 0).astype(jnp.float32)}, {"image_text": last})

  def vectors(apply, params, example, key=None, train=False):
    """[B, D] each, of the images and of the texts."""
    image_key, text_key = (None, None) if key is None else jax.random.split(key)
    place = example.positions["image_text"] if cfg.text_pool == "last" else None
    pixels, words = Inputs(images=example.inputs.images, kind="full"), example.inputs.replace(images=None)
    images = apply(params, pixels, read={"image": None}, tower="image", key=image_key, train=train).heads["image"][:, 0]
    texts = apply(params, words, read={"text": place}, tower="text", key=text_key, train=train).heads["text"][:, 0]
    return images, texts

  def loss(apply, params, example, key, train):
    weights = example.weights["image_text"]
    images, texts = vectors(apply, params, example, key, train)
    learned = apply(params, None, read={name: None for name in heads if heads[name].kind == "scale"}).heads
    scale, own, present = jnp.minimum(learned["scale"], cfg.max_scale), jnp.arange(len(weights)), weights > 0
    if cfg.form == "softmax":
      of_image, of_text = info_nce(images, texts, own, present, scale), info_nce(texts, images, own, present, scale)
      nll = (of_image.nll + of_text.nll) / 2
    else:
      of_image, of_text = (pairwise_sigmoid(a, b, present, scale, -learned["bias"]) for a, b in ((images, texts), (texts, images)))
      nll = of_image.nll
    metrics = {
        "image_accuracy": Mean.of(of_image.correct, weights),  # its own caption scores highest
        "text_accuracy": Mean.of(of_text.correct, weights),
        "scale": Mean(jax.lax.stop_gradient(scale), jnp.ones(())),
    }
    return {"image_text": Mean.of(nll, weights)}, metrics

  def predict(apply, params, example):
    return dict(zip(("image", "text"), vectors(apply, params, example)))

  vector = HeadConfig(kind="vector", outputs=cfg.outputs, normalize=True)
  heads = {
      "text": vector._replace(tower="text", pool="each" if cfg.text_pool == "last" else "mean"),
      "image": vector._replace(tower="image", pool="first"),
      "scale": HeadConfig(kind="scale", initial=START[cfg.form] if cfg.scale is None else cfg.scale),
  }
  if cfg.form == "sigmoid":
    heads["bias"] = HeadConfig(kind="scale", initial=-BIAS)
  return Objective(
      element_spec={
          "images": cfg.field(),
          "tokens": Field((length,), "int32", ROW_AXES, "its caption"),
          "segments": Field((length,), "int32", ROW_AXES, SEGMENTS_MEANING),
      },
      heads=heads,
      corrupt=corrupt,
      loss=loss,
      factors={"image_text": 1.0},
      predict=predict,
      partners=True,
      whole_batch=True,
  )
