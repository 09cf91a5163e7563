"""How fast a training step is, beside Hugging Face transformers on PyTorch, eager and compiled.

  python -m benchmarks.train_step [--shape=decoder_50304|decoder_96|masked_lm|all] [--rounds=5] [--steps=3] [--peer_python=PATH]

CPU, float32, all cores, AdamW with weight decay 0.1, no clipping, no dropout; every step reads its loss on the host. The contestants take
turns (see benchmarks/compare.py); times are of the kept steps.
"""

from __future__ import annotations

import statistics
import tempfile

from absl import flags

from benchmarks import compare
from benchmarks.shapes import SHAPES, Shape
from research.core.errors import UserError, command, nearest
from research.core.flags import parse

FLAGS = flags.FlagValues()
flags.DEFINE_string("shape", "all", f"one of {', '.join(SHAPES)}, or all", flag_values=FLAGS)
flags.DEFINE_integer("rounds", 5, "turns of each contestant", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("steps", 3, "steps of a turn", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("peer_python", None, "interpreter that has torch and transformers; this one where it is not given", flag_values=FLAGS)

HEADER = ("", "median ms", "min ms", "tokens/s", "GFLOP/s", "of peak", "first step s", "from start s", "peak MB", "ratio to ours")


def main(arguments: list[str]) -> None:
  parse(arguments, FLAGS, __doc__)
  if FLAGS.shape != "all" and FLAGS.shape not in SHAPES:
    raise UserError(f"--shape={FLAGS.shape}: there is no such shape.{nearest(FLAGS.shape, [*SHAPES, 'all'])}")
  python = compare.peer_python(FLAGS.peer_python)
  print(compare.machine(), flush=True)
  for name in SHAPES if FLAGS.shape == "all" else (FLAGS.shape,):
    print(f"\n{report(name, SHAPES[name], python)}", flush=True)


def report(name: str, shape: Shape, python: str) -> str:
  """Runs the contest of one shape; the table and what it needs to be read."""
  contestants = []
  with tempfile.TemporaryDirectory() as scratch:
    try:
      contestants.append(compare.ours("matmul", module="peak"))
      contestants.append(compare.ours("ours", "train", name))
      contestants.append(compare.peer("transformers eager", python, scratch, "train", name))
      contestants.append(compare.peer("transformers compiled", python, scratch, "train", name, "compile"))
      matmul, *trainers = contestants
      answers = {contestant: [] for contestant in contestants}
      for _ in range(FLAGS.rounds):
        for contestant in contestants:
          answers[contestant].append(compare.quiet_turn(contestant, steps=FLAGS.steps))
    finally:
      for contestant in contestants:
        contestant.close()

  speeds = {kind: 2 * 2048**3 / min(t for a in answers[matmul] for t in a[kind]) / 1e9 for kind in ("numpy", "JAX")}
  peak = max(speeds.values())
  seconds = {c: [t for a in answers[c] for t in a["seconds"]] for c in trainers}
  median = {c: statistics.median(seconds[c]) for c in trainers}
  rows = []
  for c in trainers:
    # Only this package leaves out the scores that nobody reads; a contestant is credited with what it computes.
    speed = shape.flops(shape.places if c.name == "ours" else shape.length) / median[c] / 1e9
    rows.append((
        c.name, f"{1e3 * median[c]:.0f}", f"{1e3 * min(seconds[c]):.0f}", f"{shape.tokens / median[c]:.0f}", f"{speed:.0f}",
        f"{speed / peak:.0%}", f"{c.started['first_step']:.1f}", f"{c.start_seconds:.1f}", f"{c.peak_bytes / 1e6:.0f}",
        f"{median[c] / median[trainers[0]]:.2f}",
    ))  # fmt: skip
  counts = ", ".join(f"{c.name} {c.started['parameters']:,}" for c in trainers)
  return "\n".join((
      f"{name}: {shape.layers} layers, width {shape.width}, {shape.heads} heads, vocabulary {shape.vocab:,}, "
      f"{shape.batch} rows of {shape.length} tokens; scores at {shape.places} places of a row",
      f"parameters: {counts}",
      f"peak: 2048^3 float32 matmul, numpy {speeds['numpy']:.0f}, JAX {speeds['JAX']:.0f} GFLOP/s (best of the run)",
      f"{FLAGS.rounds * FLAGS.steps} steps each",
      compare.table(HEADER, rows),
  ))  # fmt: skip


if __name__ == "__main__":
  command(main)
