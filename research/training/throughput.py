"""How fast a device could be, and what share of that a run reaches (MFU: Chowdhery et al. 2022, PaLM, appendix B)."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

# Dense bfloat16 matmul peaks of one device in FLOP/s, from the vendors' data sheets (without sparsity).
PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "Tesla V100": 125e12,
    "TPU v2": 22.5e12,  # a v2 or v3 device is one core, half a chip
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 1153.5e12,  # half a chip: two devices each
}


def peak(device: jax.Device) -> tuple[float, str]:
  """(FLOP/s of one device, where the number comes from): from the table, or measured on a CPU; (0, …) where neither is known."""
  if device.platform == "cpu":
    # Simulated devices share the same cores: each can claim only its share.
    return measured_cpu_peak() / jax.local_device_count(), "measured float32 matmul"
  names = sorted((name for name in PEAKS if device.device_kind.startswith(name)), key=len)
  if names:
    return PEAKS[names[-1]], "data sheet, bfloat16"
  return 0.0, f"unknown for '{device.device_kind}'"


def measured_cpu_peak(size: int = 1536, tries: int = 3) -> float:
  """The best of a few float32 matmuls on all cores, FLOP/s."""
  device = jax.local_devices()[0]
  best = float("inf")
  with jax.set_mesh(jax.make_mesh((1,), ("one",), devices=[device], axis_types=(jax.sharding.AxisType.Auto,))):  # whatever mesh the caller is in
    x = jax.device_put(np.ones((size, size), np.float32), device)
    matmul = jax.jit(jnp.matmul)
    matmul(x, x).block_until_ready()
    for _ in range(tries):
      start = time.perf_counter()
      matmul(x, x).block_until_ready()
      best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best
