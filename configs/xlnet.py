"""XLNet: permutation language modelling with two streams and Transformer-XL's relative positions (Yang et al. 2019, section 2 and appendix A.4).

  command   python -m research.train --config=configs/xlnet.py:large --workdir=runs/xlnet --config.data.sources.text.paths=CORPUS
  sizes     base (117 million parameters), large (361 million)

With --config.objective.recurrence=2 the second half of a row sees the hidden states of the first, and with objective.bidirectional half of the rows
are read from their end. Large scans its blocks and computes in bfloat16.
"""

from research.core.config import use

SIZES = {"base": (12, 768, 12, 3072), "large": (24, 1024, 16, 4096)}  # layers, width, heads, inner width


def get_config(size: str = "base"):
  layers, width, heads, hidden = SIZES[size]
  return use(
      "training.experiment",
      steps=500_000,
      batch_size=8192,
      data=use(
          "data.text",
          sources={"text": use("data.sources.files", documents="paragraph")},
          tokenizer=use("data.tokenizer", vocab_size=32000),
          length=512,
      ),
      model=use(
          "model.transformer",
          layers=layers,
          width=width,
          attention=use("model.attention.grouped", heads=heads, dropout=0.1),
          ffn=use("model.ffn.dense", hidden=hidden, activation="gelu", bias=True),
          position=use("model.position.relative"),
          norm="layer",
          norm_place="post",
          norm_bias=True,
          epsilon=1e-12,
          queries=True,
          dropout=0.1,
          residual_init="same",
          **(dict(scan=True, remat="dots", dtype="bfloat16") if layers >= 24 else {}),
      ),
      objective=use("objectives.permutation_lm", predict=6),
      optimizer=use(
          "optim.optimizer",
          b2=0.999,
          epsilon=1e-6,
          weight_decay=0.01,
          schedule=use("optim.schedule", peak=4e-4, warmup=40_000, shape="linear", end=0.0),
      ),
      evaluate=use("training.evaluation", every=10_000),
      checkpoint=use("training.checkpoint", every=10_000),
  )
