"""How processes come together and hear of each other's end; here each is a thread."""

import queue
import re
import socket
import threading

import pytest

from research.core.errors import UserError
from research.parallel.meeting import STATUS_LOST, Meeting
from tests.several_processes import free_port


def meet(processes, *who, count=None, seconds=20.0):
  """What each of the threads `who` gets: a Meeting or the sentence of its error. `count`: how many the last one believes there are."""
  port, found = free_port(), [None] * len(who)

  def come(i):
    try:
      believed = count if count is not None and i == len(who) - 1 else processes
      found[i] = Meeting(f"127.0.0.1:{port}", believed, who[i], seconds)
    except UserError as error:
      found[i] = str(error)

  threads = [threading.Thread(target=come, args=(i,)) for i in range(len(who))]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return found


def watched(meetings):
  """Queues of what would end each process: (sentence, status)."""
  ends = [queue.Queue() for _ in meetings]
  for meeting, end in zip(meetings, ends):
    meeting.watch(lambda message, status, end=end: end.put((message, status)))
  return ends


def test_all_hear_why_one_stops():
  meetings = meet(3, 2, 0, 1)
  ends = watched(meetings)
  meetings[0].tell("process 2: the disk is full")
  for process, end in ((0, ends[1]), (1, ends[2])):
    message, status = end.get(timeout=20)
    assert message.startswith(f"process 2: the disk is full; process {process} stops with it") and status == STATUS_LOST
  assert ends[0].empty()


def test_who_is_done_takes_nobody_along():
  meetings = meet(3, 0, 1, 2)
  ends = watched(meetings)
  meetings[1].close()
  meetings[2].tell("process 2: later")  # the next that process 0 hears
  assert ends[0].get(timeout=20)[0].startswith("process 2: later") and ends[1].empty()


@pytest.mark.parametrize("dies", [0, 1])
def test_all_hear_that_one_is_gone(dies):
  meetings = meet(3, 0, 1, 2)
  ends = watched(meetings)
  meetings[dies]._ended.set()  # the dead hear nothing
  for channel in meetings[dies]._channels.values():
    channel.socket.shutdown(socket.SHUT_RDWR)  # what the kernel does with a dead process's connections
  for process in {0, 1, 2} - {dies}:
    message, _ = ends[process].get(timeout=20)
    assert message.startswith(f"process {dies} is gone; process {process} stops")



def test_missing_processes_are_named_by_all_that_came():
  first, third = meet(4, 0, 2, seconds=1.0)
  assert re.search(r"of 4 processes 2 did not come .* within 1 s \(process 1, 3\)", first)
  assert third.rstrip(".") == first.rstrip(".")


def test_no_process_0():
  (found,) = meet(2, 1, seconds=0.5)
  assert "process 1 of 2 found no process 0 at 127.0.0.1" in found


def test_processes_that_do_not_belong_together():
  assert all("process 1 says there are 3 processes, process 0 says 2" in found for found in meet(2, 0, 1, count=3))
  found = meet(3, 0, 1, 1)
  assert all("process 1 was started twice" in sentence for sentence in found)


def test_a_port_that_is_taken():
  with socket.create_server(("", 0)) as taken, pytest.raises(UserError, match="cannot listen at port"):
    Meeting(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0, 1.0)
