"""A tiny experiment for each objective: the smallest model that it trains, and a few rows of the data component that feeds it.

Texts are synthetic; records, groups and images are files that are written when an experiment asks for them, so few that its twelve steps begin a third epoch.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from research.core.config import use
from research.core.overrides import resolve
from research.data.sources import synthetic
from research.model.attention import grouped
from research.objectives.base import Objective
from tests.contracts import common

COUNTS = {"train": 18, "valid": 7}  # records, groups or images of each split
TEXTS = dict(documents=40, words=(5, 20), lexicon=20)  # keys of data.sources.synthetic


def experiment(folder: str, name: str = "causal_lm", *overrides: str, **changes: Any):
  """A config of twelve steps, with dropout.

  Args:
    folder: where the files of its data are, and what is prepared of them; '' of data.text, which needs no files: the workdir.
    name: an objective, as the contracts name it, at their keys.
    overrides: as on the command line.
    changes: of the objective's keys.
  """
  objective = common.objective_of(name, **changes)
  small = dict(width=16, attention=grouped.Config(heads=2), dropout=0.1, deviation=0.02, **common.shallow(name))
  config = use(
    "training.experiment",
    steps=12,
    batch_size=4,
    data=data(objective, folder),
    model=common.stack(name, objective, **small),
    objective=use(common.component(name), **{**common.keys(name), **changes}),
    optimizer=use("optim.optimizer", schedule=use("optim.schedule", peak=1e-2, warmup=2)),
    checkpoint=use("training.checkpoint", every=4),
    evaluate=use("training.evaluation", every=6, batch_size=16),
    log=use("training.monitor", every=2, tensorboard=False),
  )
  return resolve(config, list(overrides))


def data(objective: Objective, folder: str):
  """The config of a data component that delivers the objective's rows."""
  spec = objective.element_spec
  axes = len(spec["tokens"].shape) if "tokens" in spec else 0
  for feed in FEEDS:
    if spec.keys() <= feed.fields and axes in feed.axes:
      return feed.config(objective, folder)
  rows = ", ".join(f"{name} {list(field.shape)}" for name, field in spec.items())
  raise AssertionError(f"no tiny data has rows of {rows}: add to FEEDS in tests/tiny.py a data component that delivers them, with a few rows for it to read")


# --- what feeds an objective -------------------------------------------------------------------------------------------------


def text(objective: Objective, folder: str):
  """Documents of a small language."""
  del objective
  return use("data.text", sources={"text": use("data.sources.synthetic", **TEXTS)}, directory=folder, **shared())


def pairs(objective: Objective, folder: str):
  """The same language in paragraphs of three sentences, a line each."""
  del objective
  lines = list(synthetic.make(synthetic.Config(**TEXTS)).documents("train"))
  path = written(folder, "paragraphs.txt", ("".join(lines[i : i + 3]) + "\n" for i in range(0, len(lines), 3)))
  source = use("data.sources.files", paths=(path,), documents="paragraph", valid_fraction=0.3)
  return use("data.pairs", sources={"text": source}, sentences="lines", passes=1, directory=folder, **shared())


def groups(objective: Objective, folder: str):
  """Lines of a table with as many texts as a row holds."""
  count = objective.element_spec["tokens"].shape[0]
  line = lambda i: "\t".join(f"{'abc'[i % 3]} {i} of {k}" for k in range(count)) + "\n"
  paths = {split: (written(folder, f"groups-{count}-{split}.tsv", map(line, range(number))),) for split, number in COUNTS.items()}
  return use("data.groups", **paths, directory=folder, **shared())


def labelled(objective: Objective, folder: str):
  """Two texts with a class, or with a score."""
  kind = "label" if objective.classes else "score"
  record = lambda i: {"first": f"{'abc'[i % 3]} {i}", "second": f"and {i % 5}", "label": f"class {i % (objective.classes or 1)}", "score": i % 3 / 2}
  return records(objective, folder, f"{kind}-{objective.classes}", record, "first", "second", kind)


def tagged(objective: Objective, folder: str):
  """Words with tags."""
  tag = lambda i: f"class {i % objective.classes}"
  record = lambda i: {"words": ["so", "it", "is"][: 1 + i % 3], "tags": [tag(i), tag(i + 1), tag(i)][: 1 + i % 3]}
  return records(objective, folder, f"tags-{objective.classes}", record, "words", "tags")


def translated(objective: Objective, folder: str):
  """Numbers and those that follow them."""
  return records(objective, folder, "translated", lambda i: {"source": f"{i} and", "target": f"{i + 1}"}, "source", "target")


def records(objective: Objective, folder: str, name: str, record: Callable[[int], dict[str, Any]], *fields: str):
  """Lines of JSON; their classes are as many as the objective's."""
  line = lambda i: json.dumps(record(i)) + "\n"
  paths = {split: (written(folder, f"{name}-{split}.jsonl", map(line, range(number))),) for split, number in COUNTS.items()}
  labels = tuple(f"class {i}" for i in range(objective.classes or 0))
  return use("data.records", **paths, fields={field: field for field in fields}, labels=labels, directory=folder, **shared())


def images(objective: Objective, folder: str):
  """Noise in files of its own, with captions and classes."""
  from PIL import Image

  height, width, channels = objective.element_spec["images"].shape
  rng, kinds, lines = np.random.default_rng(0), objective.classes or 1, []
  place = pathlib.Path(folder, f"images-of-{kinds}-{height}x{width}")
  place.mkdir(exist_ok=True)
  for i in range(sum(COUNTS.values())):
    Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8)).save(place / f"{i}.png")
    lines.append(json.dumps({"file": f"{i}.png", "caption": f"no {i}", "kind": f"class {i % kinds}"}) + "\n")
  written(str(place), "captions.jsonl", lines)
  share = COUNTS["valid"] / sum(COUNTS.values())
  keys = dict(height=height, width=width, channels=channels, label_key="kind", valid_fraction=share, directory=folder)
  return use("data.images", paths=(str(place),), **keys, **shared())


def shared() -> dict[str, Any]:
  """Keys that every data component has."""
  return dict(tokenizer=use("data.tokenizer", kind="byte"), length=common.LENGTH)


def written(folder: str, name: str, lines: Iterable[str]) -> str:
  """The path of a text file that holds these lines."""
  path = pathlib.Path(folder, name)
  path.write_text("".join(lines))
  return str(path)


class Feed(NamedTuple):
  config: Callable[[Objective, str], Any]  # (objective, folder) -> config of a data component
  fields: set[str]  # that its rows have
  axes: tuple[int, ...]  # of its tokens: 1, a text; 2, several; 0: an objective may leave them out


ROW = {"tokens", "segments"}
FEEDS = [  # the first that has all that an objective asks for
  Feed(text, ROW, (1,)),
  Feed(groups, ROW, (2,)),
  Feed(pairs, ROW | {"types", "is_next"}, (1,)),
  Feed(labelled, ROW | {"types", "label"}, (1, 2)),
  Feed(tagged, ROW | {"tags"}, (1,)),
  Feed(translated, ROW | {"source", "source_segments"}, (1,)),
  Feed(images, ROW | {"images", "label"}, (0, 1)),
]
