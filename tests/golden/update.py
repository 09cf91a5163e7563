"""Writes the resolved config of every file in configs/ as text beside this file.

  python -m tests.golden.update

The test beside it fails where a recipe, or a default that it rests on, no longer gives that text.
"""

from __future__ import annotations

import pathlib

from research.core import config as configs
from research.core.overrides import load

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parent.parent / "configs"


def resolved() -> dict[str, str]:
  """Name of each config file -> the text of its resolved config."""
  return {path.stem: configs.record(load(str(path))) for path in sorted(CONFIGS.glob("*.py")) if not path.name.startswith("_")}


def main() -> None:
  texts = resolved()
  for old in HERE.glob("*.json"):
    if old.stem not in texts:
      old.unlink()
      print(f"removed {old.name}")
  for name, text in texts.items():
    path = HERE / f"{name}.json"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
      path.write_text(text, encoding="utf-8")
      print(f"wrote {path.name}")


if __name__ == "__main__":
  main()
