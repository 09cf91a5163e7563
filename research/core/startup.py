"""What must be set before JAX starts: memory allocation on CPUs, the compilation cache, quiet libraries."""

from __future__ import annotations

import logging
import os
import platform
import sys

# XLA's CPU backend allocates its scratch memory anew at every call. Huge pages, and a heap that is neither mapped anew nor given back,
# save the kernel from clearing it again page by page: 15 % of a step.
MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592"


def prepare() -> None:
  """Call first thing in a command, before `import jax`. May start the same command once more under a tuned malloc."""
  if sys.platform == "linux" and platform.libc_ver()[0] == "glibc" and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = MALLOC
    sys.stdout.flush()
    os.execv(sys.executable, sys.orig_argv)
  quiet()


def quiet() -> None:
  """What `prepare` does but for malloc: alone for commands that compute little and must give memory back."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  logging.getLogger("absl").setLevel(logging.ERROR)
  # Where orbax fails to read one array, its readers of the others go on, find their event loop closed, and each says so.
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  sys.unraisablehook = lambda args: None if str(args.exc_value) == "Event loop is closed" else sys.__unraisablehook__(args)


def compilation_cache(folder: str) -> None:
  """Keeps compiled programs in `folder`, unless JAX_COMPILATION_CACHE_DIR names another."""
  import jax

  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", os.path.abspath(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
