"""Images as data: every form of file, alpha on white, rows by what is asked, mistakes as one sentence."""

import gzip
import io
import json
import os
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

from research.core.errors import UserError
from research.core.types import Field
from research.data import images, tokenizer
from research.data.sources import files

SIZE = (6, 4)  # height, width


def spec(*names, height=SIZE[0], width=SIZE[1], length=12):
  shapes = {"images": (height, width, 3), "tokens": (length,), "segments": (length,), "label": ()}
  return {name: Field(shapes[name], "", (), name) for name in names or shapes}


def quiet(message):
  del message


def config(path, **changes):
  base = dict(paths=(str(path),), height=SIZE[0], width=SIZE[1], length=12, tokenizer=tokenizer.Config(kind="byte"), directory="", valid_fraction=0.25)
  return images.Config(**{**base, **changes})


def pixels(seed, channels=3):
  return np.random.default_rng(seed).integers(0, 256, (*SIZE, channels)).astype(np.uint8)


def png(array) -> bytes:
  out = io.BytesIO()
  Image.fromarray(array).save(out, "PNG")
  return out.getvalue()


def idx(array) -> bytes:
  return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def captioned(tmp_path):
  folder = tmp_path / "captioned"
  (folder / "png").mkdir(parents=True)
  lines = []
  for i in range(8):
    (folder / "png" / f"{i}.png").write_bytes(png(pixels(i)))
    lines.append(json.dumps({"file": f"png/{i}.png", "caption": f"no {i}", "kind": "odd" if i % 2 else "even"}))
  (folder / "png" / "unlisted.png").write_bytes(png(pixels(9)))
  (folder / "captions.jsonl").write_text("\n".join(lines))
  return folder


def packed(folder, path):
  with tarfile.open(path, "w:gz") as archive:
    archive.add(folder, arcname="x")
  return path


def contents(prepared, cfg):
  """caption -> (image, class), over both splits."""
  found = {}
  for split in ("train", "valid"):
    rows = images.Rows(prepared.splits[split], prepared.tokenizer.pad, cfg, spec())
    for i in range(len(rows)):
      row = rows[i]
      text = prepared.tokenizer.decode(row["tokens"][row["segments"] > 0])
      assert row["tokens"][row["segments"].sum() - 1] == prepared.tokenizer.special["eos"] or row["segments"].all()
      found[text] = (row["images"], prepared.labels[row["label"]])
  return found


def test_a_folder_and_an_archive_with_captions(captioned, tmp_path):
  for path in (captioned, packed(captioned, tmp_path / "all.tar.gz")):
    cfg = config(path, label_key="kind")
    prepared = images.prepare(cfg, str(tmp_path / "data"), quiet)
    assert prepared.labels == ("even", "odd") and [len(prepared.splits[s].images) for s in ("train", "valid")] == [6, 2]
    found = contents(prepared, cfg)
    assert set(found) == {f"no {i}" for i in range(8)}
    for i in range(8):
      image, label = found[f"no {i}"]
      np.testing.assert_array_equal(image, pixels(i))
      assert image.dtype == np.uint8 and label == ("odd" if i % 2 else "even")


def test_folders_named_after_classes(tmp_path):
  for name, seeds in (("cat", (0, 1)), ("dog", (2, 3, 4))):
    (tmp_path / "pets" / name).mkdir(parents=True)
    for seed in seeds:
      (tmp_path / "pets" / name / f"{seed}.png").write_bytes(png(pixels(seed)))
  cfg = config(tmp_path / "pets", valid_paths=(str(packed(tmp_path / "pets", tmp_path / "pets.tgz")),))
  prepared = images.prepare(cfg, str(tmp_path / "data"), quiet)
  assert prepared.labels == ("cat", "dog") and prepared.splits["train"].classes.tolist() == [0, 0, 1, 1, 1]
  np.testing.assert_array_equal(prepared.splits["train"].images, prepared.splits["valid"].images)
  row = images.train_rows(prepared, cfg, spec("images", "label"))[3]
  assert set(row) == {"images", "label"}


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx(tmp_path, ending):
  grey, labels = np.random.default_rng(0).integers(0, 256, (10, *SIZE)).astype(np.uint8), np.arange(10, dtype=np.uint8) % 3
  write = lambda name, content: (tmp_path / (name + ending)).write_bytes(gzip.compress(content) if ending else content)
  write("t-images-idx3-ubyte", idx(grey))
  write("t-labels-idx1-ubyte", idx(labels))
  cfg = config(tmp_path / f"t-images-idx3-ubyte{ending}", channels=1)
  prepared = images.prepare(cfg, str(tmp_path / "data"), quiet)
  train = prepared.splits["train"]
  assert prepared.labels == ("0", "1", "2") and train.images.shape == (8, *SIZE, 1)
  for image, label in zip(train.images, train.classes):
    (place,) = np.flatnonzero((grey == image[..., 0]).all((1, 2)))
    assert labels[place] == label
  write("t-labels-idx1-ubyte", idx(labels[:9]))
  with pytest.raises(UserError, match="10 images, but .* 9 labels"):
    images.prepare(cfg, str(tmp_path / "data"), quiet)


