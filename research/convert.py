"""Hugging Face checkpoints in and out.

  python -m research.convert import FOLDER --workdir=DIR [--length=512 --param_dtype=float32]
  python -m research.convert export --workdir=DIR --folder=OUT [--family=llama --step=2000]

`import` reads FOLDER (config.json, safetensors and the tokenizer's files) and makes a workdir that `evaluate` and `generate` take as any run's.
Training starts from it in a workdir of its own: `python -m research.train --config=DIR --workdir=NEW --config.init_from=DIR`.
`export` writes a checkpoint of any run as a folder that transformers loads.
"""

from __future__ import annotations

from research.core import startup

if __name__ == "__main__":
  startup.quiet()  # a heap that is not given back would hold a large model twice

import json
import os
import shutil
from collections.abc import Callable
from typing import Any

from absl import flags

from research.core.errors import UserError, command, nearest
from research.core.flags import parse

FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "folder of the run: made by import, read by export", flag_values=FLAGS)
flags.DEFINE_string("folder", None, "export: the folder to write", flag_values=FLAGS)
flags.DEFINE_integer("length", None, "import: tokens of a row, data.length (default: what the model was made for, at most 1024)", flag_values=FLAGS)
flags.DEFINE_enum("param_dtype", None, ["float32", "bfloat16"], "import: type of the parameters (default: as stored)", flag_values=FLAGS)
flags.DEFINE_string("family", None, "export: such as llama (default: the one that was imported, or the only one that fits)", flag_values=FLAGS)
flags.DEFINE_integer("step", None, "export: which checkpoint (default: the latest)", flag_values=FLAGS)

LENGTH = 1024  # rows of a longer context would cost more than they show, unless asked for
GENERATION = "generation_config.json"  # start, stop and forbidden tokens, which research.generate heeds
IN_FLIGHT = 100_000_000  # bytes of a checkpoint being written, so that a large model is not in memory twice
FIELDS = {  # of the records that an objective trains on, as data.records has them
    "objectives.classification": {"first": 0, "label": 1},
    "objectives.tagging": {"words": 0, "tags": -1},
    "objectives.seq2seq": {"source": 0, "target": 1},
}
READING = "objectives.reading"
MORE = {"data.records": " --config.data.train=FILE --config.data.valid=FILE", "data.images": " --config.data.paths=FOLDER"}  # to be said when training
REGRESSION = {"first": 0, "second": 1, "score": 2}
OWN = ("architectures", "model_type", "dtype", "torch_dtype", "transformers_version")  # keys of config.json that an export writes anew


def main(arguments: list[str]) -> None:
  way, rest = (arguments[0], list(arguments[1:])) if arguments and not arguments[0].startswith("-") else ("", list(arguments))
  if way not in ("import", "export") and not {"--help", "-h", "-help"} & set(rest):
    raise UserError(f"say import or export: python -m research.convert import FOLDER --workdir=DIR.{nearest(way, ('import', 'export')) if way else ''}")
  source = rest.pop(0) if way == "import" and rest and not rest[0].startswith("-") else None
  if parse(rest, FLAGS, __doc__):
    raise UserError("convert takes no --config.… flags: set them when you train from what it made.")
  if not FLAGS.workdir:
    raise UserError("--workdir is missing: name the folder of " + ("the run to make." if way == "import" else "a run."))
  if way == "import":
    if source is None:
      raise UserError("import needs the folder to read: python -m research.convert import FOLDER --workdir=DIR.")
    import_folder(source, FLAGS.workdir, FLAGS.length, FLAGS.param_dtype)
    return
  if not FLAGS.folder:
    raise UserError("--folder is missing: name the folder to write.")
  export_folder(FLAGS.workdir, FLAGS.folder, FLAGS.family, FLAGS.step)


