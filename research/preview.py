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
from research.core.overrides import load

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
  config = load(FLAGS.config, overrides)
  with tempfile.TemporaryDirectory() as folder:
    print(preview(configs.typed(config), FLAGS.directory or folder, FLAGS.rows, FLAGS.length, FLAGS.png))


def preview(cfg, directory: str, rows: int, length: int, png: str | None) -> str:
  """The page as text; draws `png` where it is given."""
  import jax
  import numpy as np

  from research.data import stream
  from research.objectives.base import corrupted

  data = configs.module(cfg.data)
  prepared = data.prepare(cfg.data, directory, lambda line: None)
  objective = configs.make(cfg.objective, prepared.vocab, cfg.data.length)
  batch = stream.batch(data.train_rows(prepared, cfg.data, objective.element_spec), 0, rows)
  corrupt_key, _ = jax.random.split(jax.random.split(jax.random.key(cfg.seed))[1])  # as the training step does
  example = jax.tree.map(np.asarray, jax.jit(lambda batch: corrupted(objective, corrupt_key, batch, 0))(batch))
  labels = getattr(prepared, "labels", ()) if objective.classes else ()
  spell = lambda ids: [_printable(prepared.tokenizer.token(int(i))) for i in ids]

  lines = [f"objective {configs.component_name(cfg.objective)} · rows of {cfg.data.length} tokens"]
  lines += [f"  {name}: {field.meaning} {list(field.shape)}" for name, field in objective.element_spec.items()]
  for i in range(rows):
    row = jax.tree.map(lambda x, i=i: x[i], example)
    lines += ["", f"row {int(batch.index[i, 1])}", *_inputs({name: values[i] for name, values in batch.rows.items()}, row.inputs, spell, length)]
    for term, targets in row.targets.items():
      head = objective.heads.get(term)
      numbers = head is not None and head.kind == "vector"
      told = [labels[int(t)] if labels else f"{t:g}" for t in targets] if numbers else spell(targets)
      places = row.positions.get(term, np.arange(len(targets)))
      kept = [(place, target) for place, target, weight in zip(places, told, row.weights[term]) if weight > 0]
      some = "  ".join(f"{place}→{target}" for place, target in kept if place < length)
      lines.append(f"  predicts  ({term}: {len(kept)} targets) place→{'answer' if numbers else 'token'}  {some}")
    if not row.targets:
      lines.append("  predicts  no token: the row is told apart from the others of its batch")
  first = jax.tree.map(lambda x: x[0], example.inputs)
  if first.tokens is not None:
    text = first if first.tokens.ndim == 1 else jax.tree.map(lambda x: x[0], first)  # of several texts the first
    small, queries = _sight(text, min(length, 24))
    lines += ["", f"who sees whom ({text.kind}; a line for each reader, # where it sees the column)"]
    lines += ["  " + "".join("#" if cell else "·" for cell in line) for line in small]
    if queries:
      lines += ["and the queries of the second stream, by the place that each asks about"]
      lines += [f"  {place:>3}  " + "".join("#" if cell else "·" for cell in line) for place, line in queries]
  if png:
    mask = None if first.tokens is None else _sight(text, length)[0]
    _draw(png, mask, None if mask is None else spell(text.tokens[:length]), first.images)
    lines.append(f"picture in {png}")
  return "\n".join(lines)


def _inputs(row, inputs, spell, length: int) -> list[str]:
  """What the data delivers of a row, and what the model reads of it."""
  lines = []
  if "tokens" in row:
    original, seen = row["tokens"], inputs.tokens
    several = seen.ndim == 2  # texts that belong together, or one text seen several times
    for i, tokens in enumerate(seen if several else [seen]):
      source = original if original.ndim == 1 else original[i]
      number = f" {i + 1}" if several else ""
      lines.append(f"  {'original' + number:<10}" + " ".join(spell(source[:length])))
      if inputs.source is not None:
        lines.append("  source    " + " ".join(spell(inputs.source.tokens[:length])))
      marks = [f"[{t}]" if source[j] != tokens[j] else t for j, t in enumerate(spell(tokens[:length]))]
      lines.append(f"  {'reads' + number:<10}" + " ".join(marks))
  if inputs.order is not None:
    lines.append("  order     " + " ".join(str(int(place)) for place in inputs.order[:length]))
  if inputs.images is not None:
    shape = " × ".join(map(str, inputs.images.shape))
    lines.append(f"  image     {' × '.join(map(str, row['images'].shape))} bytes, read as {shape} numbers of mean {inputs.images.mean():.2f} and deviation {inputs.images.std():.2f}")
  return lines


def _sight(inputs, length: int):
  """Who sees whom among the first places of one row, bool [length, length]; and of each query for one of them its place and whom it sees."""
  import jax
  import numpy as np

  from research.model.inputs import self_sight

  mask = self_sight(jax.tree.map(lambda x: x[None], inputs.replace(images=None))).mask()
  L = len(inputs.tokens)
  whole = np.ones((L, L), bool) if mask is None else np.asarray(mask)[0]
  asked = [] if inputs.queries is None else [(int(place), whole[L + i, :length]) for i, place in enumerate(inputs.queries) if place < length]
  return whole[:length, :length], asked


def _printable(token: str) -> str:
  return token.replace("\n", "⏎").replace(" ", "␣").replace("\t", "⇥") or "∅"


def _draw(path: str, mask, tokens: list[str] | None, image) -> None:
  """Who sees whom, and beside it the image as the model reads it, where there are such."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  parts = [part for part, there in (("mask", mask is not None), ("image", image is not None)) if there]
  size = max(4.0, 0.2 * len(tokens or ()))
  figure, axes = plt.subplots(1, len(parts), figsize=(size * len(parts), size), layout="constrained", squeeze=False)
  for part, panel in zip(parts, axes[0]):
    if part == "image":
      scaled = (image - image.min()) / max(float(image.max() - image.min()), 1e-9)
      panel.imshow(scaled if scaled.shape[-1] == 3 else scaled[..., 0], cmap="gray")
      panel.set_title("the image, on a scale of its own", fontsize=8)
      continue
    panel.imshow(mask, cmap="Blues", vmin=0, vmax=1.3)
    panel.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
    panel.set_yticks(range(len(tokens)), tokens, fontsize=7)
    panel.set_xlabel("is seen")
    panel.set_ylabel("reads")
  figure.savefig(path, dpi=110)
  plt.close(figure)


if __name__ == "__main__":
  command(main)
