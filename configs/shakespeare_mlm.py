"""Masked language modelling on tiny Shakespeare with a byte-pair vocabulary.

  command   python -m research.train --config=configs/shakespeare_mlm.py --workdir=runs/shakespeare_mlm
  expected  the closing table: held-out masked loss and accuracy beside those of token frequencies (benchmarks/README.md)
"""

from research.core.config import use


def get_config():
  return use(
      "training.experiment",
      steps=1500,
      batch_size=32,
      data=use("data.text", tokenizer=use("data.tokenizer", kind="bpe", vocab_size=1024), length=64),
      model=use(
          "model.transformer",
          layers=4,
          width=192,
          attention=use("model.attention.grouped", heads=4, qk_norm=True),
          ffn=use("model.ffn.dense", activation="relu2"),
          position=use("model.position.rotary"),
          residual_init="zero",
          dropout=0.1,
      ),
      objective=use("objectives.masked_lm"),
      optimizer=use(
          "optim.optimizer",
          algorithm="muon",
          schedule=use("optim.schedule", peak=3e-3, warmup=50, shape="linear", end=0.0),
      ),
      evaluate=use("training.evaluation", every=250, batch_size=128),
      checkpoint=use("training.checkpoint", every=500),
  )