def import_folder(folder: str, workdir: str, length: int | None = None, param_dtype: str | None = None, say: Callable[[str], None] = print) -> None:
  """Makes a workdir of a folder of Hugging Face: config.json, the tokenizer, and a checkpoint at step 0 without an optimizer's state.

  Raises:
    UserError: as research.hf.load; or the workdir holds a run, the folder has no tokenizer, or nothing here trains the model's head.
  """
  import jax
  import jax.numpy as jnp

  from research.core import config as configs
  from research.core.overrides import resolve
  from research.core.types import TrainState
  from research.data import imported
  from research.data import tokenizer as tokenizers
  from research.hf import loading, processor
  from research.model import transformer
  from research.objectives import reading
  from research.training.checkpoint import FOLDER, Checkpoints
  from research.training.restore import TOKENIZER

  for name in ("config.json", FOLDER):
    if os.path.exists(os.path.join(workdir, name)):
      raise UserError(f"'{workdir}' holds a run already: name a new folder with --workdir.")
  loaded = loading.load_model(folder, param_dtype=param_dtype)
  described = loaded.described
  objective, keys = described.objective, processor.applied(folder, described.objective_keys)
  if objective in (None, READING) and isinstance(described.cfg, transformer.Config) and not described.cfg.encoder_layers:
    objective, keys = READING, {**keys, **reading.keys(described.heads)}
  if objective is None:
    raise UserError(f"no objective here trains or scores what '{folder}' holds ({loaded.config.get('architectures')}), so it makes no workdir; in Python, "
                    "research.hf.load(folder) gives its model.")  # fmt: skip
  if length is not None and not 2 <= length <= described.length:
    raise UserError(f"--length={length}: the model was made for rows of 2 to {described.length} tokens.")
  if getattr(described.cfg, "patches", None) is None:
    tokenizer = imported.load(folder, size=described.vocab_size)
  else:  # images alone: a run's folder has a vocabulary, of which nothing is read
    tokenizer = tokenizers.train(tokenizers.Config(kind="byte"), ())

  tokens = os.path.join(os.path.abspath(workdir), TOKENIZER)
  labels = _class_names(loaded.config, described.heads)
  common = dict(length=length or min(described.length, LENGTH), tokenizer=configs.use("data.tokenizer", path=tokens))
  data = _data(objective, keys, labels, tokenizer, common)
  if "start" in keys:
    keys["start"] = _start(loaded.config, tokenizer, keys["start"])
  config = configs.use("training.experiment", model=configs.flatten(described.cfg), objective=configs.use(objective, **keys), data=data)
  config = resolve(config)
  made = configs.make(configs.typed(config).objective, tokenizer.vocab, data.length)
  _check_heads(made.heads, described.heads, objective)

  os.makedirs(workdir, exist_ok=True)
  tokenizer.save(tokens)
  state = TrainState(jnp.zeros((), jnp.int32), loaded.params, {}, {}, jax.random.key(config.seed))
  meta = {"step": 0, "config": json.loads(configs.record(config)), "config_hash": configs.digest(config), "data_hash": None,
          "tokenizer": tokenizer.digest, "labels": list(labels), "batch_size": config.batch_size, "wall_seconds": 0.0,
          "imported": {"family": loaded.family.name, "config": loaded.config}}  # fmt: skip
  largest = max(leaf.nbytes for leaf in jax.tree.leaves(state.params))
  checkpoints = Checkpoints(workdir, configs.typed(config).checkpoint, in_flight=max(IN_FLIGHT, largest + 1))
  checkpoints.save(state, meta, None)
  checkpoints.close()
  if os.path.isfile(os.path.join(folder, GENERATION)):
    shutil.copyfile(os.path.join(folder, GENERATION), os.path.join(workdir, GENERATION))
  with open(os.path.join(workdir, "config.json"), "w", encoding="utf-8") as file:  # last: what was cut off in between is no run
    file.write(configs.record(config))
  _report(folder, workdir, loaded, objective, data, made.element_spec, tokenizer.vocab.size, say)


def _report(folder: str, workdir: str, loaded, objective: str, data: Any, element_spec, vocab_size: int, say: Callable[[str], None]) -> None:
  """Says what was imported, what was left out and why, and how to go on."""
  from research.core import config as configs
  from research.hf import loading

  report, described = loaded.report, loaded.described
  say(f"{loaded.family.name} of '{folder}': {report.read} tensors read, {report.parameters:,} parameters, {report.bytes / 1e6:,.1f} MB "
      f"({loading.param_types(loaded.params)})")  # fmt: skip
  reasons: dict[str, list[str]] = {}
  for name, why in report.ignored.items():
    reasons.setdefault(why, []).append(name)
  for why, names in reasons.items():
    say(f"not needed: '{names[0]}'{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {why}")
  kind = configs.component_name(configs.typed(data))
  if kind == "data.images":
    reads = f"images of {data.height} × {data.width} × {data.channels}" + (" and captions" if "text" in described.heads else "")
  elif kind == "data.records":
    reads = "labelled records"
  elif kind == "data.pairs":
    reads = "pairs of texts"
  else:
    marks = [name for name, on in (("bos before", data.prepend_bos), ("eos after", data.append_eos)) if on]
    reads = f"{' and '.join(marks) or 'nothing around'} each document"
  reads += f" · classes {', '.join(data.labels[:20])}" if getattr(data, "labels", ()) else ""
  rows = f"vocabulary {vocab_size} · rows of {data.length} tokens" if "tokens" in element_spec else "no text"
  say(f"{rows} (the model was made for {described.length} places) · {reads} · {objective}")
  train = f"to train: python -m research.train --config={workdir} --workdir=NEW --config.init_from={workdir}{MORE.get(kind, '')}"
  more = " --config.objective=NAME (no objective here trains the heads it has; those of NAME start at random)" if objective == READING else ""
  say(f"saved as step 0 of '{workdir}'; {train}{more}")


