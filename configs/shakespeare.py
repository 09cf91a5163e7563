"""The default of launch/local.sh: tiny Shakespeare, character by character, in a few minutes on two CPU cores.

  command   bash launch/local.sh
"""

from research.core.config import use


def get_config():
  return use(
      "training.experiment",
      steps=640,
      batch_size=16,
      data=use("data.text", tokenizer=use("data.tokenizer", kind="character"), length=128),
      model=use(
          "model.transformer",
          layers=4,
          width=192,
          attention=use("model.attention.grouped", heads=4, qk_norm=True),
          ffn=use("model.ffn.dense", activation="relu2"),
          position=use("model.position.rotary"),
          residual_init="zero",
      ),
      objective=use("objectives.causal_lm"),
      optimizer=use(
          "optim.optimizer",
          algorithm="muon",
          schedule=use("optim.schedule", peak=3e-3, warmup=50, shape="linear", end=0.0),
      ),
      evaluate=use("training.evaluation", every=160, batch_size=128),
      checkpoint=use("training.checkpoint", every=160),
  )
