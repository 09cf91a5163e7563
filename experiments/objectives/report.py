"""One table of all studies of a size, as far as they have come: results-SIZE.md beside this file, and BLiMP by paradigm with the published columns.

  python -m experiments.objectives.report [SIZE [FOLDER]]        (default: small runs/objectives)
"""

import gzip
import json
import math
import os
import pathlib
import sys

import numpy as np

from research.data.sources import files
from research.studies.analysis import t_interval
from research.studies.results import Results, read

HERE = pathlib.Path(__file__).parent
BLIMP, PROBE = "evaluations.minimal_pairs.overall", "evaluations.probing.accuracy"
TASKS = {"sst2": ("SST-2 dev, accuracy", "evaluations.classification.accuracy"), "wnut17": ("WNUT-17 dev, F1", "evaluations.tagging.f1"),
         "stsb": ("STS-B dev, Spearman × 100", "evaluations.classification.spearman")}  # fmt: skip


def cell(results: Results | None, arm: str, metric: str) -> str:
  """Mean and 95 % t interval over the blocks that have a score; `–` where none has."""
  if results is None or arm not in results.arms:
    return "–"
  values = np.array([run.score(metric) for run in results.of(arm)])
  values = values[np.isfinite(values)]
  if not len(values):
    return "–"
  interval = t_interval(values)
  spread = f" ({interval.low:.1f} … {interval.high:.1f})" if math.isfinite(interval.low) else ""
  return f"{interval.value:.1f}{spread}" + ("" if len(values) == len(results.blocks) else f", {len(values)} of {len(results.blocks)} seeds")


def table(head: list[str], rows: list[list[str]]) -> str:
  return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def published() -> dict[str, dict[str, float]]:
  with gzip.open(os.path.join(files.data_root(), "blimp", "models_summary_23.jsonl.gz"), "rt", encoding="utf-8") as file:
    return {line["UID"]: {name: 100 * line[name] for name in ("ngram", "lstm", "txl", "gpt2")} for line in map(json.loads, file)}


def main(size: str = "small", folder: str = "runs/objectives") -> None:
  studies = {task: read(path) if os.path.isfile(os.path.join(path := f"{folder}/{size}-{task}", "study.json")) else None for task in TASKS}
  pretraining = read(f"{folder}/{size}")
  head = ["arm", "steps", "tokens, million", "BLiMP", "probing SST-2", *(name for name, _ in TASKS.values())]
  rows = []
  for arm in [*pretraining.arms, *(["random"] if any(studies.values()) else [])]:
    own = [f"{pretraining.cost(arm, 'step'):,.0f}", f"{pretraining.cost(arm, 'tokens') / 1e6:.1f}"] if arm in pretraining.arms else ["0", "0"]
    rows.append([arm, *own, cell(pretraining, arm, BLIMP), cell(pretraining, arm, PROBE), *(cell(studies[task], arm, metric) for task, (_, metric) in TASKS.items())])
  columns = published()
  mean = {name: np.mean([row[name] for row in columns.values()]) for name in ("ngram", "lstm", "txl", "gpt2")}
  likely = [arm for arm in pretraining.arms if cell(pretraining, arm, BLIMP) != "–"]
  paradigms = [[uid, *(cell(pretraining, arm, f"evaluations.minimal_pairs.{uid}").partition(" ")[0].rstrip(",") for arm in likely), *(f"{row[name]:.1f}" for name in mean)] for uid, row in sorted(columns.items())]
  text = [
      table(head, rows),
      "Means over seeds with 95 % t intervals, – where there is none: not run, or not to be had of the arm. BLiMP: 100 pairs of each of 23 paradigms; `random`: fine-tuned without pretraining. Equal operations of pretraining in all arms; the "
      "contrastive arm has the masked arm's beside its own.",
      "BLiMP by paradigm, beside the columns of Warstadt et al. 2020 (all 1,000 pairs):",
      table(["paradigm", *likely, "n-gram", "LSTM", "Transformer-XL", "GPT-2"], [["mean", *(cell(pretraining, arm, BLIMP).partition(" ")[0].rstrip(",") for arm in likely), *(f"{value:.1f}" for value in mean.values())], *paradigms]),
  ]  # fmt: skip
  (HERE / f"results-{size}.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
  print("\n\n".join(text))


if __name__ == "__main__":
  main(*sys.argv[1:])