def _data(objective: str, keys: dict[str, Any], labels: tuple[str, ...], tokenizer, common: dict[str, Any]) -> Any:
  """The data component that delivers what the objective asks for; which files, nobody knows yet."""
  from research.core.config import use

  if objective in FIELDS:
    return use("data.records", fields=REGRESSION if keys.get("classes") == 1 else FIELDS[objective], labels=labels, **common)
  if objective == "objectives.next_sentence":
    return use("data.pairs", **common)
  pixels = keys.get("pixels", keys)
  if "height" in pixels:
    return use("data.images", labels=labels, **{key: pixels[key] for key in ("height", "width", "channels")}, **common)
  return use("data.text", append_eos="eos" in tokenizer.special, prepend_bos=_begins_with_bos(tokenizer), **common)


def _class_names(config: dict[str, Any], heads) -> tuple[str, ...]:
  """The names of a classifier's classes by config.json's id2label; none where they are only numbered (LABEL_0), or there is no classifier."""
  names = {str(i): str(name) for i, name in (config.get("id2label") or {}).items()}
  count = next((head.outputs for name, head in heads.items() if name in ("class", "tags")), 0)
  found = tuple(names.get(str(i), "") for i in range(count))
  return () if count < 2 or any(name in ("", f"LABEL_{i}") for i, name in enumerate(found)) or len(set(found)) < count else found


def _start(config: dict[str, Any], tokenizer, by_default: str) -> str:
  """The name of the token that the decoder reads first."""
  number = config.get("decoder_start_token_id")
  if number is None:
    return by_default
  names = [name for name, i in tokenizer.special.items() if i == number]
  if not names:
    raise UserError(f"decoder_start_token_id in config.json is {number}, which is no special token of the vocabulary: mend config.json, or bring its tokenizer.")
  return by_default if by_default in names else names[0]


def _begins_with_bos(tokenizer) -> bool:
  """Whether the published tokenizer puts bos before a text; where its files do not tell, it does not."""
  try:
    around = tokenizer.wrap([])
  except UserError:
    return False
  return len(around) > 0 and int(around[0]) == tokenizer.special.get("bos")


def _check_heads(wanted, found, objective: str) -> None:
  for name, head in found.items():
    if wanted.get(name) != head:
      raise UserError(f"the model has a head '{name}' ({head}), which {objective} does not read as such ({wanted.get(name, 'absent')}): import it with research.hf.load.")


def export_folder(workdir: str, folder: str, family: str | None = None, step: int | None = None, say: Callable[[str], None] = print) -> None:
  """Writes a checkpoint of a run as a folder of Hugging Face: config.json, safetensors and, where it was imported, its tokenizer's files.

  Raises:
    UserError: no run there, no family has a form for its model, or the folder holds a model already.
  """
  from research.core.trees import size
  from research.hf import loading
  from research.hf.config import HARMLESS
  from research.training.checkpoint import Checkpoints
  from research.training.restore import TOKENIZER, restore

  run = restore(workdir, step)
  origin: dict[str, Any] = Checkpoints(workdir).meta(run.step).get("imported") or _origin(run.cfg.init_from)
  more = {key: value for key, value in origin.get("config", {}).items() if key in HARMLESS and key not in OWN and value is not None}
  for name in ("bos", "eos", "pad"):
    if name in run.tokenizer.special:
      more.setdefault(f"{name}_token_id", int(run.tokenizer.special[name]))
  if any(name in ("class", "tags") for name in run.objective.heads):
    names = run.labels or tuple(f"LABEL_{i}" for i in range(run.objective.classes or 1))
    more |= {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {name: i for i, name in enumerate(names)}}
  written = loading.export(folder, run.model, run.params, family or origin.get("family"), more=more)
  if os.path.isfile(os.path.join(workdir, GENERATION)):
    shutil.copyfile(os.path.join(workdir, GENERATION), os.path.join(folder, GENERATION))
    written.append(GENERATION)
  say(f"step {run.step} of '{workdir}': {size(run.params):,} parameters written to '{folder}' ({', '.join(written)})")
  if run.tokenizer.kind == "imported":
    tokens = os.path.join(workdir, TOKENIZER)
    names = [name for name in sorted(os.listdir(tokens)) if name != "vocabulary.json"]
    for name in names:
      shutil.copyfile(os.path.join(tokens, name), os.path.join(folder, name))
    say(f"tokenizer: {', '.join(names)}")
  else:
    say("without a tokenizer: this run's vocabulary has ids of its own, which its tokenizer.json does not know; encode with research.data.tokenizer")


def _origin(init_from: str | None) -> dict[str, Any]:
  """The import that a run started from, where its folder is still there."""
  from research.training.checkpoint import Checkpoints

  try:
    return {} if init_from is None else Checkpoints(init_from).meta().get("imported", {})
  except UserError:
    return {}


if __name__ == "__main__":
  command(main)
