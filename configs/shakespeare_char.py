"""nanoGPT's CPU recipe on tiny Shakespeare, character by character.

  source    github.com/karpathy/nanoGPT, README, "quick start"
  command   python -m research.train --config=configs/shakespeare_char.py --workdir=runs/shakespeare_char
  expected  1.88 nats per character are published, on 20 random batches; here the whole validation tenth is scored
"""

from research.core.config import use


def get_config():
  return use(
      "training.experiment",
      steps=2000,
      batch_size=12,
      data=use("data.text", tokenizer=use("data.tokenizer", kind="character"), length=64),
      model=use(
          "model.transformer",
          layers=4,
          width=128,
          attention=use("model.attention.grouped", heads=4),
          ffn=use("model.ffn.dense", activation="gelu"),
          position=use("model.position.learned"),
          norm="layer",
          epsilon=1e-5,
      ),
      objective=use("objectives.causal_lm"),
      optimizer=use(
          "optim.optimizer",
          b2=0.99,
          weight_decay=0.1,
          clip=1.0,
          schedule=use("optim.schedule", peak=1e-3, warmup=100, shape="cosine", end=0.1),
      ),
      evaluate=use("training.evaluation", every=250, batch_size=128),
      checkpoint=use("training.checkpoint", every=500),
  )
