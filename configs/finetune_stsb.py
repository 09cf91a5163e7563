"""Fine-tunes a sentence encoder on the STS benchmark: how alike two sentences are, 0 to 5 (Cer et al. 2017), read as a pair.

  command   python -m research.train --config=configs/finetune_stsb.py:runs/minilm --workdir=runs/stsb
  score     python -m research.evaluate --workdir=runs/stsb --evals=classification
  data      $RESEARCH_DATA/stsb: 5,749 pairs to train on, 1,500 to validate

The loss is the squared error of the score. The argument, the model and its import: configs/finetune_sst2.py.
"""

from configs import finetune_sst2
from research.core.config import use


def get_config(encoder: str = ""):
  config = finetune_sst2.sentences(encoder)
  config.steps = 540  # three epochs
  config.data.train = ("$RESEARCH_DATA/stsb/stsb-en-train.csv.gz",)
  config.data.valid = ("$RESEARCH_DATA/stsb/stsb-en-dev.csv.gz",)
  config.data.fields = {"first": 0, "second": 1, "score": 2}
  config.data.length = 64
  config.objective = use("objectives.classification", classes=1)
  config.optimizer.schedule.peak = 1e-4
  config.optimizer.schedule.warmup = 54
  config.evaluate.every = 180
  config.checkpoint.every = 540
  return config
