"""Scores a run's checkpoint.

  python -m research.evaluate --workdir=runs/char [--evals=likelihood] [--data=my_text.txt] [--step=2000]

  loss        the objective's loss and metrics over the validation split, as in training
  likelihood  loss, perplexity and bits per byte of the validation split or of --data, with 95 % intervals; of a masked LM the pseudo-likelihood
  similarity  Spearman's correlation × 100 between the cosine of two texts' vectors and the score that people gave them, for --data=pairs.csv
              (or .tsv, also .gz): two texts and a score on each line
  probing     accuracy of a linear classifier on the frozen model's vectors, for --data=labelled.tsv: a text and its label on each line (.csv and
              .jsonl too, also .gz); it is fitted to four fifths of the file and scored on the others
  minimal_pairs  share in percent of the pairs whose good sentence is the more probable one, for --data=pairs.jsonl in BLiMP's format (also a
              folder or a .tar.gz of such files)
  classification  accuracy, F1 and Matthews' correlation of classes; Pearson's and Spearman's correlation of numbers; all × 100
  tagging     precision, recall and F1 × 100 of entities, and with IOB2 alone (strict)
  retrieval   recall@1, 5 and 10 in percent: of all captions the image's own, and the reverse; of all texts the anchor's positive

The last three score the validation split or --data, a file of records like the run's own (config keys data.format and data.fields).
Prints a table and adds the scores to evaluations.json in the workdir.
"""

from __future__ import annotations

from research.core import startup

if __name__ == "__main__":
  startup.prepare()

import json
import os
from typing import Any

from absl import flags

from research.core.errors import UserError, command, nearest
from research.core.flags import parse

FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "folder of the run", flag_values=FLAGS)
flags.DEFINE_list("evals", None, "what to score, of the list above (default: what fits the objective)", flag_values=FLAGS)
flags.DEFINE_string("data", None, "a text file to score instead of the validation split, or what similarity, probing and minimal_pairs read", flag_values=FLAGS)
flags.DEFINE_integer("pairs", None, "minimal_pairs: of each paradigm the first so many (default: all)", flag_values=FLAGS)
flags.DEFINE_integer("step", None, "which checkpoint (default: the latest)", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 32, "rows at a time; the scores do not depend on it", flag_values=FLAGS)

EVALS = ("loss", "likelihood", "similarity", "probing", "minimal_pairs", "classification", "tagging", "retrieval")
OWN_DATA = {  # what the evaluations read that score a file of their own
    "similarity": "a .csv or .tsv file (also .gz) with two texts and a score on each line",
    "probing": "a .tsv, .csv or .jsonl file (also .gz) with a text and a label on each line",
    "minimal_pairs": "a .jsonl file (also .gz) with sentence_good and sentence_bad on each line, a folder of such files or a .tar.gz",
}


def main(arguments: list[str]) -> None:
  if parse(arguments, FLAGS, __doc__):
    raise UserError("evaluate takes no --config.… flags: the run's own config.json holds.")
  if not FLAGS.workdir:
    raise UserError("--workdir is missing: name the folder of a run.")
  if FLAGS.batch_size < 1:
    raise UserError(f"--batch_size={FLAGS.batch_size}: take at least one row at a time.")
  for name in FLAGS.evals or ():
    if name not in EVALS:
      raise UserError(f"no evaluation '{name}'.{nearest(name, EVALS)}")
  for name in FLAGS.evals or ():
    if name in OWN_DATA and (not FLAGS.data or len(FLAGS.evals) > 1):
      raise UserError(f"--evals={name} is scored alone, with --data=FILE: {OWN_DATA[name]}.")
  startup.compilation_cache(os.path.join(FLAGS.workdir, "compilation_cache"))
  if FLAGS.pairs is not None and FLAGS.pairs < 1:
    raise UserError(f"--pairs={FLAGS.pairs}: take at least one pair of each paradigm.")
  scores = evaluate(FLAGS.workdir, FLAGS.evals, FLAGS.data, FLAGS.step, FLAGS.batch_size, FLAGS.pairs)
  wide = max(18, *(len(score) + 2 for entry in scores.values() for score in entry["scores"]))
  print(f"{'evaluation':<16}{'score':<{wide}}{'value':>10}  95 % interval")
  for name, entry in scores.items():
    for score, v in entry["scores"].items():
      interval = f"{v['low']:.4f} … {v['high']:.4f}" if "low" in v else ""
      print(f"{name:<16}{score:<{wide}}{v['value']:>10.4f}  {interval}".rstrip())
  for name, entry in scores.items():
    print(f"{name}: {', '.join(f'{key} {value}' for key, value in entry['settings'].items())}")
  print(f"added to {os.path.join(FLAGS.workdir, 'evaluations.json')}")


