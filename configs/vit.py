"""The Vision Transformer, trained to tell the classes of images (Dosovitskiy et al. 2021, section 4.1 and table 3).

  command   python -m research.train --config=configs/vit.py:b16 --workdir=runs/vit --config.data.paths=IMAGES --config.objective.classes=NUMBER
  sizes     b16 (86 million parameters), b32, l16 (307 million), h14 (632 million); these two scan their blocks and compute in bfloat16

IMAGES is a folder or an archive whose images lie in folders named after their classes. The recipe is that of ImageNet-21k.
"""

from research.core.config import use

SIZES = {"b16": (12, 768, 12, 16), "b32": (12, 768, 12, 32), "l16": (24, 1024, 16, 16), "h14": (32, 1280, 16, 14)}  # layers, width, heads, patch


def get_config(size: str = "b16"):
  layers, width, heads, patch = SIZES[size]
  return use(
      "training.experiment",
      steps=310_000,
      batch_size=4096,
      data=use("data.images", height=256, width=256),
      model=use(
          "model.transformer",
          layers=layers,
          width=width,
          attention=use("model.attention.grouped", heads=heads, bias=True),
          ffn=use("model.ffn.dense", activation="gelu", bias=True),
          position=use("model.position.learned"),
          norm="layer",
          norm_bias=True,
          epsilon=1e-12,
          patches=use("model.patches", patch=patch),
          dropout=0.1,
          residual_init="same",
          **(dict(scan=True, remat="dots", dtype="bfloat16") if layers >= 24 else {}),
      ),
      objective=use("objectives.image_classification", height=224, width=224, crop=32, flip=True, classes=1000),
      optimizer=use(
          "optim.optimizer",
          b2=0.999,
          schedule=use("optim.schedule", peak=1e-3, warmup=10_000, shape="linear", end=0.0),
      ),
      evaluate=use("training.evaluation", every=5000),
      checkpoint=use("training.checkpoint", every=5000),
  )
