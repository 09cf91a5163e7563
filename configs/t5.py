"""T5 and T5 v1.1 (Raffel et al. 2020, sections 2.1 and 3.1.2; Shazeer 2020, GLU variants) on pairs of source and target.

  command   python -m research.train --config=configs/t5.py:small --workdir=runs/t5 --config.data.train=PAIRS.tsv --config.data.valid=PAIRS_DEV.tsv
  sizes     small (60 million parameters), base, large, 3b, 11b, v1_1_small, v1_1_base, v1_1_large, v1_1_xl, v1_1_xxl

The recipe is that of fine-tuning (section 3.1.3): Adafactor at a constant rate. Each line of PAIRS.tsv is a source, a tab and its target.
Stacks of 24 blocks are scanned and computed in bfloat16; Adafactor's scale and clipping are then those of a whole stack, not of each block.
"""

from research.core.config import use

SIZES = {  # blocks of each stack, width, heads, width of a head, inner width
    "small": (6, 512, 8, 64, 2048),
    "base": (12, 768, 12, 64, 3072),
    "large": (24, 1024, 16, 64, 4096),
    "3b": (24, 1024, 32, 128, 16384),
    "11b": (24, 1024, 128, 128, 65536),
    "v1_1_small": (8, 512, 6, 64, 1024),
    "v1_1_base": (12, 768, 12, 64, 2048),
    "v1_1_large": (24, 1024, 16, 64, 2816),
    "v1_1_xl": (24, 2048, 32, 64, 5120),
    "v1_1_xxl": (24, 4096, 64, 64, 10240),
}


def get_config(size: str = "small"):
  layers, width, heads, head_dim, hidden = SIZES[size]
  newer = size.startswith("v1_1")
  return use(
      "training.experiment",
      steps=262_144,
      batch_size=128,
      data=use("data.records", fields={"source": 0, "target": 1}, tokenizer=use("data.tokenizer", vocab_size=32128), length=512),
      model=use(
          "model.transformer",
          layers=layers,
          encoder_layers=layers,
          width=width,
          attention=use("model.attention.grouped", heads=heads, head_dim=head_dim, scale=1.0, dropout=0.1),
          ffn=use("model.ffn.dense", hidden=hidden, activation="gelu_tanh" if newer else "relu", gated=newer),
          position=use("model.position.bias", kind="buckets"),
          tie_head=not newer,
          head_scale=not newer,
          dropout=0.1,
          **(dict(scan=True, remat="dots", dtype="bfloat16") if layers >= 24 else {}),
      ),
      objective=use("objectives.seq2seq", start="pad"),
      optimizer=use("optim.optimizer", algorithm="adafactor", weight_decay=0.0, clip=None, schedule=use("optim.schedule", peak=1e-3, warmup=1, shape="constant")),
      evaluate=use("training.evaluation", every=5000),
      checkpoint=use("training.checkpoint", every=5000),
  )
