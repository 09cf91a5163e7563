"""Which pretraining objective gives what, at equal operations? Causal, masked, masked with next-sentence, permutation, and contrastive from the masked one's weights.

  python -m experiments.objectives.corpus                                                       once
  python -m research.sweep experiments/objectives/study.py --workdir=runs/objectives/small
  python -m research.report runs/objectives/small

`study.py:middle` is for a GPU (--together=3), `study.py:base` for a cluster (--launcher=slurm): the same file, another size. What was predicted and what came out: README.md.
"""

from experiments.objectives.config import CORPUS, SIZES
from research.studies.study import Halving, Study, Tuning

FLOPS = {"small": 2.5e13, "middle": 2e15, "base": 1e19}  # of a run; middle: about four passes over the corpus, small one
CAPTIONS = {split: tuple(f"$RESEARCH_DATA/multi30k_captions/{split}.{i}.en.gz" for i in range(1, 6)) for split in ("train", "val")}
BLIMP = "minimal_pairs --data=$RESEARCH_DATA/blimp/blimp_23.tar.gz --pairs=100"
PROBE = "probing --data=$RESEARCH_DATA/sst2/train.tsv.gz"


def get_study(size: str = "small"):
  length = SIZES[size][3]
  pairs = {"data": "pairs", "data.sources.text.paths": (f"{CORPUS}/train.jsonl",), "data.sources.text.valid_paths": (f"{CORPUS}/valid.jsonl",),
           "data.tokenizer": "tokenizer", "data.tokenizer.path": f"{CORPUS}/tokenizer", "data.length": length, "data.passes": 4}  # fmt: skip
  captions = {"data": "groups", "data.train": CAPTIONS["train"], "data.valid": CAPTIONS["val"], "data.take": "drawn", "data.tokenizer": "tokenizer",
              "data.tokenizer.path": f"{CORPUS}/tokenizer", "data.length": 48, "objective.texts": 2, "batch_size": 64}  # fmt: skip
  return Study(
      name=f"objectives-{size}",
      question="One architecture, one corpus, one tokenizer, as many operations: what do models learn of grammar and of sentences from each pretraining objective?",
      hypothesis="Causal and permuted models, which are taught by every token or in every order, know most of grammar (BLiMP); masked ones least at so few tokens; next-sentence prediction "
      "costs grammar and gives sentences little; contrastive learning on captions gives the best vectors for similarity and loses what tagging needs.",
      base=f"experiments/objectives/config.py:{size}",
      arms=[
          {"name": "causal"},
          {"name": "masked", "objective": "masked_lm"},
          {"name": "masked + next sentence", "objective": "next_sentence", **pairs},
          {"name": "permutation", "objective": "permutation_lm"},
          {"name": "contrastive", "objective": "contrastive", **captions, "after": "masked", "evals": (PROBE,)},
      ],
      seeds=3,
      flops=FLOPS[size],
      metrics={"evaluations.minimal_pairs.overall": "higher", "evaluations.probing.accuracy": "higher"},
      tuning=Tuning((1e-3, 3e-3, 1e-2), metric="valid.loss", better="lower", blocks=(3,), halving=Halving(rungs=2, eta=4)),
      evals=(BLIMP, PROBE),
  )
