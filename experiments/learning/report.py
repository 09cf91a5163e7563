"""The table and the curves of the runs that run.sh made: what each objective learned, and what it scores before and after.

  python -m experiments.learning.report [FOLDER]        (default: runs/learning) writes results.md and curves.png beside this file
"""

import json
import math
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).parent
SCORES = {  # evaluation -> how the scores that stand for it end, their name
    "minimal_pairs": ("overall", "BLiMP"),
    "similarity": ("spearman", "STS-B dev, Spearman × 100"),
    "retrieval": ("@1", "recall"),
    "classification": ("accuracy", "accuracy"),
}


def read(folder: pathlib.Path) -> dict:
  load = lambda name: json.loads((folder / name).read_text(encoding="utf-8"))
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
  return {"summary": load("summary.json"), "evaluations": load("evaluations.json"), "batch": load("config.json")["evaluate"]["batch_size"], "lines": lines}


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
  loss, base = summary["valid"]["loss"], baseline(run)
  against = f"{base[1]:.3f} ({base[0]})" if base else "–"
  return f"| {name} | {summary['step']:,} | {summary['wall_seconds'] / 60:.1f} | {loss:.3f} | {against} | {'; '.join(scores(run['evaluations']))} |"


def baseline(run: dict) -> tuple[str, float] | None:
  """(name, loss) of what a run is compared with: the frequencies of tokens or classes, or a guess among the partners in a batch."""
  summary = run["summary"]
  if summary["baseline"]:
    return summary["baseline"], summary[summary["baseline"]]["loss"]
  return ("chance", math.log(run["batch"])) if any(key.startswith("retrieval") for key in run["evaluations"]) else None


def draw(runs: dict, path: pathlib.Path) -> None:
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  columns = min(4, len(runs))
  figure, axes = plt.subplots(math.ceil(len(runs) / columns), columns, figsize=(3.6 * columns, 2.9 * math.ceil(len(runs) / columns)), layout="constrained", squeeze=False)
  for place, (name, run) in zip(axes.flat, runs.items()):
    for split, style in (("train", dict(alpha=0.4, linewidth=0.8)), ("valid", dict(linewidth=2, marker="o", markersize=3))):
      points = [(line["step"], line["loss"]) for line in run["lines"] if line["split"] == split]
      place.plot(*zip(*points), label=split, **style)
    if base := baseline(run):
      place.axhline(base[1], color="grey", linestyle=":", label=f"{base[0]} {base[1]:.2f}")
    place.set_title(name, fontsize=10)
    place.grid(alpha=0.25)
    place.legend(frameon=False, fontsize=8)
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