def test_transparent_pixels_are_white_and_other_sizes_are_fitted():
  cfg, clear = config("x"), pixels(0, 4)
  clear[0, 0, 3], clear[1, 1, 3], clear[2, 2, 3] = 0, 255, 128
  seen = images.decode(png(clear), "", cfg)
  assert seen[0, 0].tolist() == [255] * 3 and seen[1, 1].tolist() == clear[1, 1, :3].tolist()
  np.testing.assert_allclose(seen[2, 2], clear[2, 2, :3] * (128 / 255) + 255 * (127 / 255), atol=1.5)
  wide = np.zeros((12, 24, 3), np.uint8)
  wide[:, 8:16] = 200  # of which the middle third is what a fitting cut keeps
  assert (images.decode(png(wide), "", cfg)[:, 1:3] > 190).all() and images.decode(png(wide), "", cfg).shape == (*SIZE, 3)
  assert images.decode(png(pixels(0)), "", config("x", channels=1)).shape == (*SIZE, 1)


def test_rows_are_a_function_of_the_seed_and_images_are_decoded_once(captioned, tmp_path, monkeypatch):
  cfg, said = config(captioned), []
  prepared = images.prepare(cfg, str(tmp_path / "data"), said.append)
  monkeypatch.setattr(images, "decode", lambda *_: pytest.fail("decoded again"))
  again = images.prepare(cfg, str(tmp_path / "data"), said.append)
  assert sum("decoding" in line for line in said) == 1 and again.digest == prepared.digest
  names = ("images", "tokens", "segments")
  one, two = images.train_rows(prepared, cfg, spec(*names)), images.train_rows(again, cfg, spec(*names))
  for i in range(12):
    np.testing.assert_array_equal(one[i]["images"], two[i]["images"])
  epochs = [{one[i]["images"].tobytes() for i in range(start, start + 6)} for start in (0, 6)]
  assert len(epochs[0]) == 6 and epochs[0] == epochs[1]
  assert len(images.valid_rows(prepared, cfg, spec(*names))) == 2
  changed = images.prepare(config(captioned, seed=1), str(tmp_path / "data"), quiet)
  assert changed.digest != prepared.digest


def test_mistakes(captioned, tmp_path):
  fails = lambda match, **changes: pytest.raises(UserError, match=match)
  at = str(tmp_path / "data")
  with fails("names no images"):
    images.prepare(config("x", paths=()), at, quiet)
  with fails("no file or folder 'absent'"):
    images.prepare(config("absent"), at, quiet)
  with fails("line 1: KeyError: 'name' .there: file, caption, kind"):
    images.prepare(config(captioned, caption_key="name"), at, quiet)
  prepared, cfg = images.prepare(config(captioned), at, quiet), config(captioned)
  with fails("set data.label_key"):
    images.train_rows(prepared, cfg, spec())
  with fails("set data.height=7, data.width=5"):
    images.train_rows(prepared, cfg, spec("images", height=7, width=5))
  with fails("asks for 'types'"):
    images.train_rows(prepared, cfg, {"types": Field((12,), "", (), "types")})
  (captioned / "png" / "3.png").write_bytes(png(pixels(3))[:60])
  with fails("png/3.png' cannot be decoded"):
    images.prepare(config(captioned), at, quiet)
  os.remove(captioned / "png" / "3.png")
  with fails("no image 'png/3.png', which captions.jsonl names"):
    images.prepare(config(captioned), at, quiet)
  (tmp_path / "broken.tar.gz").write_bytes(packed(captioned, tmp_path / "a.tar.gz").read_bytes()[:300])
  with fails("is no whole compressed file"):
    images.prepare(config(tmp_path / "broken.tar.gz"), at, quiet)
  (tmp_path / "a-images-idx3-ubyte").write_bytes(idx(np.zeros((3, *SIZE), np.uint8))[:40])
  with fails("no whole IDX file"):
    images.prepare(config(tmp_path / "a-images-idx3-ubyte"), at, quiet)
  (tmp_path / "empty").mkdir()
  with fails("no image at"):
    images.prepare(config(tmp_path / "empty"), at, quiet)


def test_the_data_sets(tmp_path):
  root = files.data_root()
  if not os.path.isdir(os.path.join(root, "emoji_captions")):
    pytest.skip(f"no images under {root}")
  cfg = images.Config(paths=("$RESEARCH_DATA/mnist/train10k-images-idx3-ubyte.gz",), height=28, width=28, channels=1, tokenizer=tokenizer.Config(kind="byte"))
  prepared = images.prepare(cfg, str(tmp_path), quiet)
  classes = np.concatenate([split.classes for split in prepared.splits.values()])
  assert np.bincount(classes).tolist() == [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978] and len(prepared.splits["valid"].images) == 1000
  cfg = images.Config(paths=("$RESEARCH_DATA/emoji_captions/emoji48.tar.gz",), caption_key="name", label_key="category", tokenizer=tokenizer.Config(kind="byte"))
  prepared = images.prepare(cfg, str(tmp_path), quiet)
  assert sum(len(split.images) for split in prepared.splits.values()) == 1622 and len(prepared.labels) > 3
