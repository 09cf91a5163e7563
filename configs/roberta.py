"""RoBERTa: BERT's model with masked language modelling alone, whole rows of text and large batches (Liu et al. 2019, sections 4 and 5, table 9).

  command   python -m research.train --config=configs/roberta.py:base --workdir=runs/roberta --config.data.sources.text.paths=CORPUS
  sizes     base (125 million parameters), large (355 million)
"""

from configs import bert
from research.core.config import use

RATES = {"base": dict(peak=6e-4, warmup=24_000), "large": dict(peak=4e-4, warmup=30_000)}


def get_config(size: str = "base"):
  config = bert.get_config(size)
  config.steps, config.batch_size = 500_000, 8192
  config.data = use(
      "data.text",
      sources={"text": use("data.sources.files", documents="paragraph")},
      tokenizer=use("data.tokenizer", vocab_size=50265),
      length=512,
  )
  config.model = bert.model(**bert.SIZES[size], position=use("model.position.learned", length=512, offset=2), token_types=1, epsilon=1e-5)
  config.objective = use("objectives.masked_lm")
  config.optimizer = use(
      "optim.optimizer",
      b2=0.98,
      epsilon=1e-6,
      weight_decay=0.01,
      clip=None,
      schedule=use("optim.schedule", **RATES[size], shape="linear", end=0.0),
  )
  return config
