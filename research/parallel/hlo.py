"""Reads a compiled program's text (optimised HLO): which instructions run how often, and what they read and write.

XLA's own cost analysis counts the body of a loop once. Here a body counts as often as it runs: by `known_trip_count` where the backend writes it, else by
the constant that the loop's condition compares its counter with. All sizes are those of one device's program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_WIDTHS = {"pred": 1, "bf16": 2, "token": 0, "opaque": 0, "c64": 8, "c128": 16}  # bytes; of the others the name tells the bits
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_END = re.compile(r"^\}(, execution_thread=.*)?$")
_OPERAND = re.compile(r"%([\w.\-]+)")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "opt-barrier", "iota"}
_SLICES = {"dynamic-slice", "slice", "gather"}


class Instruction(NamedTuple):
  name: str
  opcode: str
  shape: str  # as it is written: `f32[8,512]{1,0}`, or a tuple of these in parentheses
  operands: tuple[str, ...]
  text: str  # what stands in the operation's parentheses
  attributes: str
  root: bool

  def called(self, key: str) -> str | None:
    """The computation that an attribute names: `calls`, `body`, `condition`, `to_apply`."""
    found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
    return found and found.group(1)


class Computation(NamedTuple):
  name: str
  instructions: dict[str, Instruction]

  def root(self) -> Instruction:
    return next(i for i in self.instructions.values() if i.root)

  def parameters(self) -> dict[int, str]:
    return {int(i.text): i.name for i in self.instructions.values() if i.opcode == "parameter"}


class Program(NamedTuple):
  entry: str
  computations: dict[str, Computation]


def sizes(shape: str, main_memory: bool = False) -> list[int]:
  """Bytes of the arrays of a shape, in their order; with `main_memory` 0 for those in another memory (`S(1)` in the layout: VMEM of a TPU)."""
  found = []
  for dtype, dims, layout in _ARRAY.findall(shape):
    bits = re.search(r"\d+", dtype)
    count = 1
    for dim in dims.split(",") if dims else ():
      count *= int(dim)
    width = _WIDTHS[dtype] if dtype in _WIDTHS else int(bits.group()) / 8 if bits else 0
    elsewhere = main_memory and re.search(r"S\([1-9]", layout)
    found.append(0 if elsewhere else int(count * width))
  return found


def parse(text: str) -> Program:
  """The computations of a module's text.

  Raises:
    ValueError: an instruction that stands in no computation, so that what is read is not all that runs.
  """
  computations, entry, current = {}, "", None
  for line in _lines(text):
    if current is None:
      head = _HEAD.match(line)
      if head:
        current = Computation(head.group(2), {})
        entry = head.group(2) if head.group(1) else entry
      elif _NAME.match(line):
        raise ValueError(f"an instruction outside of any computation: {line[:80]!r}")
    elif _END.match(line):
      computations[current.name], current = current, None
    elif match := _NAME.match(line):
      instruction = _instruction(match.group(2), bool(match.group(1)), line[match.end() :])
      current.instructions[instruction.name] = instruction
  return Program(entry, computations)


def _lines(text: str) -> Iterator[str]:
  """Lines, an instruction's in one: the metadata of a kernel go on over several, of which one may begin with a brace."""
  held = ""
  for line in text.splitlines():
    if _NAME.match(held) and not _NAME.match(line) and not _END.match(line):
      held += line
    else:
      yield held
      held = line
  yield held


def _instruction(name: str, root: bool, rest: str) -> Instruction:
  """`f32[8]{0} add(%a, %b), metadata={…}`"""
  cut = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
  shape, rest = rest[:cut], rest[cut:].lstrip()
  start = rest.index("(")
  end = _closing(rest, start)
  inside = rest[start + 1 : end - 1]
  return Instruction(name, rest[:start], shape, tuple(_OPERAND.findall(inside)), inside, rest[end:], root)


def _closing(text: str, start: int) -> int:
  """The place after the parenthesis that closes the one at `start`."""
  depth = 0
  for place in range(start, len(text)):
    depth += (text[place] == "(") - (text[place] == ")")
    if depth == 0:
      return place + 1
  raise ValueError(f"no closing parenthesis in {text[:80]!r}")


class Run(NamedTuple):
  """An instruction as it is executed."""

  instruction: Instruction
  computation: Computation
  times: int
  fused: bool  # it is part of a fusion, whose reading and writing is counted as a whole


