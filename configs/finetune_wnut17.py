"""Fine-tunes a sentence encoder on WNUT-17, emerging entities in noisy text (Derczynski et al. 2017): six types, tags B- and I-.

  command   python -m research.train --config=configs/finetune_wnut17.py:runs/minilm --workdir=runs/wnut17
  score     python -m research.evaluate --workdir=runs/wnut17 --evals=tagging
  data      $RESEARCH_DATA/ner_wnut17: 3,394 sentences to train on, 1,009 to validate

The argument, the model and its import: configs/finetune_sst2.py.
"""

from configs import finetune_sst2
from research.core.config import use


def get_config(encoder: str = ""):
  config = finetune_sst2.sentences(encoder)
  config.steps = 530  # five epochs
  config.data.train = ("$RESEARCH_DATA/ner_wnut17/wnut17train.conll.gz",)
  config.data.valid = ("$RESEARCH_DATA/ner_wnut17/emerging.dev.conll.gz",)
  config.data.fields = {"words": 0, "tags": 1}
  config.data.length = 64
  config.objective = use("objectives.tagging", classes=13)
  config.optimizer.schedule.peak = 2e-4
  config.optimizer.schedule.warmup = 53
  config.evaluate.every = 106
  config.checkpoint.every = 530
  return config
