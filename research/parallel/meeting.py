"""How the processes of a run come together, and learn at once that one of them has failed or is gone.

JAX's own service ends a process that cannot meet the others, or loses them, with a stack trace of C++; so they meet here first and keep the
connections. Process 0 listens at the coordinator's address, the others connect to it and say who they are; when all are there it lets them go
on, and leaves the port to JAX. From then on each connection is an alarm: a message on it says why a process stops, its end that one died.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from research.core.errors import UserError

STATUS_LOST = 75  # of a process that stops because another one did: a temporary failure (EX_TEMPFAIL), to be started again
PAUSE = 0.2  # seconds from one attempt to connect to the next


def leave(message: str, status: int) -> None:
  """Ends the process at once: the usual way would wait for the others, and the main thread may hang in a collective."""
  print(f"error: {message.rstrip('.')}.", file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(status)


class Channel:
  """One JSON object a line over a socket."""

  def __init__(self, connection: socket.socket):
    self.socket, self._rest = connection, b""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 5)):  # a host without power is noticed within 35 s
      if hasattr(socket, name):
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

  def send(self, **message: Any) -> None:
    with contextlib.suppress(OSError):  # whoever has gone is noticed by reading
      self.socket.sendall(json.dumps(message).encode() + b"\n")

  def receive(self) -> dict[str, Any] | None:
    """The next message; None where the other side is gone."""
    while b"\n" not in self._rest:
      try:
        piece = self.socket.recv(65536)
      except TimeoutError:
        raise
      except OSError:
        piece = b""
      if not piece:
        return None
      self._rest += piece
    line, _, self._rest = self._rest.partition(b"\n")
    try:
      return dict(json.loads(line))
    except (ValueError, TypeError):
      return {}  # not one of ours


class Meeting:
  """The connections of a process to the others of its run: of process 0 to all, of the others to process 0.

  Args:
    seconds: how long to wait for the others.

  Raises:
    UserError: in every process that is there, when some are missing or do not belong together.
  """

  def __init__(self, coordinator: str, processes: int, process: int, seconds: float):
    self._process, self._ended = process, threading.Event()
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + seconds
    if process == 0:
      self._channels = _gather(coordinator, int(port), processes, deadline, seconds)
    else:
      self._channels = {0: _attend(coordinator, host.strip("[]"), int(port), processes, process, deadline, seconds)}

  def watch(self, leave: Callable[[str, int], None] = leave) -> None:
    """From here on the end of another process ends this one, with a sentence."""
    threading.Thread(target=self._watch, args=(leave,), daemon=True).start()

  def _watch(self, leave: Callable[[str, int], None]) -> None:
    with selectors.DefaultSelector() as selector:
      for number, channel in self._channels.items():
        selector.register(channel.socket, selectors.EVENT_READ, number)
      while selector.get_map():
        for key, _ in selector.select():
          number = key.data
          message = self._channels[number].receive()
          if message is not None and "done" in message:
            selector.unregister(key.fileobj)
          elif not self._ended.is_set():
            told = message.get("failed", "") if message else f"process {number} is gone"
            self.tell(told)
            leave(f"{told.rstrip('.')}; process {self._process} stops with it. The same command, in all processes, goes on from the last checkpoint", STATUS_LOST)

  def tell(self, message: str) -> None:
    """Says to the others why this process stops. From here on nothing that they say ends it."""
    self._ended.set()
    for channel in self._channels.values():
      channel.send(failed=message)

  def close(self) -> None:
    """This process is done."""
    self._ended.set()
    for channel in self._channels.values():
      channel.send(done=True)


def _gather(coordinator: str, port: int, processes: int, deadline: float, seconds: float) -> dict[int, Channel]:
  """Process 0: waits for the others, and tells them whether all have come."""
  found: dict[int, Channel] = {}

  def refuse(message: str) -> UserError:
    for channel in found.values():
      channel.send(failed=message)
    return UserError(message)

  try:
    door = socket.create_server(("", port), backlog=processes)
  except OSError as error:
    raise UserError(f"process 0 cannot listen at port {port} of --coordinator={coordinator} ({error.strerror}): name a free port.") from error
  with door:
    while len(found) < processes - 1:
      door.settimeout(max(0.01, deadline - time.monotonic()))
      try:
        channel = Channel(door.accept()[0])
        channel.socket.settimeout(max(0.01, deadline - time.monotonic()))
        hello = channel.receive() or {}
      except TimeoutError:
        missing = [i for i in range(1, processes) if i not in found]
        raise refuse(f"of {processes} processes {len(missing)} did not come to {coordinator} within {seconds:g} s (process {', '.join(map(str, missing[:8]))}"
                     f"{', …' if len(missing) > 8 else ''}): start all of them, or raise --connect_seconds.") from None  # fmt: skip
      number = hello.get("process")
      if number is None:  # a stranger at the port
        continue
      if hello.get("processes") != processes or number in found:
        mistake = f"says there are {hello.get('processes')} processes, process 0 says {processes}" if number not in found else "was started twice"
        channel.send(failed=f"process {number} {mistake}")
        raise refuse(f"process {number} {mistake}: start processes 0 … {processes - 1} once each.")
      found[number] = channel
  for channel in found.values():
    channel.socket.settimeout(None)
    channel.send(go=True)
  return found


def _attend(coordinator: str, host: str, port: int, processes: int, process: int, deadline: float, seconds: float) -> Channel:
  """Another process: finds process 0 and waits until all have come."""
  while True:
    try:
      channel = Channel(socket.create_connection((host, port), timeout=max(0.01, deadline - time.monotonic())))
      break
    except OSError as error:
      if time.monotonic() + PAUSE >= deadline:
        raise UserError(f"process {process} of {processes} found no process 0 at {coordinator} within {seconds:g} s ({error.strerror or error}): start it, and let it be "
                        "reachable there, or raise --connect_seconds.") from error  # fmt: skip
      time.sleep(PAUSE)
  channel.send(process=process, processes=processes)
  channel.socket.settimeout(max(0.01, deadline - time.monotonic()) + 5)  # process 0 speaks first when the time is over
  try:
    answer = channel.receive()
  except TimeoutError:
    answer = {"failed": f"process 0 at {coordinator} gave no answer within {seconds:g} s"}
  if answer is None or "go" not in answer:
    raise UserError((answer or {}).get("failed", f"process 0 at {coordinator} is gone, or is no process of this run") + ".")
  channel.socket.settimeout(None)
  return channel
