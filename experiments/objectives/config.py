"""The one architecture of the study, its sizes, and the tasks that its models are fine-tuned on. The arms are in study.py and finetuning.py.

  get_config("small")        pretraining, causal; sizes: small (2 CPU cores), middle (a GPU), base (BERT-base, for a cluster)
  get_config("small,sst2")   fine-tuning; tasks: sst2, wnut17, stsb

All models have the same stack, the parameters of permutation LM's second stream and of next-sentence prediction's token types among it, whether their objective asks for them or
not; the heads are each objective's own. data: runs/objectives/corpus, which corpus.py writes, and $RESEARCH_DATA.
"""

from research.core.config import use

CORPUS = "runs/objectives/corpus"
SIZES = {  # layers, width, heads, tokens of a row, rows of a batch
    "small": (4, 128, 4, 128, 16),
    "middle": (8, 512, 8, 128, 128),
    "base": (12, 768, 12, 512, 256),
}
TASKS = {  # training file, validation file, fields, objective, metric
    "sst2": ("sst2/train.tsv.gz", "sst2/dev.tsv.gz", {"first": 0, "label": 1}, use("objectives.classification", classes=2, pool="mean", head_transform=False)),
    "wnut17": ("ner_wnut17/wnut17train.conll.gz", "ner_wnut17/emerging.dev.conll.gz", {"words": 0, "tags": 1}, use("objectives.tagging", classes=13)),
    "stsb": ("stsb/stsb-en-train.csv.gz", "stsb/stsb-en-dev.csv.gz", {"first": 0, "second": 1, "score": 2}, use("objectives.similarity")),
}


def get_config(argument: str = "small"):
  size, _, task = argument.partition(",")
  layers, width, heads, length, batch_size = SIZES[size]
  tokenizer = use("data.tokenizer", path=f"{CORPUS}/tokenizer")
  config = use(
      "training.experiment",
      steps=1000,  # a study sets its own
      batch_size=batch_size,
      data=use("data.text", sources={"text": use("data.sources.files", paths=(f"{CORPUS}/train.jsonl",), valid_paths=(f"{CORPUS}/valid.jsonl",))}, tokenizer=tokenizer, length=length),
      model=use(
          "model.transformer", layers=layers, width=width, attention=use("model.attention.grouped", heads=heads, qk_norm=True), ffn=use("model.ffn.dense", activation="relu2"),
          residual_init="zero", queries=True, token_types=2, dtype="float32" if size == "small" else "bfloat16",
      ),
      objective=use("objectives.causal_lm"),
      optimizer=use("optim.optimizer", algorithm="muon", schedule=use("optim.schedule", peak=3e-3, warmup=50, shape="linear", end=0.0)),
      evaluate=use("training.evaluation", every=500, batch_size=64),
      checkpoint=use("training.checkpoint", every=1000, keep=1, keep_best=0),
      log=use("training.monitor", every=20, tensorboard=False),
  )  # fmt: skip
  if task:
    train, valid, fields, objective = TASKS[task]
    config.batch_size = 32
    config.data = use("data.records", train=(f"$RESEARCH_DATA/{train}",), valid=(f"$RESEARCH_DATA/{valid}",), fields=fields, tokenizer=tokenizer, length=64)
    config.objective = objective
    config.optimizer = use("optim.optimizer", schedule=use("optim.schedule", peak=1e-3, warmup=50, shape="linear", end=0.0))
  return config
