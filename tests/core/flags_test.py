"""Flags: overrides are taken out in their order, mistakes name the nearest flag."""

import pytest
from absl import flags

from research.core.errors import UserError
from research.core.flags import parse


@pytest.fixture
def values():
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
  flags.DEFINE_integer("length", 4, "tokens", flag_values=values)
  return values


def test_overrides_keep_their_order_and_flags_are_set(values):
  overrides = parse(["--config.b=1", "--length=7", "--config.a.c=x y", "--workdir", "runs/a"], values, "usage")
  assert overrides == ["--config.b=1", "--config.a.c=x y"]
  assert (values.length, values.workdir) == (7, "runs/a")


@pytest.mark.parametrize(
  "arguments, parts",
  [
    (["--wrkdir=x"], ["'--wrkdir'", "'workdir'"]),
    (["--length=long"], ["length", "long"]),
    (["stray"], ["'stray'", "--name=value"]),
  ],
)
def test_mistakes(values, arguments, parts):
  with pytest.raises(UserError) as info:
    parse(arguments, values, "usage")
  assert all(part in str(info.value) for part in parts) and "\n" not in str(info.value)


def test_help_lists_usage_and_flags(values, capsys):
  with pytest.raises(SystemExit) as end:
    parse(["--help"], values, "what it does")
  shown = capsys.readouterr().out
  assert not end.value.code and "what it does" in shown and "--length: tokens (default: 4)" in shown
