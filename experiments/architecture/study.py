"""Which parts of a small Transformer matter, for causal and for masked language modelling: positions × norm placement × feed-forward, a half fraction of 2⁴.

  python -m research.sweep experiments/architecture/study.py:causal_lm --workdir=runs/architecture/causal_lm --together=3
  python -m research.sweep experiments/architecture/study.py:masked_lm --workdir=runs/architecture/masked_lm --together=3

README.md beside this file tells what was predicted and what came out.
"""

from research.studies.design import fractional
from research.studies.study import Study

LEVELS = {
    "model.position": ["learned", "rotary"],
    "model.norm_place": ["pre", "post"],
    "model.ffn.gated": [False, True],
    "model.ffn.activation": ["gelu", "silu"],
}


def get_study(objective: str = "causal_lm"):
  return Study(
      name=f"architecture-{objective}",
      question=f"Which of positions, norm placement, gate and activation of the feed-forward network move the loss of a small {objective}, and do they help each other?",
      hypothesis="Rotary positions help most, and more where tokens are hidden around a place than where only the past is seen; post-norm hurts at this depth and warm-up a "
      "little; a gate helps although its inner width is a third smaller; the activation does not matter.",
      base="configs/shakespeare_char.py",
      common={"objective": objective, "evaluate.every": 300, "checkpoint.every": 10_000, "log.tensorboard": False},
      arms=fractional(LEVELS, "d=abc"),  # resolution IV: no main effect is confounded with another or with an interaction of two
      seeds=3,
      steps=600,
  )
