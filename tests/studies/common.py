"""A tiny study for the tests of this folder."""

from __future__ import annotations

import json
import os
import pathlib
import textwrap

CONFIG = """
  from research.core.config import use

  def get_config():
    return use(
        "training.experiment",
        steps=100,
        batch_size=4,
        data=use(
            "data.text",
            sources={"text": use("data.sources.synthetic", documents=40, words=(5, 20), lexicon=20)},
            tokenizer=use("data.tokenizer", kind="byte"),
            length=16,
        ),
        model=use("model.transformer", layers=1, width=16, attention=use("model.attention.grouped", heads=2)),
        objective=use("objectives.causal_lm"),
        optimizer=use("optim.optimizer", schedule=use("optim.schedule", peak=1e-2, warmup=10)),
        mesh=use("parallel.mesh", data=1),
        log=use("training.monitor", every=1, tensorboard=False),
    )
"""


def write_config(folder) -> str:
  path = os.path.join(folder, "tiny.py")
  pathlib.Path(path).write_text(textwrap.dedent(CONFIG))
  return path


def leave(run, root, **summary) -> None:
  """What a run of research.train would leave at its end, or at that of its rung, as far as a sweep reads it."""
  os.makedirs(run.folder(root), exist_ok=True)
  if "valid" in summary:
    with open(os.path.join(run.folder(root), "metrics.jsonl"), "a", encoding="utf-8") as file:
      file.write(json.dumps({"step": run.goal, "split": "valid", **summary["valid"]}) + "\n")
  plain = {"step": run.goal, "data_hash": run.data_hash, "config_hash": run.config_hash, **summary}
  pathlib.Path(run.folder(root), "summary.json").write_text(json.dumps(plain))
