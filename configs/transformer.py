"""The Transformer of 2017, for translation (Vaswani et al. 2017, sections 3 and 5, table 3).

  command   python -m research.train --config=configs/transformer.py:base --workdir=runs/transformer --config.data.train=PAIRS.tsv --config.data.valid=PAIRS_DEV.tsv
  sizes     base (65 million parameters), big (213 million)

Each line of PAIRS.tsv is a sentence, a tab and its translation; both languages share one vocabulary. Batches of the paper hold about 25,000 tokens
of each side.
"""

from research.core.config import use

SIZES = {"base": (512, 8, 2048, 0.1, 100_000), "big": (1024, 16, 4096, 0.3, 300_000)}  # width, heads, inner width, dropout, steps


def get_config(size: str = "base"):
  width, heads, hidden, dropout, steps = SIZES[size]
  warmup = 4000
  return use(
      "training.experiment",
      steps=steps,
      batch_size=512,
      data=use("data.records", fields={"source": 0, "target": 1}, tokenizer=use("data.tokenizer", vocab_size=37000), length=128),
      model=use(
          "model.transformer",
          layers=6,
          encoder_layers=6,
          width=width,
          attention=use("model.attention.grouped", heads=heads, bias=True),
          ffn=use("model.ffn.dense", hidden=hidden, activation="relu", bias=True),
          position=use("model.position.sinusoidal"),
          norm="layer",
          norm_bias=True,
          norm_place="post",
          epsilon=1e-5,
          embed_scale=True,
          dropout=dropout,
          deviation=width**-0.5,
          residual_init="same",
      ),
      objective=use("objectives.seq2seq", label_smoothing=0.1),
      optimizer=use(
          "optim.optimizer",
          algorithm="adam",
          weight_decay=0.0,
          b2=0.98,
          epsilon=1e-9,
          clip=None,
          schedule=use("optim.schedule", peak=(width * warmup) ** -0.5, warmup=warmup, shape="inverse_sqrt"),
      ),
      evaluate=use("training.evaluation", every=2000),
      checkpoint=use("training.checkpoint", every=2000),
  )
