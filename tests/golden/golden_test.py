"""Every recipe resolves to the text that was written down: a changed default shows where it reaches."""

import difflib
import json

import pytest

from research.core import config as configs
from tests.golden.update import HERE, resolved

TEXTS = resolved()
MEND = "if that is meant, run `python -m tests.golden.update` and commit the change"


@pytest.mark.parametrize("name", sorted(TEXTS.keys() | {path.stem for path in HERE.glob("*.json")}))
def test_the_resolved_config_is_the_one_written_down(name):
  path = HERE / f"{name}.json"
  assert name in TEXTS, f"{path.name} belongs to no file in configs/: {MEND}"
  assert path.is_file(), f"configs/{name}.py has no golden text: {MEND}"
  old, new = path.read_text(encoding="utf-8"), TEXTS[name]
  changes = "\n".join(difflib.unified_diff(old.splitlines(), new.splitlines(), path.name, f"configs/{name}.py", n=1, lineterm=""))
  assert not changes, f"the config of configs/{name}.py has changed: {MEND}\n{changes}"


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_the_text_is_a_whole_config(name):
  path = HERE / f"{name}.json"
  assert configs.record(configs.read(str(path))) == path.read_text(encoding="utf-8")
  assert {"seed", "steps", "batch_size", "data", "model", "objective", "optimizer", "mesh"} <= json.loads(TEXTS[name]).keys()
