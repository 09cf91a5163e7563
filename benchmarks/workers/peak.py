"""The machine's own speed: the product of two 2048 × 2048 float32 matrices, in numpy and in JAX.

  python -m benchmarks.workers.peak
"""

from __future__ import annotations

from benchmarks.workers import channel

if __name__ == "__main__":
  channel.own_stdout()

import time

import jax
import jax.numpy as jnp
import numpy as np

N = 2048


def main() -> None:
  a = np.random.default_rng(0).standard_normal((N, N), dtype=np.float32)
  b = jnp.asarray(a)
  products = {"numpy": lambda: a @ a, "JAX": lambda matmul=jax.jit(jnp.matmul): matmul(b, b).block_until_ready()}

  def turn(steps: int):
    return {name: [_seconds(product) for _ in range(1 + steps)][1:] for name, product in products.items()}

  channel.serve({}, turn)


def _seconds(function) -> float:
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


if __name__ == "__main__":
  main()
