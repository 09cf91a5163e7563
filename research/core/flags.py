"""Command-line flags: absl's, with `--config=FILE[:argument]` and `--config.key=value` taken out first.

Every command is `flags → one call`; this file holds what they share.
"""

from __future__ import annotations

import sys

from absl import flags as absl_flags

from research.core.errors import UserError, nearest


def parse(arguments: list[str], values: absl_flags.FlagValues, usage: str) -> list[str]:
  """Parses `arguments` into `values` and returns the `--config.key=value` overrides in their order.

  Raises:
    UserError: an unknown flag (the nearest is named) or a value of the wrong type.
  """
  overrides = [a for a in arguments if a.startswith(("--config.", "-config."))]
  rest = [a for a in arguments if a not in overrides]
  if any(a in ("--help", "-h", "-help") for a in rest):
    print(_help(usage, values))
    sys.exit(0)
  try:
    left = values(["command", *rest])
  except absl_flags.UnrecognizedFlagError as error:
    raise UserError(f"no flag '--{error.flagname}'.{nearest(error.flagname, _names(values))}") from error
  except absl_flags.Error as error:
    raise UserError(str(error).rstrip(".") + ".") from error
  if len(left) > 1:
    raise UserError(f"unexpected argument '{left[1]}': flags are written --name=value.")
  return overrides


def _names(values: absl_flags.FlagValues) -> list[str]:
  return sorted(name for name in values if len(name) > 1)


def _help(usage: str, values: absl_flags.FlagValues) -> str:
  lines = [usage.strip(), "", "flags:"]
  for name in _names(values):
    flag = values[name]
    default = "" if flag.default in (None, "") else f" (default: {flag.default})"
    lines.append(f"  --{name}: {flag.help}{default}")
  return "\n".join(lines)