def evaluate(workdir: str, evals: list[str] | None, data: str | None, step: int | None, batch_size: int, most: int | None = None) -> dict[str, Any]:
  """Runs the evaluations and records them; returns name -> {'scores': {score: {'value', …}}, 'settings': …}."""
  import jax

  from research.core import config as configs
  from research.evals import classification, likelihood, loss, minimal_pairs, probing, retrieval, similarity, tagging, text_vectors
  from research.parallel import mesh as meshes
  from research.training.restore import restore

  reader = {"similarity": similarity.read_pairs, "probing": probing.read_records, "minimal_pairs": minimal_pairs.read_pairs}.get((evals or [""])[0])
  pairs = None if reader is None else reader(data)
  if reader is minimal_pairs.read_pairs and most is not None:
    pairs = minimal_pairs.first(pairs, most)
  run = restore(workdir, step)
  evals = evals or [_fitting(run.objective)]
  component, spec = configs.module(run.cfg.data), run.objective.element_spec
  labels = run.labels
  if pairs is not None:
    rows = pairs
  elif data is None:
    prepared = component.prepare(run.cfg.data, os.path.join(workdir, "data"))
    rows, labels = component.valid_rows(prepared, run.cfg.data, spec), labels or getattr(prepared, "labels", ())
  elif not hasattr(component, "file_rows"):
    raise UserError(f"--data={data}: {configs.component_name(run.cfg.data)} reads no single file; leave it out to score the validation split.")
  else:
    rows = component.file_rows(run.tokenizer, run.cfg.data, data, spec, labels)
  results = {}
  for name in evals:
    more = {}
    if name in ("similarity", "probing"):
      module = similarity if name == "similarity" else probing
      around = text_vectors.surroundings(run.tokenizer, run.cfg.data)
      scores, more = module.make(module.Config(batch_size), run.model, run.objective.causal, run.tokenizer, around, run.cfg.data.length)(run.params, pairs)
    elif name == "minimal_pairs":
      build = lambda length: configs.make(run.cfg.objective, run.tokenizer.vocab, length)
      around = minimal_pairs.surroundings(run.tokenizer, run.cfg.data)
      evaluation = minimal_pairs.make(minimal_pairs.Config(batch_size), build, run.tokenizer, around, run.cfg.data.length)
      scores, more = evaluation(run.apply, run.params, pairs)
    elif name == "likelihood":
      scores = likelihood.make(likelihood.Config(batch_size), run.objective, run.tokenizer.vocab)(run.apply, run.params, rows)
    elif name == "classification":
      scores = classification.make(classification.Config(batch_size), run.objective)(run.apply, run.params, rows)
    elif name == "tagging":
      scores = tagging.make(tagging.Config(batch_size), run.objective, labels or getattr(run.cfg.data, "labels", ()))(run.apply, run.params, rows)
    elif name == "retrieval":
      scores, more = retrieval.make(retrieval.Config(batch_size), run.objective)(run.apply, run.params, rows)
    else:
      mesh = meshes.make(meshes.Config(data=1), jax.devices()[:1])
      values = loss.run(jax.jit(loss.make_step(run.apply, run.objective)), run.params, run.objective, rows, batch_size, mesh,
                        jax.random.key(run.cfg.seed + 1), run.step)  # fmt: skip
      scores = {score: {"value": value} for score, value in values.items()}
    results[name] = {"scores": scores, "settings": {"step": run.step, "data": data or "validation split", "rows": len(rows), **({"cut": rows.cut} if hasattr(rows, "cut") else {}),
                                              **({"pairs_each": most} if most is not None else {}), **more}}  # fmt: skip
  path = os.path.join(workdir, "evaluations.json")
  kept = _kept(path)
  for name, entry in results.items():
    kept[name + (f" of {data}" if data else "") + (f" at step {step}" if step is not None else "")] = entry
  with open(path + ".tmp", "w", encoding="utf-8") as file:
    json.dump(kept, file, indent=2)
  os.replace(path + ".tmp", path)
  return results


def _kept(path: str) -> dict[str, Any]:
  """What earlier evaluations have left. A file that cannot be read is put aside, and it is said."""
  try:
    with open(path, encoding="utf-8") as file:
      return dict(json.load(file))
  except FileNotFoundError:
    return {}
  except (ValueError, TypeError):
    os.replace(path, path + ".damaged")
    print(f"'{path}' could not be read: it is '{path}.damaged' now, and earlier evaluations are to be made again")
    return {}


def _fitting(objective) -> str:
  """The evaluation that fits an objective best."""
  if objective.partners:
    return "retrieval"
  if objective.predict is not None:
    return "tagging" if "tags" in objective.element_spec else "classification"
  return "likelihood" if objective.logprob is not None and not objective.pseudo else "loss"


if __name__ == "__main__":
  command(main)
