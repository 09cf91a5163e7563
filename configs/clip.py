"""CLIP: images and their captions in one space of vectors (Radford et al. 2021, section 2 and tables 18 to 20).

  command   python -m research.train --config=configs/clip.py:b32 --workdir=runs/clip --config.data.paths=IMAGES
  sizes     b32 (151 million parameters), b16, l14 (428 million), whose towers are scanned and computed in bfloat16

IMAGES is a folder or an archive with `captions.jsonl`, whose lines name an image and hold its caption.
"""

from research.core.config import use

SIZES = {  # of the images' tower: layers, width, heads, patch; of the texts': width, heads; numbers of a vector; rate
    "b32": ((12, 768, 12, 32), (512, 8), 512, 5e-4),
    "b16": ((12, 768, 12, 16), (512, 8), 512, 5e-4),
    "l14": ((24, 1024, 16, 14), (768, 12), 768, 4e-4),
}
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def tower(layers: int, width: int, heads: int, deep: bool, **changes):
  return use(
      "model.transformer",
      layers=layers,
      width=width,
      attention=use("model.attention.grouped", heads=heads, bias=True),
      ffn=use("model.ffn.dense", activation="gelu_quick", bias=True),
      norm="layer",
      norm_bias=True,
      epsilon=1e-5,
      residual_init="same",
      **(dict(scan=True, remat="dots", dtype="bfloat16") if deep else {}),
      **changes,
  )


def get_config(size: str = "b32"):
  (layers, width, heads, patch), text, outputs, rate = SIZES[size]
  deep = layers >= 24
  return use(
      "training.experiment",
      steps=390_000,
      batch_size=32768,
      data=use("data.images", height=256, width=256, tokenizer=use("data.tokenizer", lowercase=True, vocab_size=49408), length=77),
      model=use(
          "model.towers",
          towers={
              "text": tower(12, *text, deep, position=use("model.position.learned", length=77)),
              "image": tower(layers, width, heads, deep, position=use("model.position.learned", length=(224 // patch) ** 2 + 1), patches=use("model.patches", patch=patch, bias=False), embed_norm=True),
          },
      ),
      objective=use("objectives.image_text", height=224, width=224, crop=32, outputs=outputs, mean=MEAN, deviation=DEVIATION),
      optimizer=use(
          "optim.optimizer",
          b2=0.98,
          epsilon=1e-6,
          weight_decay=0.2,
          schedule=use("optim.schedule", peak=rate, warmup=2000, shape="cosine", end=0.0),
      ),
      evaluate=use("training.evaluation", every=5000),
      checkpoint=use("training.checkpoint", every=5000),
  )
