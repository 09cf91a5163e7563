"""A published model of each kind as a run: imported, scored, trained on, and where it can, made to generate."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from research import convert, evaluate, generate, train
from research.core.errors import UserError
from research.hf import files, loading
from research.hf.family import describe
from research.hf.processor import applied
from tests import drawn

pytestmark = pytest.mark.usefixtures("one_device")

GOLDEN = pathlib.Path(__file__).parent / "golden"
SPECIAL = {  # names of tokenizer_config.json -> the token, which is the word of that number
    "bart": dict(bos_token=0, eos_token=2, pad_token=18, unk_token=3),
    "marian": dict(eos_token=2, pad_token=18, unk_token=3),
    "xlnet": dict(bos_token=1, eos_token=2, pad_token=5, unk_token=0, sep_token=4, cls_token=3),
    "clip": dict(bos_token=39, eos_token=40, unk_token=38),
    "bert": dict(pad_token=0, unk_token=1, cls_token=2, sep_token=3, mask_token=4),
}
AROUND = {"bart": "w0 $A w2", "marian": "$A w2", "xlnet": "$A w4 w3", "clip": "w39 $A w40", "bert": "w2 $A w3"}
TEXT = " ".join(f"w{i}" for i in (6, 7, 8, 9, 10, 11)) + " .\n"


def publish(folder: pathlib.Path, name: str, **changes) -> None:
  """A folder as one downloads it: a tiny model of a family, and a vocabulary of the words w0, w1, …."""
  from tokenizers import Tokenizer, models, pre_tokenizers, processors

  folder.mkdir()
  config = {**json.loads((GOLDEN / name / "config.json").read_text()), **changes}
  family, described = describe(config, "config.json")
  model = loading.build(described, name)
  more = {key: config[key] for key in ("decoder_start_token_id", "eos_token_id", "bos_token_id", "pad_token_id", "id2label") if config.get(key) is not None}
  loading.export(str(folder), model, drawn.parameters(model), family.name, more=more)
  if name not in SPECIAL:
    return
  words = [f"w{i}" for i in range(described.vocab_size)]
  special = {key: words[i] for key, i in SPECIAL[name].items()}
  vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=special["unk_token"]))
  vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  vocabulary.add_special_tokens(sorted(special.values()))
  ids = [(word, words.index(word)) for word in sorted(set(special.values()))]
  vocabulary.post_processor = processors.TemplateProcessing(AROUND[name], None, ids)
  vocabulary.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))


def pictures(folder: pathlib.Path, size: int, captions: bool) -> None:
  """Six images in two folders named after their classes."""
  from PIL import Image

  lines = []
  for i in range(6):
    path = folder / ("cat", "dog")[i % 2] / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    lines.append(json.dumps({"file": str(path.relative_to(folder)), "caption": f"w{i + 3} w{i + 4}"}))
  if captions:
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")


TRAINING = ["steps=2", "batch_size=4", "optimizer.schedule.warmup=1", "log.tensorboard=false"]
CASES = {  # family -> changes of its config, the objective, flags that name its data, the file to evaluate
    "bart": ({}, "seq2seq", ["data.train=pairs.tsv", "data.valid=pairs.tsv"], "pairs.tsv"),
    "marian": ({}, "seq2seq", ["data.train=pairs.tsv", "data.valid=pairs.tsv"], "pairs.tsv"),
    "xlnet": ({}, "permutation_lm", ["data.length=8", "data.sources.text.paths=text.txt"], "text.txt"),
    "bert": ({}, "next_sentence", ["data.sources.text.paths=text.txt"], None),
    "vit": (
        dict(num_channels=3, id2label={"0": "cat", "1": "dog"}),
        "image_classification", ["data.paths=pictures", "data.valid_fraction=0.5"], "pictures",
    ),
    "clip": ({}, "image_text", ["data.paths=pictures", "data.valid_fraction=0.5"], "pictures"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_published_model_becomes_a_run(tmp_path, monkeypatch, run, name):
  changes, objective, flags, file = CASES[name]
  monkeypatch.chdir(tmp_path)
  publish(tmp_path / "published", name, **changes)
  (tmp_path / "pairs.tsv").write_text("w6 w7\tw8 w9 w10\nw9\tw11\n" * 4)
  (tmp_path / "text.txt").write_text((TEXT * 3 + "\n") * 40)
  pictures(tmp_path / "pictures", 6, captions=name == "clip")
  status, out, err = run(convert, "import", "published", "--workdir=imported")
  assert status == 0 and f"objectives.{objective}" in out and "--config.init_from=imported" in out, (out, err)
  if name != "marian":  # trained as BART is
    status, _, err = run(train, "--config=imported", "--workdir=trained", "--config.init_from=imported", *(f"--config.{flag}" for flag in [*TRAINING, *flags]))
    assert status == 0, err
    assert np.isfinite(json.loads((tmp_path / "trained" / "summary.json").read_text())["valid"]["loss"])
  status, out, err = run(evaluate, "--workdir=imported", f"--data={file}") if file else run(evaluate, "--workdir=trained")
  assert status == 0 and "value" in out, err
  if objective == "seq2seq":
    status, out, err = run(generate, "--workdir=imported", "--prompt=w6 w7", "--length=4", "--temperature=0")
    assert status == 0 and out.strip().startswith("w"), (out, err)
  status, _, err = run(convert, "export", "--workdir=imported", "--folder=out")
  assert status == 0, err
  before, after = files.Folder("published"), files.Folder("out")
  assert before.tensors == after.tensors and all(before.read(tensor).tobytes() == after.read(tensor).tobytes() for tensor in before.tensors)


def test_the_image_processor_of_a_folder_counts(tmp_path):
  keys = dict(height=6, width=6, channels=3, mean=(0.5,) * 3, deviation=(0.5,) * 3)
  assert applied(str(tmp_path), keys) == keys
  write = lambda **values: (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
  write(image_mean=[0.1, 0.2, 0.3], image_std=[1, 2, 3], do_rescale=True, size=6)
  assert applied(str(tmp_path), {"pixels": keys}) == {"pixels": {**keys, "mean": (0.1, 0.2, 0.3), "deviation": (1.0, 2.0, 3.0)}}
  write(do_normalize=False)
  assert applied(str(tmp_path), keys) == {**keys, "mean": (0.0,) * 3, "deviation": (1.0,) * 3}
  for mistake in (dict(rescale_factor=1.0), dict(do_rescale=False)):
    write(**mistake)
    with pytest.raises(UserError, match=f"preprocessor_config.json.*{next(iter(mistake))}"):
      applied(str(tmp_path), keys)
