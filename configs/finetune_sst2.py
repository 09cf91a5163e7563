"""Fine-tunes a sentence encoder on SST-2, the sentiment of sentences (Socher et al. 2013; GLUE, Wang et al. 2019).

  import    python -m research.convert import FOLDER --workdir=runs/minilm      (FOLDER: sentence-transformers/all-MiniLM-L6-v2, safetensors)
  phrases   python -m research.train --config=configs/finetune_sst2.py:runs/minilm --workdir=runs/sst2_phrases
  command   python -m research.train --config=configs/finetune_sst2.py:runs/sst2_phrases,sentences --workdir=runs/sst2
  score     python -m research.evaluate --workdir=runs/sst2 --evals=classification
  data      $RESEARCH_DATA/sst2: 67,349 phrases and 6,920 whole sentences to train on, 872 sentences to validate; class 0 is negative, 1 positive

First one epoch over the phrases that GLUE trains on, which are short, in rows of 24 tokens; then one over the whole sentences, from that run's weights.
The argument is the workdir to start from, any imported encoder's in the first stage; without one it is all-MiniLM-L6-v2's in runs/minilm.
"""

import os

from research.core.config import read, use

MINILM = dict(  # 6 layers of BERT's kind, distilled (Wang et al. 2020, MiniLM)
    layers=6, width=384, attention=use("model.attention.grouped", heads=12, bias=True, dropout=0.1),
    ffn=use("model.ffn.dense", hidden=1536, activation="gelu", bias=True), position=use("model.position.learned", length=512), norm="layer",
    norm_place="post", norm_bias=True, epsilon=1e-12, embed_norm=True, token_types=2, dropout=0.1, residual_init="same",
)  # fmt: skip


def get_config(argument: str = ""):
  encoder, _, stage = argument.partition(",")
  config = sentences(encoder)
  if stage != "sentences":
    config.steps, config.batch_size = 700, 96  # one epoch
    config.data.train = ("$RESEARCH_DATA/sst2/glue_train_phrases.tsv.gz",)
    config.data.fields, config.data.valid_fields = {"first": "sentence", "label": "label"}, {"first": 0, "label": 1}
    config.data.length = 24
    config.optimizer.schedule.peak = 2e-4
    config.optimizer.schedule.warmup = 70
    config.evaluate.every = 350
    config.checkpoint.every = 700
  return config


def sentences(encoder: str):
  """The second stage, and what other recipes change."""
  model = read(os.path.join(encoder, "config.json")).model if encoder else use("model.transformer", **MINILM)
  encoder = encoder or "runs/minilm"
  return use(
      "training.experiment",
      steps=217,  # one epoch
      batch_size=32,
      init_from=encoder,
      data=use(
          "data.records",
          train=("$RESEARCH_DATA/sst2/train.tsv.gz",),
          valid=("$RESEARCH_DATA/sst2/dev.tsv.gz",),
          fields={"first": 0, "label": 1},
          tokenizer=use("data.tokenizer", path=os.path.join(encoder, "tokenizer")),
          length=64,
      ),
      model=model,
      objective=use("objectives.classification", classes=2),
      optimizer=use("optim.optimizer", b2=0.999, weight_decay=0.01, schedule=use("optim.schedule", peak=3e-5, warmup=20, shape="linear", end=0.0)),
      evaluate=use("training.evaluation", every=217, batch_size=64),
      checkpoint=use("training.checkpoint", every=217, keep_best=0),
  )
