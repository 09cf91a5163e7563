"""Shows what a config's objective does to its text: the original, what the model reads, what it must predict, and who sees whom.

  python -m research.preview --config=configs/shakespeare_mlm.py [--rows=2 --length=48 --png=preview.png] [--config.key=value …]

Nothing is trained. Rows are those that the first training step would see.
"""

from __future__ import annotations

from research.core import startup

if __name__ == "__main__":
  startup.prepare()

import os
import tempfile

from absl import flags

from research.core import config as configs
from research.core.errors import UserError, command
from research.core.flags import parse

FLAGS = flags.FlagValues()
flags.DEFINE_string("config", None, "config file, with :argument where it takes one", flag_values=FLAGS)
flags.DEFINE_string("directory", None, "where the token dataset is kept (default: a temporary folder)", flag_values=FLAGS)
flags.DEFINE_integer("rows", 1, "rows to show", flag_values=FLAGS)
flags.DEFINE_integer("length", 40, "tokens of each row to show", flag_values=FLAGS)
flags.DEFINE_string("png", None, "also draw the first row's picture of who sees whom into this file", flag_values=FLAGS)


def main(arguments: list[str]) -> None:
  overrides = parse(arguments, FLAGS, __doc__)
  if not FLAGS.config:
    raise UserError("--config is missing: name a config file, such as configs/shakespeare_char.py.")
  for flag in ("rows", "length"):
    if FLAGS[flag].value < 1:
      raise UserError(f"--{flag}={FLAGS[flag].value}: show at least one.")
  if FLAGS.png and not os.path.isdir(os.path.dirname(FLAGS.png) or "."):
    raise UserError(f"--png={FLAGS.png}: there is no folder '{os.path.dirname(FLAGS.png)}'.")
  config = configs.load(FLAGS.config, overrides)
  with tempfile.TemporaryDirectory() as folder:
    print(preview(configs.typed(config), FLAGS.directory or folder, FLAGS.rows, FLAGS.length, FLAGS.png))


def preview(cfg, directory: str, rows: int, length: int, png: str | None) -> str:
  """The page as text; draws `png` where it is given."""
  import jax
  import numpy as np

  from research.data import stream
  from research.model.inputs import self_sight
  from research.objectives.base import corrupted

  data = configs.module(cfg.data)
  prepared = data.prepare(cfg.data, directory, lambda line: None)
  objective = configs.make(cfg.objective, prepared.vocab, cfg.data.length)
  batch = stream.batch(data.train_rows(prepared, cfg.data, objective.element_spec), 0, rows)
  corrupt_key, _ = jax.random.split(jax.random.split(jax.random.key(cfg.seed))[1])  # as the training step does
  example = jax.tree.map(np.asarray, corrupted(objective, corrupt_key, batch, 0))
  shown = lambda ids: [_printable(prepared.tokenizer.token(int(i))) for i in ids]
  labels = getattr(prepared, "labels", ())

  def told(term, targets):
    head = objective.heads.get(term)
    if head is None or head.kind != "vector":
      return shown(targets)
    return [labels[int(t)] if labels and objective.classes else f"{t:g}" for t in targets]

  lines = [f"objective {configs.component_name(cfg.objective)} · rows of {cfg.data.length} tokens"]
  lines += [f"  {name}: {field.meaning} {list(field.shape)}" for name, field in objective.element_spec.items()]
  for i in range(rows):
    original, seen = batch.rows["tokens"][i], example.inputs.tokens[i]
    lines += ["", f"row {int(batch.index[i, 1])}", "  original  " + " ".join(shown(original[:length]))]
    marks = [f"[{t}]" if original[j] != seen[j] else t for j, t in enumerate(shown(seen[:length]))]
    if example.inputs.source is not None:
      lines.append("  source    " + " ".join(shown(example.inputs.source.tokens[i][:length])))
    lines.append("  reads     " + " ".join(marks))
    for term, targets in example.targets.items():
      places = example.positions[term][i] if term in example.positions else np.arange(targets.shape[1])
      kept = [(p, t) for p, t, w in zip(places, told(term, targets[i]), example.weights[term][i]) if w > 0]
      some = "  ".join(f"{p}→{t}" for p, t in kept if p < length)
      lines.append(f"  predicts  ({term}: {len(kept)} targets) place→token  {some}")
  content = example.inputs.replace(queries=None)  # a second stream reads as its place does, without its own column
  mask = self_sight(jax.tree.map(lambda x: x[:1, : min(length, 24)], content)).mask()
  if mask is not None:
    lines += ["", f"who sees whom ({example.inputs.kind}; a line for each reader, # where it sees the column)"]
    lines += ["  " + "".join("#" if cell else "·" for cell in line) for line in np.asarray(mask)[0]]
  if png:
    whole = self_sight(jax.tree.map(lambda x: x[:1, :length], content)).mask()
    _draw(np.asarray(whole)[0], shown(example.inputs.tokens[0][:length]), png)
    lines.append(f"picture in {png}")
  return "\n".join(lines)


def _printable(token: str) -> str:
  return token.replace("\n", "⏎").replace(" ", "␣").replace("\t", "⇥") or "∅"


def _draw(mask, tokens: list[str], path: str) -> None:
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  size = max(4.0, 0.2 * len(tokens))
  figure, axes = plt.subplots(figsize=(size, size), layout="constrained")
  axes.imshow(mask, cmap="Blues", vmin=0, vmax=1.3)
  axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
  axes.set_yticks(range(len(tokens)), tokens, fontsize=7)
  axes.set_xlabel("is seen")
  axes.set_ylabel("reads")
  figure.savefig(path, dpi=110)
  plt.close(figure)


if __name__ == "__main__":
  command(main)
