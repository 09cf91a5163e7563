"""BERT's pretraining: masked language modelling and next-sentence prediction in one forward pass (Devlin et al. 2019, section 3.1 and appendix A.2).

  command   python -m research.train --config=configs/bert.py:base --workdir=runs/bert --config.data.sources.text.paths=CORPUS
  sizes     base (110 million parameters), large (340 million)

The paper trains the first 90 % of the steps on rows of 128 tokens: train with --config.data.length=128 and go on from that run with init_from. Unlike
there, masks are drawn anew each time a pair comes round. Large scans its blocks and computes in bfloat16. Documents of the corpus are parted by blank lines.
"""

from research.core.config import use

SIZES = {"base": dict(layers=12, width=768, heads=12), "large": dict(layers=24, width=1024, heads=16)}


def model(layers: int, width: int, heads: int, **changes):
  """The encoder; RoBERTa's differs in nothing but its vocabulary and its rows."""
  keys = dict(
      layers=layers, width=width, attention=use("model.attention.grouped", heads=heads, bias=True, dropout=0.1),
      ffn=use("model.ffn.dense", activation="gelu", bias=True), position=use("model.position.learned", length=512), norm="layer", norm_place="post",
      norm_bias=True, epsilon=1e-12, embed_norm=True, token_types=2, dropout=0.1, residual_init="same",
  )  # fmt: skip
  deep = dict(scan=True, remat="dots", dtype="bfloat16") if layers >= 24 else {}
  return use("model.transformer", **{**keys, **deep, **changes})


def get_config(size: str = "base"):
  return use(
      "training.experiment",
      steps=1_000_000,
      batch_size=256,
      data=use(
          "data.pairs",
          sources={"text": use("data.sources.files", documents="paragraph")},
          tokenizer=use("data.tokenizer", kind="wordpiece", lowercase=True, vocab_size=30522),
          length=512,
      ),
      model=model(**SIZES[size]),
      objective=use("objectives.next_sentence"),
      optimizer=use(
          "optim.optimizer",
          b2=0.999,
          epsilon=1e-6,
          weight_decay=0.01,
          schedule=use("optim.schedule", peak=1e-4, warmup=10_000, shape="linear", end=0.0),
      ),
      evaluate=use("training.evaluation", every=10_000),
      checkpoint=use("training.checkpoint", every=10_000),
  )
