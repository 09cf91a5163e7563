"""What one chip can do: the one table of peaks, memories and links.

TPU numbers are those of Google Cloud's documentation of each version ("System architecture", table of specifications); NVIDIA's are of the data sheets,
dense, of the SXM form where there are several, with the larger memory. Bandwidth of a TPU's links is what one chip sends, over all its links together, one
way: half of the documented bidirectional number; a GPU's is that of its NVLink (PCIe for the L4 and the L40S, which have none), halved likewise. For v2 and
v3 none is documented there; theirs are four links of 496 and 656 Gbit/s (Jouppi et al. 2020, "A domain-specific supercomputer for training deep neural
networks").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Chip(NamedTuple):
  kind: str  # how `Device.device_kind` begins
  flops: float  # bfloat16 matmuls of one chip, FLOP/s
  memory: float | None = None  # bytes of HBM; None: not known, or what the machine has
  bandwidth: float | None = None  # of that memory, bytes/s
  network: float | None = None  # bytes/s
  devices: int = 1  # that JAX sees in one chip
  dimensions: int = 1  # of the torus that the links form
  overlaps: bool = True  # its memory and its links work while it computes

  def least(self, seconds: Iterable[float]) -> float:
    """The least time, s, of work whose operations, memory and links take so many seconds each."""
    return max(seconds) if self.overlaps else sum(seconds)


GiB = 2**30
CHIPS = {
    "v2": Chip("TPU v2", 45e12, 16 * GiB, 700e9, 248e9, 2, 2),
    "v3": Chip("TPU v3", 123e12, 32 * GiB, 900e9, 328e9, 2, 2),
    "v4": Chip("TPU v4", 275e12, 32 * GiB, 1228e9, 300e9, 1, 3),
    "v5e": Chip("TPU v5 lite", 197e12, 16 * GiB, 819e9, 200e9, 1, 2),
    "v5p": Chip("TPU v5", 459e12, 95 * GiB, 2765e9, 600e9, 1, 3),
    "v6e": Chip("TPU v6 lite", 918e12, 32 * GiB, 1640e9, 400e9, 1, 2),
    "tpu7x": Chip("TPU7x", 2307e12, 192 * GiB, 7380e9, 600e9, 2, 3),
    # The memory of a GPU is what its driver tells (topology.make): several are sold with more and with less.
    "v100": Chip("Tesla V100", 125e12, None, 900e9, 150e9),
    "a100": Chip("NVIDIA A100", 312e12, None, 2039e9, 300e9),
    "h100": Chip("NVIDIA H100", 989e12, None, 3350e9, 450e9),
    "h200": Chip("NVIDIA H200", 989e12, None, 4800e9, 450e9),
    "b200": Chip("NVIDIA B200", 2250e12, None, 8000e9, 900e9),
    "l4": Chip("NVIDIA L4", 121e12, None, 300e9, 32e9),
    "l40s": Chip("NVIDIA L40S", 362e12, None, 864e9, 32e9),
    # Of no product: the order of one of eight simulated devices that share a small machine, so that predicted times can be ranked.
    "cpu": Chip("cpu", 24e9, None, 3e9, 1e9, overlaps=False),
}


def of_kind(kind: str) -> Chip | None:
  """The chip whose name begins a `device_kind`; the longest where several do ('TPU v5 lite' is no 'TPU v5')."""
  return max((chip for chip in CHIPS.values() if kind.startswith(chip.kind)), key=lambda chip: len(chip.kind), default=None)
