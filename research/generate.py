"""Continues a text with a run's model.

  python -m research.generate --workdir=runs/char --prompt="ROMEO:" [--length=400 --temperature=0.8 --top_p=0.9 --seed=1]
  python -m research.generate --workdir=runs/char --temperature=0        the likeliest token each time

Prints the prompt and its continuation as it is drawn. Without a prompt the text starts from a line break.
"""

from __future__ import annotations

from research.core import startup

if __name__ == "__main__":
  startup.prepare()

import os
import sys

from absl import flags

from research.core.errors import UserError, command
from research.core.flags import parse

FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "folder of the run", flag_values=FLAGS)
flags.DEFINE_string("prompt", "\n", "text to continue", flag_values=FLAGS)
flags.DEFINE_integer("length", 256, "tokens to draw, at most", flag_values=FLAGS)
flags.DEFINE_float("temperature", 0.8, "0: greedy", flag_values=FLAGS)
flags.DEFINE_integer("top_k", None, "draw from the k likeliest tokens only", flag_values=FLAGS)
flags.DEFINE_float("top_p", 1.0, "draw from the likeliest tokens that together hold this probability", flag_values=FLAGS)
flags.DEFINE_float("min_p", 0.0, "draw from tokens at least this likely relative to the likeliest", flag_values=FLAGS)
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

  import jax

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
  except ValueError as error:
    raise UserError(f"--{error}.") from error
  prompt = run.tokenizer.encode(FLAGS.prompt)
  if not len(prompt):
    raise UserError("--prompt is empty: give at least one character.")

  generator = Generator(run.model, run.params, stop=run.tokenizer.vocab.special["eos"], context=run.cfg.data.length)
  shown = ""
  for tokens in generator.stream([prompt], sampling, FLAGS.length, jax.random.key(FLAGS.seed)):
    whole = run.tokenizer.decode([*prompt, *tokens[0]])
    text = whole.rstrip("\N{REPLACEMENT CHARACTER}")  # half of a character may still be on its way
    sys.stdout.write(text[len(shown) :])
    sys.stdout.flush()
    shown = text
  print(whole[len(shown) :])


if __name__ == "__main__":
  command(main)
