"""GPT-2 (Radford et al. 2019), by the recipe that nanoGPT reproduced its smallest size with.

  source    github.com/karpathy/nanoGPT, config/train_gpt2.py; the paper tells neither rates nor steps
  command   python -m research.train --config=configs/gpt2.py:124m --workdir=runs/gpt2 --config.data.sources.text.paths=CORPUS
  sizes     124m, 355m, 774m, 1558m; from 355m on blocks are scanned and computed in bfloat16
"""

from research.core.config import use

SIZES = {
    "124m": dict(layers=12, width=768, heads=12),
    "355m": dict(layers=24, width=1024, heads=16),
    "774m": dict(layers=36, width=1280, heads=20),
    "1558m": dict(layers=48, width=1600, heads=25),
}


def get_config(size: str = "124m"):
  layers, width, heads = SIZES[size].values()
  return use(
      "training.experiment",
      steps=600_000,
      batch_size=480,
      data=use(
          "data.text",
          sources={"text": use("data.sources.files", documents="paragraph")},
          tokenizer=use("data.tokenizer", vocab_size=50257),
          length=1024,
      ),
      model=use(
          "model.transformer",
          layers=layers,
          width=width,
          attention=use("model.attention.grouped", heads=heads, bias=True),
          ffn=use("model.ffn.dense", activation="gelu_tanh", bias=True),
          position=use("model.position.learned"),
          norm="layer",
          norm_bias=True,
          epsilon=1e-5,
          **(dict(scan=True, remat="dots", dtype="bfloat16") if layers >= 24 else {}),
      ),
      objective=use("objectives.causal_lm"),
      optimizer=use(
          "optim.optimizer",
          schedule=use("optim.schedule", peak=6e-4, warmup=2000, shape="cosine", end=0.1),
      ),
      evaluate=use("training.evaluation", every=1000),
      checkpoint=use("training.checkpoint", every=1000),
  )
