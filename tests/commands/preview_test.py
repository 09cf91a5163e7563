"""What preview shows of each objective: the row, what is read of it, what is predicted, and who sees whom."""

import json

import numpy as np
import pytest

from research.core.config import typed, use
from research.preview import preview

BYTES = use("data.tokenizer", kind="byte")
WORDS = "data.sources.synthetic"


def page(tmp_path, objective, data, png=False, **keys):
  config = use("training.experiment", batch_size=2, data=data, objective=use(f"objectives.{objective}", **keys))
  return preview(typed(config), str(tmp_path), 2, 20, str(tmp_path / "a.png") if png else None)


def text(**keys):
  return use("data.text", sources={"text": use(WORDS, documents=20)}, tokenizer=BYTES, length=24, **keys)


def sight(found: str) -> list[str]:
  return [line.strip() for line in found.split("who sees whom")[1].splitlines()[1:] if set(line.strip()) <= set("#·")]


def test_causal_and_prefix(tmp_path):
  assert sight(page(tmp_path, "causal_lm", text())) == ["#" * i + "·" * (20 - i) for i in range(1, 21)]
  prefix = sight(page(tmp_path, "causal_lm", text(), prefix=True))
  known = prefix[0].count("#")
  assert prefix[:known] == [prefix[0]] * known and prefix[-1] == "#" * 20


def test_permutation_shows_order_and_queries(tmp_path):
  found = page(tmp_path, "permutation_lm", text(), predict=3)
  assert found.count("  order     ") == 2 and "queries of the second stream" in found
  line = next(line for line in found.splitlines() if line.startswith("  order"))
  order = [int(place) for place in line.split()[1:]]
  asked = [(int(line.split()[0]), line.split()[1]) for line in found.split("asks about")[1].splitlines() if line.strip()]
  assert asked
  for place, seen in asked:
    assert [cell == "#" for cell in seen] == [other < order[place] for other in order]


def test_texts_that_belong_together(tmp_path):
  (tmp_path / "pairs.tsv").write_text("one text\tits other\n" * 6)
  data = use("data.groups", train=(str(tmp_path / "pairs.tsv"),), valid=(str(tmp_path / "pairs.tsv"),), tokenizer=BYTES, length=16)
  found = page(tmp_path, "contrastive", data, texts=2)
  assert "original 1" in found and "original 2" in found and "told apart from the others" in found


def test_an_image_and_its_caption(tmp_path):
  from PIL import Image

  folder = tmp_path / "images"
  folder.mkdir()
  for i in range(4):
    Image.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)).save(folder / f"{i}.png")
  (folder / "captions.jsonl").write_text("".join(json.dumps({"file": f"{i}.png", "caption": f"number {i}"}) + "\n" for i in range(4)))
  data = use("data.images", paths=(str(folder),), height=8, width=8, tokenizer=BYTES, length=16)
  found = page(tmp_path, "image_text", data, png=True, height=8, width=8)
  assert "8 × 8 × 3 bytes, read as 8 × 8 × 3 numbers" in found and (tmp_path / "a.png").stat().st_size > 1000
  (tmp_path / "a.png").unlink()
  for i in range(4):
    (folder / "abcd"[i]).mkdir()
    (folder / f"{i}.png").rename(folder / "abcd"[i] / f"{i}.png")
  (folder / "captions.jsonl").unlink()
  found = page(tmp_path, "image_classification", data, png=True, height=8, width=8, classes=4)
  assert "who sees whom" not in found and any(f"0→{name}" in found for name in "abcd") and (tmp_path / "a.png").exists()


@pytest.mark.parametrize("objective", ["next_sentence", "masked_lm"])
def test_hidden_tokens_are_marked(tmp_path, objective):
  pairs = use("data.pairs", sources={"text": use(WORDS, documents=20, words=(60, 90))}, tokenizer=BYTES, length=24)
  masked = use("objectives.masked_lm", mask_rate=0.4, keep_rate=0.0, random_rate=0.0)
  found = page(tmp_path, objective, pairs, masked=masked) if objective == "next_sentence" else page(tmp_path, objective, text(), mask_rate=0.4, keep_rate=0.0)
  assert "[<mask>]" in found and "(mlm: " in found and ("(nsp: 1 targets)" in found) == (objective == "next_sentence")
