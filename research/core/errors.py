"""What a user did wrong is told in one sentence, without a traceback.

`UserError` carries that sentence; `command` turns it into exit status 2. Anything else that escapes a command is a defect
of this package and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
  """A mistake in a config, file or flag: the message names it and the way to mend it."""


def nearest(word: str, known: Iterable[str]) -> str:
  """` Did you mean 'x'?`, or the known names where none is near."""
  known = sorted(known)
  close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
  if close:
    return f" Did you mean '{close[0]}'?"
  return f" Known: {', '.join(known)}." if known else ""


def memory_exhausted(message: str) -> bool:
  """Whether XLA says that something does not fit into a device's memory."""
  return "RESOURCE_EXHAUSTED" in message or "Ran out of memory" in message


def full_device(error: BaseException) -> str | None:
  """The sentence for an error of JAX's runtime that tells of a full device; None of another. Told by its name, for not every command has imported JAX."""
  text = " ".join(str(error).split())
  if type(error).__name__ != "JaxRuntimeError" or not memory_exhausted(text):
    return None
  return (f"the memory of a device is full ({text[:160].rstrip('.')}): take a smaller batch_size or model, in training more microbatches or model.remat=full, or end what else "
          "uses the device; python -m research.plan tells what a config needs.")  # fmt: skip


def command(main: Callable[[list[str]], int | None]) -> None:
  """Runs `main(arguments)`; a user's mistake, a full disk or a full device becomes one sentence on stderr and a non-zero exit status."""
  try:
    status = main(sys.argv[1:])
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    status = 2
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
      raise
    where = f" at {error.filename}" if error.filename else ""
    print(f"error: {error.strerror}{where}: free some space or name another path; what was saved before is intact.", file=sys.stderr)
    status = 2
  except RuntimeError as error:
    if (text := full_device(error)) is None:
      raise
    print(f"error: {text}", file=sys.stderr)
    status = 2
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    status = 130
  sys.exit(status or 0)
