"""The folder of a run belongs to one run at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator

from research.core.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def claimed(workdir: str) -> Iterator[None]:
  """Inside it no other process can claim the folder; a killed process's claim ends with it.

  Raises:
    UserError: another run has it; names its host and process.
  """
  with open(os.path.join(workdir, LOCK), "a+", encoding="utf-8") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):  # a file system without locks: then nobody can be kept out
        yield
        return
      file.seek(0)
      raise UserError(f"another run is writing to '{workdir}' ({file.read().strip()}): wait for its end, stop it, or name another workdir.") from error
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    yield


def held(workdir: str) -> str | None:
  """Who has claimed the folder ('process 7 on host'); None: nobody has, or its file system cannot tell."""
  try:
    with open(os.path.join(workdir, LOCK), "r+", encoding="utf-8") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        return (file.read().strip() or "another process") if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
  except FileNotFoundError:
    pass
  return None
