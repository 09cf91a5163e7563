"""The table and the curves of the runs that run.sh made: what each objective learned, and what it scores before and after.

  python -m experiments.learning.report [FOLDER]        (default: runs/learning) writes results.md and curves.png beside this file
"""

import json
import math
import pathlib
import re
import sys

from research.training.monitor import draw_losses

HERE = pathlib.Path(__file__).parent
SCORES = {  # evaluation -> how the scores that stand for it end, their name
    "minimal_pairs": ("overall", "BLiMP"),
    "similarity": ("spearman", "STS-B dev, Spearman × 100"),
    "retrieval": ("@1", "recall"),
    "classification": ("accuracy", "accuracy"),
}


def read(folder: pathlib.Path) -> dict:
  return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("config", "summary", "evaluations")} | {"folder": str(folder)}


def scores(evaluations: dict) -> list[str]:
  """'name: before → after', each with its interval."""
  found = []
  for key, before in evaluations.items():
    if match := re.fullmatch(r"((\w+)(?: of .*)?) at step 0", key):
      ending, name = SCORES[match[2]]
      text = lambda e: f"{e['value']:.1f} ({e['low']:.1f} … {e['high']:.1f})"
      after = evaluations[match[1]]["scores"]
      for score in (score for score in after if score.endswith(ending)):
        found.append(f"{name}{'' if score == ending else ' ' + score}: {text(before['scores'][score])} → {text(after[score])}")
  return found


def row(name: str, run: dict) -> str:
  summary = run["summary"]
  against = ", ".join(f"{value:.3f} ({base})" for base, value in baseline(run).items()) or "–"
  return f"| {name} | {summary['step']:,} | {summary['wall_seconds'] / 60:.1f} | {summary['valid']['loss']:.3f} | {against} | {'; '.join(scores(run['evaluations']))} |"


def baseline(run: dict) -> dict[str, float]:
  """Name -> loss of what a run is compared with: the frequencies of tokens or classes, or a guess among the partners in each batch of the evaluation."""
  summary, found = run["summary"], run["evaluations"].get("retrieval")
  if summary["baseline"]:
    return {summary["baseline"]: summary[summary["baseline"]]["loss"]}
  if found is None:
    return {}
  rows, batch = found["settings"]["rows"], run["config"]["evaluate"]["batch_size"]
  sizes = [min(batch, rows - start) for start in range(0, rows, batch)]
  return {"chance": sum(size * math.log(size) for size in sizes) / rows}


def draw(runs: dict, path: pathlib.Path) -> None:
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  columns = min(4, len(runs))
  figure, axes = plt.subplots(math.ceil(len(runs) / columns), columns, figsize=(3.6 * columns, 2.9 * math.ceil(len(runs) / columns)), layout="constrained", squeeze=False)
  for place, (name, run) in zip(axes.flat, runs.items()):
    draw_losses(place, run["folder"], baseline(run))
    place.set_title(name, fontsize=10)
  for place in axes.flat[len(runs) :]:
    place.set_visible(False)
  figure.supxlabel("step", fontsize=9)
  figure.supylabel("loss, nats", fontsize=9)
  figure.savefig(path, dpi=110)


def main(folder: str = "runs/learning") -> None:
  runs = {path.parent.name: read(path.parent) for path in sorted(pathlib.Path(folder).glob("*/evaluations.json"))}
  if not runs:
    raise SystemExit(f"'{folder}' holds no scored run: make one with bash experiments/learning/run.sh NAME.")
  head = "| objective | steps | minutes | validation loss | baseline | scores, before → after |\n| --- | --- | --- | --- | --- | --- |\n"
  (HERE / "results.md").write_text(head + "\n".join(row(name, run) for name, run in runs.items()) + "\n", encoding="utf-8")
  draw(runs, HERE / "curves.png")
  print((HERE / "results.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
  main(*sys.argv[1:])
