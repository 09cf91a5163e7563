"""What a GPU makes of the real training step: attention kernels held against the plain one, model FLOPs utilisation, and a plan's memory against the measured.

  python -m benchmarks.gpu [--only=kernels|steps] [--steps=10] [--trace=FOLDER]

Each measurement is a process of its own. Errors are the largest difference from the plain kernel in float32, relative to the largest entry. A step's time
is the mean of steps that are sent one behind the other, the better of two turns; operations are those of the model, as training counts them, and their share is
of the bfloat16 matrix product that the same GPU made just before. `planned` is what the compiler reports
of the step, as `research.plan --topology=gpu:1` does; `measured` the most that the allocator held, initialisation included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from absl import flags

from benchmarks import compare
from research.core.errors import UserError, command
from research.core.flags import parse

FLAGS = flags.FlagValues()
flags.DEFINE_enum("only", None, ["kernels", "steps"], "one part of it", flag_values=FLAGS)
flags.DEFINE_list("rows", [], "of the steps, those whose names begin so; default: all", flag_values=FLAGS)
flags.DEFINE_integer("steps", 10, "timed steps of a turn", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("trace", None, "folder for a profile of each step", flag_values=FLAGS)

GPT2 = ("configs/gpt2.py:124m", "model.dtype=bfloat16", "batch_size=64")
# TinyLlama's shape (Zhang et al. 2024): 1.1 billion parameters.
TINYLLAMA = ("configs/llama.py:2_7b", "model.layers=22", "model.width=2048", "model.attention.heads=32", "model.attention.kv_heads=4", "model.ffn.hidden=5632",
             "data.length=2048", "batch_size=16")  # fmt: skip
STEPS = {
    "124M": GPT2,
    "124M, attention xla": (*GPT2, "model.attention.kernel=xla"),
    "124M, attention chunked": (*GPT2, "model.attention.kernel=chunked"),
    "124M, scanned": (*GPT2, "model.scan=true"),
    "1.1B, scanned, remat dots": TINYLLAMA,
    "1.1B, scanned, remat full": (*TINYLLAMA, "model.remat=full"),
    "1.1B, unrolled, remat dots": (*TINYLLAMA, "model.scan=false"),
}


def worker(*arguments: str, xla_flags: str = "") -> dict:
  env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {xla_flags}".strip()}
  run = subprocess.run([sys.executable, "-m", "benchmarks.workers.gpu", *arguments], capture_output=True, text=True, check=False, env=env, cwd=compare.ROOT)
  if run.returncode:
    raise UserError(f"`{' '.join(arguments)}` ended with status {run.returncode}: {run.stderr.strip()[-1500:]}")
  return json.loads(run.stdout.splitlines()[-1])


def kernels() -> None:
  rows = []
  # Errors are what it is about: the compiler's search for the fastest products, minutes of it, is left out, and the times are without it.
  for row in worker("kernels", xla_flags="--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false")["answer"]:
    if "refuses" in row:
      rows.append((row["case"], row["kernel"], f"refused: {row['refuses']}", "", "", ""))
    else:
      out, *grads = (row["errors"].pop("out"), *row["errors"].values())
      rows.append((row["case"], row["kernel"], f"{out:.1e}", f"{max(grads):.1e}", f"{row['ms']:.2f}", f"{row['temporaries'] / 2**20:.0f}"))
  print(compare.table(("attention", "kernel", "output", "gradients", "ms both passes", "temporary MiB"), rows), flush=True)


def steps(peak: float) -> None:
  rows = []
  for name, (config, *changes) in STEPS.items():
    if FLAGS.rows and not any(name.startswith(row) for row in FLAGS.rows):
      continue
    trace = [f"--trace={os.path.join(FLAGS.trace, ''.join(c if c.isalnum() else '_' for c in name))}"] if FLAGS.trace else []
    try:
      got = worker("step", str(FLAGS.steps), config, *(f"--config.{change}" for change in changes), *trace)["answer"]
    except UserError as error:
      print(f"{name}: {error}", flush=True)
      continue
    speed, gib = got["flops"] / got["seconds"], lambda count: f"{count / 2**30:.2f}"
    rows.append((name, f"{got['parameters'] / 1e6:,.0f}M", f"{1e3 * got['seconds']:.1f}", f"{got['tokens'] / got['seconds']:,.0f}", f"{speed / 1e12:.0f}",
                 f"{speed / peak:.1%}", gib(got["planned"]["peak"]), gib(got["peak"]), f"{got['planned']['peak'] / got['peak'] - 1:+.1%}",
                 f"{got['compile_seconds']:.0f}"))  # fmt: skip
    print(json.dumps({name: got}), flush=True)
  header = ("step", "parameters", "ms", "tokens/s", "TFLOP/s", "of the product", "planned GiB", "measured GiB", "difference", "compiled s")
  print(compare.table(header, rows), flush=True)


def main(arguments: list[str]) -> None:
  parse(arguments, FLAGS, __doc__)
  found = worker("peak")
  peak = found["answer"]["flops"]
  print(f"{found['device']}, JAX {found['jax']}: bfloat16 product of 8192 × 8192 matrices {peak / 1e12:.0f} TFLOP/s", flush=True)
  if FLAGS.only != "kernels":
    steps(peak)
  if FLAGS.only != "steps":
    kernels()


if __name__ == "__main__":
  command(main)
