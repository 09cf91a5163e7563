"""Continues a text with a run's model; a model with an encoder reads the text as its source and answers it.

  python -m research.generate --workdir=runs/char --prompt="ROMEO:" [--length=400 --temperature=0.8 --top_p=0.9 --seed=1]
  python -m research.generate --workdir=runs/char --temperature=0        the likeliest token each time
  python -m research.generate --workdir=runs/char --beams=4 [--length_penalty=0.6]   the likeliest text that beam search finds

Prints the prompt and its continuation as it is drawn. Without a prompt the text starts from a line break. Where the workdir holds a
generation_config.json (an imported model's), its start, stop and forbidden tokens hold.
"""

from __future__ import annotations

from research.core import startup

if __name__ == "__main__":
  startup.prepare()

import dataclasses
import json
import os
import sys

from absl import flags

from research.core.errors import UserError, command
from research.core.flags import parse

GENERATION = "generation_config.json"
FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "folder of the run", flag_values=FLAGS)
flags.DEFINE_string("prompt", "\n", "text to continue, or an encoder's source", flag_values=FLAGS)
flags.DEFINE_integer("length", 256, "tokens to draw, at most", flag_values=FLAGS)
flags.DEFINE_float("temperature", 0.8, "0: greedy", flag_values=FLAGS)
flags.DEFINE_integer("top_k", None, "draw from the k likeliest tokens only", flag_values=FLAGS)
flags.DEFINE_float("top_p", 1.0, "draw from the likeliest tokens that together hold this probability", flag_values=FLAGS)
flags.DEFINE_float("min_p", 0.0, "draw from tokens at least this likely relative to the likeliest", flag_values=FLAGS)
flags.DEFINE_integer("beams", 1, "more than 1: beam search that follows as many texts", flag_values=FLAGS)
flags.DEFINE_float("length_penalty", 1.0, "with beams: log-probability over length to this power; the larger, the longer", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of the draws", flag_values=FLAGS)
flags.DEFINE_integer("step", None, "which checkpoint (default: the latest)", flag_values=FLAGS)
flags.DEFINE_bool("if_possible", False, "say so and stop with status 0 where the run's objective does not generate", flag_values=FLAGS)


def main(arguments: list[str]) -> None:
  if parse(arguments, FLAGS, __doc__):
    raise UserError("generate takes no --config.… flags: the run's own config.json holds.")
  if not FLAGS.workdir:
    raise UserError("--workdir is missing: name the folder of a run.")
  if FLAGS.length < 1:
    raise UserError(f"--length={FLAGS.length}: ask for at least one token.")
  chosen = [name for name in ("temperature", "top_k", "top_p", "min_p", "seed") if FLAGS[name].present]
  if FLAGS.beams > 1 and chosen:
    raise UserError(f"--{chosen[0]} is of drawing, but --beams={FLAGS.beams} draws nothing: leave one of them out.")

  import jax

  from research.decode import beam
  from research.decode.sample import Config, Generator
  from research.training.restore import restore

  startup.compilation_cache(os.path.join(FLAGS.workdir, "compilation_cache"))
  run = restore(FLAGS.workdir, FLAGS.step)
  if not run.objective.causal:
    sentence = "this run's objective predicts hidden tokens from both sides, so its model cannot continue a text; see `python -m research.preview`."
    if FLAGS.if_possible:
      print(sentence)
      return
    raise UserError(sentence)
  try:
    sampling = Config(FLAGS.temperature, FLAGS.top_k, FLAGS.top_p, FLAGS.min_p)
    searching = beam.Config(FLAGS.beams, FLAGS.length_penalty)
  except ValueError as error:
    raise UserError(f"--{error}.") from error
  rules = _rules(run)
  prompt = run.tokenizer.encode(FLAGS.prompt)
  if not len(prompt):
    raise UserError("--prompt is empty: give at least one character.")
  prompts, sources, shown, context = [prompt], None, prompt, run.cfg.data.length
  if run.model.cfg.encoder_layers:
    if rules.start is None:
      raise UserError(f"nothing tells which token the decoder reads first: put decoder_start_token_id into '{os.path.join(FLAGS.workdir, GENERATION)}'.")
    prompts, sources, shown = [[rules.start]], [run.tokenizer.wrap(prompt)], []
  elif run.cfg.data.prepend_bos:
    prompts = [[run.tokenizer.special["bos"], *prompt]]
  room = context - len(prompts[0])
  if FLAGS.beams > 1:
    if room < 1:
      raise UserError(f"--prompt has {len(prompts[0])} tokens, which leaves no room in the model's {context}: beam search does not slide; shorten it.")
    search = beam.BeamSearch(run.model, run.params, rules, context=context)
    texts = iter([search(prompts, searching, min(FLAGS.length, room), sources).tokens[0]])
  else:
    length = min(FLAGS.length, room) if sources else FLAGS.length
    generator = Generator(run.model, run.params, rules, context=context)
    texts = generator.stream(prompts, sampling, length, jax.random.key(FLAGS.seed), sources=sources)
  _print(run.tokenizer, shown, texts)


def _rules(run):
  """What the workdir's generation_config.json demands; without one, that a text stops at the vocabulary's end-of-text token."""
  from research.decode import rules

  path = os.path.join(FLAGS.workdir, GENERATION)
  try:
    if not os.path.exists(path):
      stop = tuple(run.tokenizer.special[name] for name in ("eos",) if name in run.tokenizer.special)
      return rules.Rules(prefix=run.objective.prefix, stop=stop, start=run.objective.start)
    with open(path, encoding="utf-8") as file:
      found = rules.read(json.load(file), f"'{path}'", run.model.cfg.encoder_layers > 0)
    found = dataclasses.replace(found, prefix=run.objective.prefix, start=run.objective.start if found.start is None else found.start)
    found.check(run.tokenizer.vocab.size)
    return found
  except (ValueError, TypeError, AttributeError) as error:
    raise UserError(f"'{path}' holds no settings of generation: {error}.") from error


def _print(tokenizer, shown, texts) -> None:
  """Prints what each array of tokens [1, n] adds to the text."""
  before, whole = "", ""
  for tokens in texts:
    whole = tokenizer.decode([*shown, *tokens[0]])
    text = whole.rstrip("\N{REPLACEMENT CHARACTER}")  # half of a character may still be on its way
    sys.stdout.write(text[len(before) :])
    sys.stdout.flush()
    before = text
  print(whole[len(before) :])


if __name__ == "__main__":
  command(main)
