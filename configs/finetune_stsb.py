"""Fine-tunes a sentence encoder on the STS benchmark: how alike two sentences are, 0 to 5 (Cer et al. 2017).

  command   python -m research.train --config=configs/finetune_stsb.py:runs/minilm --workdir=runs/stsb
  score     python -m research.evaluate --workdir=runs/stsb --evals=similarity --data=$RESEARCH_DATA/stsb/stsb-en-dev.csv.gz
  data      $RESEARCH_DATA/stsb: 5,749 pairs to train on, 1,500 to validate

The cosine of the two sentences' vectors is to be their score. The argument, the model and its import: configs/finetune_sst2.py.
"""

from configs import finetune_sst2
from research.core.config import use


def get_config(encoder: str = ""):
  config = finetune_sst2.sentences(encoder)
  config.steps = 720  # four epochs
  config.data.train = ("$RESEARCH_DATA/stsb/stsb-en-train.csv.gz",)
  config.data.valid = ("$RESEARCH_DATA/stsb/stsb-en-dev.csv.gz",)
  config.data.fields = {"first": 0, "second": 1, "score": 2}
  config.data.length = 40
  config.objective = use("objectives.similarity")
  config.optimizer.schedule.peak = 5e-5
  config.optimizer.schedule.warmup = 72
  config.evaluate.every = 180
  config.checkpoint.every = 720
  return config
