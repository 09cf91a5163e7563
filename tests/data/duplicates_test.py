"""The share of lines that occurred before, and that the data says so."""

import pytest

from research.core.config import typed, use
from research.data import duplicates, text

LINE = "this line has more than five words"


def test_lines_are_counted_as_they_pass():
  documents = [f"{LINE}\nROMEO:\n{LINE}  \n", "another line of no fewer than five words", f"ROMEO:\n  {LINE}"]
  lines = duplicates.Lines()
  assert list(lines.watched(documents)) == documents
  assert lines.lines == 4 and lines.share == pytest.approx(0.5)
  assert duplicates.Lines().share == 0


@pytest.mark.parametrize("repeated", [False, True])
def test_the_data_says_when_they_are_many(tmp_path, repeated):
  (tmp_path / "text.txt").write_text("\n".join(f"{LINE} and the number {0 if repeated else i}" for i in range(200)))
  data = use("data.text", sources={"some": use("data.sources.files", paths=(str(tmp_path / "text.txt"),), documents="line")}, tokenizer=use("data.tokenizer", kind="byte"))
  for _ in range(2):  # written, and found again
    said = []
    prepared = text.prepare(typed(data), str(tmp_path / "data"), said.append)
    assert prepared.summary["some"]["train"]["duplicate_lines"] == pytest.approx(179 / 180 if repeated else 0)
    assert any(line.startswith("alarm: 99%") and "'some'" in line for line in said) == repeated
