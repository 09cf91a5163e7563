"""What benchmarks.gpu runs in processes of their own, so that each finds the GPU's memory empty. The last line of stdout is JSON.

  python -m benchmarks.workers.gpu peak
  python -m benchmarks.workers.gpu kernels
  python -m benchmarks.workers.gpu step STEPS CONFIG [--config.key=value …]
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import real_step
from research.core import config as configs
from research.core.overrides import load
from research.core.trees import size
from research.model.attention.core import KERNELS, attend
from research.model.attention.kernels.base import Call
from research.model.inputs import Sight
from research.parallel import topology

N = 8192  # of the matrix product
ROWS, LENGTH, HEADS, KV_HEADS, DIM, WINDOW = 4, 2048, 16, 4, 64, 300  # of the attention calls
CASES = {  # kind, segments, window, bias, rows of other lengths (queries attend to a shorter source)
    "causal": ("causal", False, False, False, False),
    "causal, packed": ("causal", True, False, False, False),
    "causal, packed, window": ("causal", True, True, False, False),
    "causal, packed, bias": ("causal", True, False, True, False),
    "full": ("full", False, False, False, False),
    "full, packed, window": ("full", True, True, False, False),
    "cross, packed, some see nothing": ("full", True, False, False, True),
    "ordered": ("ordered", False, False, False, False),
    "ordered, packed, some see nothing": ("ordered", True, False, False, False),
}


def best(call, tries: int) -> float:
  """Seconds of the fastest call."""
  jax.block_until_ready(call())
  times = []
  for _ in range(tries):
    started = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - started)
  return min(times)


def peak() -> dict:
  """Ten products of two random bfloat16 matrices behind each other, FLOP/s."""
  draw = jax.jit(lambda key: jax.random.normal(key, (N, N), jnp.bfloat16))
  a, b = draw(jax.random.key(0)), draw(jax.random.key(1))
  chain = jax.jit(lambda a, b: jax.lax.fori_loop(0, 10, lambda _, x: (x @ b) * jnp.bfloat16(N**-0.5), a))
  return {"flops": 10 * 2 * N**3 / best(lambda: chain(a, b), 5)}


@functools.cache
def example(name: str):
  """(q, k, v, bias) in float32 of numbers that bfloat16 holds, the sight, the window."""
  kind, packed, windowed, biased, cross = CASES[name]
  rng, keys = np.random.default_rng(0), LENGTH - 128 if cross else LENGTH
  draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape, jnp.bfloat16).astype(jnp.float32)
  q, k, v = draw(0, ROWS, LENGTH, HEADS, DIM), draw(1, ROWS, keys, KV_HEADS, DIM), draw(2, ROWS, keys, KV_HEADS, DIM)
  bias = draw(3, 1, HEADS, LENGTH, keys) if biased else None
  segments = jnp.asarray(np.sort(rng.integers(0, 6, (ROWS, LENGTH)), axis=1), jnp.int32) if packed else None
  own = jnp.where(segments == 0, 9, segments) if cross else segments  # a document that the source lacks
  place = lambda n: jnp.tile(jnp.arange(n), (ROWS, 1))
  order = jnp.asarray(rng.permuted(np.tile(np.arange(keys), (ROWS, 1)), axis=1)) if kind == "ordered" else None
  of_queries = None if order is None else order - 1  # the query stream's: who stands first sees nothing
  sight = Sight(place(LENGTH), place(keys), own, None if segments is None else segments[:, :keys], of_queries, order, kind=kind, blind=cross or kind == "ordered")
  return (q, k, v, bias), sight, WINDOW if windowed else None


def kernels() -> list[dict]:
  """Of each kernel and case the largest error, relative to the largest entry, of output and gradients, and the time of both passes."""
  calls, refused = {}, []
  for name, (kernel, module) in itertools.product(CASES, KERNELS.items()):
    arrays, sight, window = example(name)
    kind, packed, windowed, biased, _ = CASES[name]
    lacking = module.refuses(Call("gpu", "bfloat16", LENGTH, arrays[1].shape[1], DIM, kind, packed, windowed, biased, False, False))
    if lacking is not None:
      refused.append({"case": name, "kernel": kernel, "refuses": lacking})
      continue
    weights = jax.random.normal(jax.random.key(4), arrays[0].shape)
    half = tuple(None if x is None else x.astype(jnp.bfloat16) for x in arrays)
    calls[name, kernel] = both(kernel, window), (half, sight, weights)
    with jax.default_matmul_precision("highest"):
      calls.setdefault((name, "reference"), (both("xla", window).trace(arrays, sight, weights), (arrays, sight, weights)))
  with concurrent.futures.ThreadPoolExecutor(8) as pool:  # most of the time is the compiler's
    compiled = pool.map(lambda call: (call[0].lower() if hasattr(call[0], "jaxpr") else call[0].lower(*call[1])).compile(), calls.values())
    programs = dict(zip(calls, compiled))
  found = []
  for (name, kernel), program in programs.items():
    if kernel == "reference":
      continue
    want, got = (programs[key](*calls[key][1]) for key in ((name, "reference"), (name, kernel)))
    error = lambda a, b: float(jnp.max(jnp.abs(a - b.astype(jnp.float32))) / jnp.max(jnp.abs(a)))
    found.append({"case": name, "kernel": kernel, "errors": {part: error(want[part], got[part]) for part in want},
                  "ms": 1e3 * best(lambda program=program, args=calls[name, kernel][1]: program(*args), 10),
                  "temporaries": int(program.memory_analysis().temp_size_in_bytes)})  # fmt: skip
  return sorted(found + refused, key=lambda row: (list(CASES).index(row["case"]), list(KERNELS).index(row["kernel"])))


def both(kernel: str, window: int | None):
  """(arrays, sight, weights) -> the output and the gradients of its weighed sum, jitted."""

  def run(arrays, sight, weights):
    def loss(given):
      out = attend(*(given.get(part) for part in "qkv"), sight, scale=DIM**-0.5, bias=given.get("bias"), window=window, kernel=kernel)
      return jnp.sum(weights * out.astype(jnp.float32)), out

    grads, out = jax.grad(loss, has_aux=True)({part: x for part, x in zip(("q", "k", "v", "bias"), arrays) if x is not None})
    return {"out": out, **grads}

  return jax.jit(run)


def step(count: int, config: str, changes: list[str], trace: str | None = None) -> dict:
  """What the step of a config needs by the compiler's account, and what it then takes."""
  target = topology.make("gpu:1")
  cfg = configs.typed(load(config, changes))
  real = real_step.start(cfg, target.devices)
  real.together(3)
  seconds = min(real.together(count) for _ in range(2))
  if trace:
    with jax.profiler.trace(trace, create_perfetto_trace=True):
      real.together(2)
  return {"parameters": size(real.run.state.params), "tokens": cfg.batch_size * cfg.data.length, "flops": real.flops, "seconds": seconds,
          "planned": real.memory, "peak": target.devices[0].memory_stats()["peak_bytes_in_use"], "compile_seconds": real.compile_seconds}  # fmt: skip


def main() -> None:
  what, *rest = sys.argv[1:]
  device = jax.devices()[0]
  if device.platform != "gpu":
    sys.exit(f"this is a {device.platform}: the worker needs a GPU.")
  trace = rest.pop().partition("=")[2] if rest and rest[-1].startswith("--trace=") else None
  answer = {"peak": peak, "kernels": kernels}[what]() if what != "step" else step(int(rest[0]), rest[1], rest[2:], trace)
  print(json.dumps({"device": device.device_kind, "jax": jax.__version__, "answer": answer}))


if __name__ == "__main__":
  main()
