"""Eight simulated devices for every test, no warm cache that could hide a difference, and a compiler in a hurry; and what runs a command.

A test runs a program once or twice, so tracing and compiling are what takes the time. Without the backend's optimizations compiling takes a
quarter of it; and Python's collector, which tracing's many small objects would call at every turn, takes a fifth of the whole where it is not held back.
"""

import gc
import os
import re
import sys

import pytest

from tests.compiling import FLAGS

os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", *FLAGS])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
gc.set_threshold(20_000, 20, 50)
if (worker := re.fullmatch(r"gw(\d+)", os.environ.get("PYTEST_XDIST_WORKER", ""))) and hasattr(os, "sched_setaffinity"):
  # A core for each worker: XLA's and orbax's pools of threads are as large as the machine, and would wait for each other's.
  cores = sorted(os.sched_getaffinity(0))
  if int(os.environ["PYTEST_XDIST_WORKER_COUNT"]) == len(cores):
    os.sched_setaffinity(0, {cores[int(worker[1]) % len(cores)]})


def pytest_collection_modifyitems(items):
  """The longest tests first, so that at the end no worker waits for one of them."""
  items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
  """Whatever asks for a mesh gets the first device, as on a laptop; commands leave the tests' own compilation settings alone."""
  import jax

  from research.parallel import mesh as meshes

  with pytest.MonkeyPatch.context() as patch:
    made = meshes.make
    patch.setattr(meshes, "make", lambda cfg, devices=None: made(cfg, devices or jax.devices()[:1]))
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))  # set, so a command sets none; processes that a test starts keep theirs there
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


@pytest.fixture
def run(monkeypatch, capsys):
  """Runs a command as the command line does: (status, stdout, stderr)."""
  from research.core.errors import command

  def call(module, *arguments):
    for name in module.FLAGS:
      module.FLAGS[name].unparse()
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
      command(module.main)
    return end.value.code, *capsys.readouterr()

  return call


@pytest.fixture
def fails(run):
  """Runs a command that must fail with one sentence that holds all parts."""

  def call(module, arguments, *parts, status=2):
    code, _, err = run(module, *arguments)
    assert code == status and err.startswith("error: ") and err.count("\n") == 1 and len(err) < 700, (code, err)
    for part in parts:
      assert part in err, f"'{part}' is not in: {err}"

  return call