def walk(program: Program) -> tuple[list[Run], int]:
  """Every instruction that runs, with how often, and the number of loops whose trip count the text does not tell (their bodies count once).

  Of a conditional every branch counts once; what a reduction applies to its elements is not listed.
  """
  unknown = 0

  def of(name: str, times: int, fused: bool) -> Iterator[Run]:
    nonlocal unknown
    computation = program.computations[name]
    for instruction in computation.instructions.values():
      yield Run(instruction, computation, times, fused)
      opcode = instruction.opcode
      if opcode == "while":
        trips = _trips(program, computation, instruction)
        unknown += trips is None
        yield from of(instruction.called("body"), times * (1 if trips is None else trips), fused)
      elif opcode == "fusion":
        yield from of(instruction.called("calls"), times, True)
      elif opcode in ("call", "async-start"):
        yield from of(instruction.called("to_apply") or instruction.called("calls"), times, fused)
      elif opcode == "conditional":
        listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
        branches = _OPERAND.findall(listed.group(1)) if listed else [instruction.called("true_computation"), instruction.called("false_computation")]
        for branch in branches:
          yield from of(branch, times, fused)

  return list(of(program.entry, 1, False)), unknown


def _trips(program: Program, computation: Computation, loop: Instruction) -> int | None:
  """How often a loop's body runs; None where neither the backend nor the condition tells."""
  known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known.group(1))
  condition = program.computations[loop.called("condition")]
  compare = condition.root()
  if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
    return None
  counter, limit = (condition.instructions[name] for name in compare.operands)
  start = _carried(condition, counter, computation, loop)
  end = _carried(condition, limit, computation, loop)
  return None if end is None else max(0, end - (start or 0))  # a counter whose start is computed begins at 0, as jax.lax.scan has it


def _carried(condition: Computation, value: Instruction, computation: Computation, loop: Instruction) -> int | None:
  """The constant that a value of a condition is, itself or as the loop was handed it."""
  if value.opcode == "get-tuple-element":
    handed = computation.instructions[loop.operands[0]]
    if handed.opcode != "tuple":
      return None
    value = computation.instructions[handed.operands[int(re.search(r"index=(\d+)", value.attributes).group(1))]]
    while value.opcode in ("copy", "bitcast", "convert"):
      value = computation.instructions[value.operands[0]]
  return int(value.text) if value.opcode == "constant" and re.fullmatch(r"-?\d+", value.text) else None


def traffic(program: Program, runs: list[Run]) -> int:
  """Bytes that one device reads from and writes to its main memory.

  Every instruction reads its operands and writes its result; one fused operation counts as a whole. A slice reads what it gives, and an update in place
  writes what it changes. Arrays that live in a TPU's VMEM count nothing, and neither does the padding of tiled layouts.
  """
  return sum(run.times * _accessed(program, run) for run in runs if not run.fused)


def _accessed(program: Program, run: Run) -> int:
  instruction, around = run.instruction, run.computation.instructions
  opcode = instruction.opcode
  if opcode in _FREE or opcode in ("while", "conditional", "call", "async-start") or opcode.endswith(("-done", "-update")):
    return 0
  written = sum(sizes(instruction.shape, True))
  operands = [around[name].shape for name in instruction.operands]
  if opcode == "copy-start":  # (to, from, a flag): each of the two where it is in main memory
    return written
  if opcode.endswith("-start"):  # (operands, results, …): each once
    return written
  if opcode in _SLICES:
    return 2 * written if sum(sizes(operands[0], True)) else written
  if opcode in ("dynamic-update-slice", "scatter"):
    return 2 * sum(sizes(operands[1 if opcode == "dynamic-update-slice" else -1], True))
  if opcode == "fusion":
    inner = program.computations[instruction.called("calls")]
    reads = [_read(program, inner, name) if sum(sizes(shape, True)) else 0 for shape, name in _paired(operands, inner)]
    return sum(reads) + _written(inner, instruction.shape)
  return written + sum(sum(sizes(shape, True)) for shape in operands)


def _paired(operands: list[str], inner: Computation) -> Iterator[tuple[str, str]]:
  names = inner.parameters()
  return ((shape, names[i]) for i, shape in enumerate(operands) if i in names)


def _read(program: Program, computation: Computation, name: str) -> int:
  """Bytes of a fused computation's parameter that it reads: all, or what slices take of it."""
  total, whole = 0, sum(sizes(computation.instructions[name].shape))
  for user in computation.instructions.values():
    if name not in user.operands:
      continue
    if user.opcode in _SLICES and user.operands[0] == name:
      total += sum(sizes(user.shape))
    elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
      pass
    elif user.opcode == "bitcast":
      total += _read(program, computation, user.name)
    elif user.opcode == "fusion":
      inner = program.computations[user.called("calls")]
      total += sum(_read(program, inner, inner.parameters()[i]) for i, operand in enumerate(user.operands) if operand == name)
    elif user.opcode != "tuple":
      return whole
  return min(total, whole)


def _written(inner: Computation, shape: str) -> int:
  """Bytes that a fusion writes: its results, of one that is updated in place what changes."""
  root = inner.root()
  results = root.operands if root.opcode == "tuple" else (root.name,)
  total = 0
  for size, name in zip(sizes(shape, True), results):
    result = inner.instructions[name]
    while result.opcode == "bitcast":
      result = inner.instructions[result.operands[0]]
    if size and result.opcode == "dynamic-update-slice":
      size = sum(sizes(inner.instructions[result.operands[1]].shape))
    total += size
  return total
