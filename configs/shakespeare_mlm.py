"""Masked language modelling on tiny Shakespeare with a byte-pair vocabulary: the model and optimizer of configs/shakespeare.py.

  command   python -m research.train --config=configs/shakespeare_mlm.py --workdir=runs/shakespeare_mlm
  expected  the closing table: held-out masked loss and accuracy beside those of token frequencies (benchmarks/README.md)
"""

from configs import shakespeare
from research.core.config import use


def get_config():
  config = shakespeare.get_config()
  config.steps = 1500
  config.batch_size = 32
  config.data = use("data.text", tokenizer=use("data.tokenizer", kind="bpe", vocab_size=1024), length=64)
  config.objective = use("objectives.masked_lm")
  config.evaluate.every = 250
  config.checkpoint.every = 500
  return config
