"""Folders as a sweep leaves them, without a model: each run's scores are what a function says."""

import json
import math
import random

from research.studies import design

STEPS = 100


def score(arm, block):
  """A loss in which the block matters more than any factor, so that only paired differences see them; every number differs a little."""
  noise = random.Random(repr((sorted(arm.items()), block))).gauss(0, 0.004)
  rate, width = math.log10(arm.get("optimizer.schedule.peak", 1e-3)), arm.get("model.width", 64)
  return 2.0 + 0.1 * (rate + 2.7) ** 2 - 0.03 * math.log2(width / 64) + 0.15 * math.sin(5 * block) + noise - 0.02 * (arm.get("model.norm") == "layer")


def write(path, tree):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(tree, indent=1, sort_keys=True))


def name_of(arm):
  return " ".join(f"{key.rpartition('.')[2]}={value:g}" if isinstance(value, float) else f"{key.rpartition('.')[2]}={value}" for key, value in arm.items())


def study(folder, sweep, blocks=(0, 1, 2), score=score, kind=None, skip=(), **changes):
  """Writes study.json and all runs but those of (arm's place, block) in `skip`; returns the dict of study.json.

  Args:
    kind: (arm) -> name of its objective.
    changes: keys of study.json that are otherwise than usual.
  """
  arms = [{"name": name_of(arm), "overrides": arm, "levels": arm, "parameters": 1000 * arm.get("model.width", 64), "steps": STEPS, "tokens": STEPS * 64,
           "flops": STEPS * 6000.0 * 64 * arm.get("model.width", 64)} for arm in sweep]  # fmt: skip
  plain = {
    "name": "widths", "question": "Does a wider model want a smaller step?", "hypothesis": "Yes: its best peak falls.", "base": "configs/x.py",
    "factors": design.factors(sweep), "arms": arms, "blocks": list(blocks), "budget": {"equal": "steps", "amount": STEPS},
    "metrics": [{"name": "valid.loss", "better": "lower"}], "decides": {"metric": "valid.loss", "baseline": arms[0]["name"]}, "tuning": None,
    "runs": [planned(place, arm, block) for block in blocks for place, arm in enumerate(arms)]}  # fmt: skip
  plain |= changes
  write(folder / "study.json", plain)
  for block in blocks:
    for place, arm in enumerate(arms):
      if (place, block) not in skip:
        run(folder / "runs" / f"{place:02x}{block:02x}", arm, block, score(arm["overrides"], block), kind(arm["overrides"]) if kind else "objectives.causal_lm")
  return plain


def planned(place, arm, block, **more):
  overrides = {**arm["overrides"], "steps": STEPS, "seed": block, "data.seed": block}
  return {"address": f"{place:02x}{block:02x}", "arm": arm["name"], "block": block, "overrides": overrides, "config_hash": f"c{place}{block}", "data_hash": "d0", "code": "e0",
          "command": f"python -m research.train --config=configs/x.py --workdir=here/runs/{place:02x}{block:02x} --config.seed={block}", **more}  # fmt: skip


def run(workdir, arm, block, loss, objective="objectives.causal_lm", stop=STEPS):
  """A workdir that has come to step `stop`."""
  config = {"name": "training.experiment", "seed": block, "steps": STEPS, "data": {"seed": block, "name": "data.text"}, "objective": {"name": objective}}
  write(workdir / "config.json", {**config, "changed": arm["overrides"]})
  lines = []
  for step in range(10, stop + 1, 10):
    lines.append({"step": step, "split": "train", "loss": loss + 2 * math.exp(-step / 20), "targets": 48.0})
    if step % 20 == 0:
      lines.append({"step": step, "split": "valid", "loss": loss + 2 * math.exp(-step / 20) * (1 - step / STEPS), "accuracy": 0.5})
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  if stop == STEPS:
    write(workdir / "summary.json", {
      "step": STEPS, "valid": {"loss": loss, "accuracy": 0.5 - loss / 10}, "parameters": arm["parameters"], "tokens": arm["tokens"], "flops": arm["flops"], "stopped_by": None,
      "wall_seconds": random.random() * 100, "tokens_per_second": 1000 * random.random(), "device": {"kind": "cpu", "count": 1}, "mesh": {"data": 1}, "config_hash": f"k{block}",
      "data_hash": "d0", "version": "0.1.0", "skipped": 0})  # fmt: skip
