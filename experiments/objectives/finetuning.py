"""What the models of study.py reach when they are fine-tuned, beside one that starts at random: SST-2, WNUT-17 and STS-B.

  for task in sst2 wnut17 stsb; do
    python -m research.sweep experiments/objectives/finetuning.py:$task --workdir=runs/objectives/small-$task
    python -m research.report runs/objectives/small-$task
  done

Another size: `finetuning.py:sst2,middle`. Every model reads with attention to both sides, the causal one too.
"""

from research.studies.study import Halving, Study, Tuning

METRICS = {"sst2": "evaluations.classification.accuracy", "wnut17": "evaluations.tagging.f1", "stsb": "evaluations.classification.spearman"}
NAMES = {"sst2": "the sentiment of sentences (SST-2, accuracy)", "wnut17": "entities in noisy text (WNUT-17, F1)", "stsb": "how alike two sentences are (STS-B, Spearman)"}
STEPS = 300
PRETRAINED = ("causal", "masked", "masked + next sentence", "permutation", "contrastive")


def get_study(argument: str):
  task, _, size = argument.partition(",")
  size = size or "small"
  return Study(
      name=f"objectives-{size}-{task}",
      question=f"Which pretraining objective helps most with {NAMES[task]}, at equal operations of pretraining and equal steps of fine-tuning?",
      hypothesis="All help; the masked ones most with entities, the contrastive one most with similarity.",
      base=f"experiments/objectives/config.py:{size},{task}",
      common={"evaluate.every": STEPS // 3},
      arms=[{"name": "random"}, *({"name": name, "after": f"runs/objectives/{size}:{name}"} for name in PRETRAINED)],
      seeds=3,
      steps=STEPS,
      metrics={METRICS[task]: "higher"},
      tuning=Tuning((3e-4, 1e-3, 3e-3), metric="valid.loss", better="lower", blocks=(0,), halving=Halving(rungs=2, eta=4)),
      evals=("tagging" if task == "wnut17" else "classification",),
  )
