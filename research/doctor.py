"""Says what is wrong with this machine's set-up and how to mend it: versions, devices, flags, data.

  python -m research.doctor          exit status 1 where something is wrong
"""

from __future__ import annotations

from research.core import startup

if __name__ == "__main__":
  startup.prepare()

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from typing import NamedTuple

from absl import flags

from research.core.errors import command
from research.core.flags import parse

FLAGS = flags.FlagValues()
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "ml-collections", "absl-py", "numpy",
            "array_record", "tokenizers", "tiktoken", "zstandard", "matplotlib", "rich", "tensorboardX")  # fmt: skip


class Finding(NamedTuple):
  good: bool
  what: str
  mend: str = ""


def main(arguments: list[str]) -> int:
  parse(arguments, FLAGS, __doc__)
  findings = [*_python(), *_packages(), *_devices(), *_environment(), *_data(), *_disk()]
  for finding in findings:
    print(f"{'ok   ' if finding.good else 'WRONG'}  {finding.what}" + (f"\n       → {finding.mend}" if finding.mend else ""))
  wrong = sum(not finding.good for finding in findings)
  print(f"{wrong} wrong" if wrong else "all good")
  return 1 if wrong else 0


def _python():
  yield Finding(sys.version_info >= (3, 11), f"Python {platform.python_version()}", "" if sys.version_info >= (3, 11) else "use Python 3.11 or newer")


def _packages():
  for name in PACKAGES:
    try:
      yield Finding(True, f"{name} {importlib.metadata.version(name)}")
    except importlib.metadata.PackageNotFoundError:
      yield Finding(False, f"{name} is not installed", "bash launch/local.sh, or pip install -r requirements.lock")


def _devices():
  try:
    import jax
    import jax.numpy as jnp

    devices = jax.devices()
  except Exception as error:  # whatever a backend raises when it does not come up
    yield Finding(False, f"JAX finds no device: {error}", "set JAX_PLATFORMS=cpu, or install the extra for your hardware: pip install -e '.[cuda]' or '.[tpu]'")
    return
  yield Finding(True, f"{len(devices)} × {devices[0].device_kind} ({devices[0].platform}), process {jax.process_index()} of {jax.process_count()}")
  start = time.perf_counter()
  good = bool((jax.jit(lambda x: x @ x)(jnp.ones((64, 64))) == 64).all())
  yield Finding(good, f"a compiled matmul gives {'the right' if good else 'a wrong'} result after {time.perf_counter() - start:.1f} s",
                "" if good else "the driver or the installation is broken: reinstall jax for this hardware")  # fmt: skip
  if devices[0].platform == "cpu" and (shutil.which("nvidia-smi") or os.path.exists("/dev/accel0")):
    yield Finding(False, "this machine has an accelerator that JAX does not use", "pip install -e '.[cuda]' or '.[tpu]'")


def _environment():
  tuned = "hugetlb" in os.environ.get("GLIBC_TUNABLES", "")
  glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
  yield Finding(True, f"malloc {'keeps huge pages' if tuned else 'as the system has it'}",
                "" if tuned or not glibc else f"on a CPU 15 % faster with GLIBC_TUNABLES={startup.MALLOC}")  # fmt: skip
  cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
  yield Finding(True, f"compilation cache {cache or 'in each workdir (JAX_COMPILATION_CACHE_DIR is not set)'}")
  if os.environ.get("XLA_FLAGS"):
    yield Finding(True, f"XLA_FLAGS={os.environ['XLA_FLAGS']}")


def _data():
  from research.data.sources.files import data_root

  root = data_root()
  there = os.path.isdir(root)
  yield Finding(True, f"RESEARCH_DATA: {root}" + ("" if there else " (absent: only the text that ships with the package is at hand)"))


def _disk():
  free = shutil.disk_usage(".").free / 2**30
  yield Finding(free > 1, f"{free:.0f} GiB free here", "" if free > 1 else "free some space: checkpoints need three times the parameters")


if __name__ == "__main__":
  command(main)
