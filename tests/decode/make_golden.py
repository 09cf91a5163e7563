"""Writes the golden folders: tiny models of transformers and the texts that its generate makes of them.

  python -m tests.decode.make_golden [name …]        needs torch and transformers
"""

from __future__ import annotations

import shutil
import sys

from tests.decode import common


def main(names: list[str]) -> None:
  for name in names or common.DECODERS:
    shutil.rmtree(common.GOLDEN / name, ignore_errors=True)
    print(f"{name}: {common.write_golden(name):,} bytes")


if __name__ == "__main__":
  main(sys.argv[1:])
