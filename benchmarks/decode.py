"""How fast greedy decoding is, beside Hugging Face transformers' generate on PyTorch.

  python -m benchmarks.decode [--rounds=5] [--peer_python=PATH]

CPU, float32, all cores; prompts of 16 tokens, 128 new ones, no stop token; the decoder of benchmarks/shapes.py with 50,304 tokens and random
weights. A call is timed from prompts on the host to tokens on the host, the reading of the prompt included. The contestants take turns
(see benchmarks/compare.py).
"""

from __future__ import annotations

import statistics
import tempfile

from absl import flags

from benchmarks import compare
from research.core.errors import command
from research.core.flags import parse

FLAGS = flags.FlagValues()
flags.DEFINE_integer("rounds", 5, "calls of each contestant at each batch size", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("peer_python", None, "interpreter that has torch and transformers; this one where it is not given", flag_values=FLAGS)

SHAPE = "decoder_50304"
PROMPT, LIMIT = 16, 128
BATCHES = (1, 8)
HEADER = ("", "tokens/s", "ms a token", "min", "first call s", "ratio to ours")


def main(arguments: list[str]) -> None:
  parse(arguments, FLAGS, __doc__)
  python = compare.peer_python(FLAGS.peer_python)
  contestants = []
  with tempfile.TemporaryDirectory() as scratch:
    try:
      contestants.append(compare.ours("ours", "decode", SHAPE))
      contestants.append(compare.peer("transformers, dynamic cache", python, scratch, "decode", SHAPE))
      contestants.append(compare.peer("transformers, static cache", python, scratch, "decode", SHAPE, "static"))
      print(compare.machine())
      print("parameters:", ", ".join(f"{c.name} {c.started['parameters']:,}" for c in contestants))
      for batch in BATCHES:
        print(f"\n{report(contestants, batch)}", flush=True)
    finally:
      for contestant in contestants:
        contestant.close()


def report(contestants: list[compare.Contestant], batch: int) -> str:
  """Runs the contest at one batch size; its table."""
  request = dict(batch=batch, prompt=PROMPT, limit=LIMIT)
  first = {c: c.turn(calls=1, **request)[0]["seconds"][0] for c in contestants}
  seconds = {c: [] for c in contestants}
  for _ in range(FLAGS.rounds):
    for c in contestants:
      answer = compare.quiet_turn(c, calls=2, **request)
      if answer["tokens"] != [batch, LIMIT]:
        raise RuntimeError(f"'{c.name}' made {answer['tokens']} tokens, not {[batch, LIMIT]}")
      seconds[c].append(answer["seconds"][1])  # the first after the sleep is slower
  median = {c: statistics.median(seconds[c]) for c in contestants}
  rows = [
      (c.name, f"{batch * LIMIT / median[c]:.0f}", f"{1e3 * median[c] / LIMIT:.2f}", f"{1e3 * min(seconds[c]) / LIMIT:.2f}", f"{first[c]:.1f}",
       f"{median[c] / median[contestants[0]]:.2f}")
      for c in contestants
  ]  # fmt: skip
  return f"batch {batch}\n{compare.table(HEADER, rows)}"


if __name__ == "__main__":
  command(main)
