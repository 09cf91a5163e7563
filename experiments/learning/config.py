"""A small run of each pretraining objective on real data, to see that it learns: minutes on two CPU cores.

  command   python -m research.train --config=experiments/learning/config.py:masked_lm --workdir=runs/learning/masked_lm
  names     causal_lm, prefix_lm, masked_lm, next_sentence, permutation_lm (books of Project Gutenberg and a sample of C4), contrastive (captions of the
            same image, Multi30k), image_text (emoji and their names), image_classification (digits of MNIST)
  results   experiments/learning/README.md

Model, optimizer, corpus and tokens a step are the same for all objectives on text. $RESEARCH_DATA holds the data.
"""

from research.core.config import use

BOOKS = (
    "A-Tale-of-Two-Cities_98__98-0", "Alice-s-Adventures-in-Wonderland_11__11-0", "Dracula_345__345", "Emma_158__158-0", "Frankenstein_84__84-0",
    "Great-Expectations_1400__1400-0", "Leviathan_3207__3207", "Pride-and-Prejudice_1342__1342-0", "The-Adventures-of-Sherlock-Holmes_1661__1661",
    "The-Time-Machine_35__35-0", "The-War-of-the-Worlds_36__36-0", "Treasure-Island_120__120-0",
)  # fmt: skip
HELD_OUT = ("$RESEARCH_DATA/gutenberg/Wuthering-Heights_768__768.txt.gz",)
LENGTH = 128


def sources():
  return {
      "books": use("data.sources.files", paths=tuple(f"$RESEARCH_DATA/gutenberg/{book}.txt.gz" for book in BOOKS), valid_paths=HELD_OUT),
      "web": use("data.sources.files", paths=("$RESEARCH_DATA/c4_en_sample/train.jsonl.gz",)),
  }


def stack(**changes):
  keys = dict(
      layers=4, width=192, attention=use("model.attention.grouped", heads=4, qk_norm=True), ffn=use("model.ffn.dense", activation="relu2"), residual_init="zero"
  )
  return use("model.transformer", **{**keys, **changes})


def get_config(name: str = "causal_lm"):
  objective = {"prefix_lm": use("objectives.causal_lm", prefix=True)}.get(name)
  config = use(
      "training.experiment",
      steps=500,
      batch_size=16,
      data=use("data.text", sources=sources(), tokenizer=use("data.tokenizer", vocab_size=4096), length=LENGTH),
      model=stack(queries=name == "permutation_lm", token_types=2 if name == "next_sentence" else 0),
      objective=objective or use(f"objectives.{name}"),
      optimizer=use("optim.optimizer", algorithm="muon", schedule=use("optim.schedule", peak=3e-3, warmup=40, shape="linear", end=0.0)),
      evaluate=use("training.evaluation", every=125, batch_size=128),
      checkpoint=use("training.checkpoint", every=500, steps=(0,), keep=1, keep_best=0),
  )
  if name == "next_sentence":
    config.data = use("data.pairs", sources=sources(), tokenizer=use("data.tokenizer", vocab_size=4096), length=LENGTH, passes=2)
  if name == "contrastive":
    config.steps, config.batch_size = 400, 128
    captions = lambda split: tuple(f"$RESEARCH_DATA/multi30k_captions/{split}.{i}.en.gz" for i in range(1, 6))
    words = use("data.tokenizer", kind="wordpiece", lowercase=True, vocab_size=4096)
    config.data = use("data.groups", train=captions("train"), valid=captions("val"), take="drawn", tokenizer=words, length=32)
    config.objective.texts = 2
  if name in ("image_text", "image_classification"):
    config.steps, config.batch_size = 400, 128
  if name == "image_text":
    config.data = use("data.images", paths=("$RESEARCH_DATA/emoji_captions/emoji48.tar.gz",), caption_key="name", height=48, width=48)
    image = stack(width=128, position=use("model.position.learned"), patches=use("model.patches", height=48, width=48, patch=8))
    config.model = use("model.towers", towers={"text": stack(layers=2, width=128), "image": image})
    config.optimizer.schedule.peak = 1e-3
  if name == "image_classification":
    config.data = use("data.images", paths=("$RESEARCH_DATA/mnist/train10k-images-idx3-ubyte.gz",), height=28, width=28, channels=1)
    config.model = stack(width=128, position=use("model.position.learned"), patches=use("model.patches", height=28, width=28, patch=7, channels=1))
    config.objective = use("objectives.image_classification", height=28, width=28, channels=1, mean=(0.5,), deviation=(0.5,), classes=10)
    config.optimizer.schedule.peak = 1e-3
  return config
