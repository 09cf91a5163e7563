"""How a command ends."""

import errno

import jax.numpy as jnp
import pytest
from jax.errors import JaxRuntimeError

from research.core.errors import UserError, command, nearest


@pytest.mark.parametrize(
  "error, status, text",
  [
    (UserError("key 'x' is wrong."), 2, "error: key 'x' is wrong.\n"),
    (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 2, "error: No space left on device at /data/x"),
    (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying\n to allocate 8.00MiB."), 2, "error: the memory of a device is full (RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8.00MiB): "),
    (KeyboardInterrupt(), 130, "interrupted\n"),
  ],
)
def test_a_users_mistake_ends_in_one_line_and_a_status(capsys, error, status, text):
  def main(arguments):
    raise error

  with pytest.raises(SystemExit) as end:
    command(main)
  shown = capsys.readouterr().err
  assert end.value.code == status and shown.startswith(text) and shown.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("defect"), OSError(errno.EIO, "Input/output error"), JaxRuntimeError("INTERNAL: a defect"), RuntimeError("RESOURCE_EXHAUSTED, in words of ours")])
def test_a_defect_keeps_its_traceback(error):
  def main(arguments):
    raise error

  with pytest.raises(type(error)):
    command(main)


@pytest.mark.parametrize("given, status", [(None, 0), (0, 0), (143, 143)])
def test_the_status_of_main_is_the_commands(given, status):
  with pytest.raises(SystemExit) as end:
    command(lambda arguments: given)
  assert end.value.code == status


def test_what_jax_says_of_a_full_device_is_understood(capsys):
  with pytest.raises(SystemExit) as end:
    command(lambda arguments: jnp.zeros(2**48).block_until_ready())
  assert end.value.code == 2 and "research.plan" in capsys.readouterr().err


def test_nearest():
  assert nearest("mask_rat", ["keep_rate", "mask_rate"]) == " Did you mean 'mask_rate'?"
  assert nearest("zzz", ["b", "a"]) == " Known: a, b."
  assert nearest("zzz", []) == ""
