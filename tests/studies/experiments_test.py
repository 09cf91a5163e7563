"""The studies that this checkout holds still fit its code, and the flagship's corpus and table are what their files say."""

from __future__ import annotations

import glob
import gzip
import json
import pathlib

import pytest

from experiments.learning import config as learning
from experiments.objectives import config, corpus, finetuning, report
from research.core import config as configs
from research.core.errors import UserError
from research.core.overrides import load
from research.studies.study import arms_of, check, load_study, resolved
from tests.studies import fake

ROOT = pathlib.Path(__file__).parents[2]
ARGUMENTS = {
  "experiments/objectives/study.py": list(config.SIZES),
  "experiments/objectives/finetuning.py": [f"{task},{size}" for task in config.TASKS for size in config.SIZES],
  "experiments/architecture/study.py": ["causal_lm", "masked_lm"],
}
STUDIES = [f"{path}:{argument}" for path, arguments in ARGUMENTS.items() for argument in arguments]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  """Such as the checkout, in which the models of every size have been trained."""
  for name in ("configs", "experiments"):
    (tmp_path / name).symlink_to(ROOT / name)
  for size in config.SIZES:
    fake.write(tmp_path / "runs" / "objectives" / size / "study.json", {"arms": [{"name": name} for name in finetuning.PRETRAINED]})
  monkeypatch.chdir(tmp_path)


def test_every_study_is_listed_here():
  assert {path for path in glob.glob("experiments/*/*.py") if "def get_study(" in pathlib.Path(path).read_text()} == set(ARGUMENTS)


@pytest.mark.parametrize("path", STUDIES)
def test_every_arm_of_a_study_is_a_config(path):
  study = load_study(path)
  check(study)
  for arm in arms_of(study):
    configs.typed(resolved(study, arm)[1])


@pytest.mark.parametrize("size", config.SIZES)
def test_the_objectives_are_compared_in_one_architecture_with_one_vocabulary_and_fine_tuned_from_it(size):
  study = load_study(f"experiments/objectives/study.py:{size}")
  arms = {arm.name: configs.typed(resolved(study, arm)[1]) for arm in arms_of(study)}
  first = arms["causal"]
  for cfg in arms.values():
    assert (cfg.model, cfg.optimizer, cfg.data.tokenizer.path) == (first.model, first.optimizer, first.data.tokenizer.path)
  assert len({cfg.objective for cfg in arms.values()}) == len(arms) == 5 and study.seeds == 3 and study.equal == "flops"
  assert arms_of(study)[-1].after == "masked" and not any("minimal_pairs" in text for text in arms_of(study)[-1].evals)
  for task in config.TASKS:
    tuned = load_study(f"experiments/objectives/finetuning.py:{task},{size}")
    assert [arm["name"] for arm in tuned.arms] == ["random", *finetuning.PRETRAINED] and set(finetuning.PRETRAINED) == set(arms)
    assert configs.typed(load(tuned.base)).model == first.model


@pytest.mark.parametrize("name", ["causal_lm", "prefix_lm", "masked_lm", "next_sentence", "permutation_lm", "contrastive", "image_text", "image_classification"])
def test_every_small_run_that_shows_that_it_learns_is_a_config(name):
  assert name in " ".join(learning.__doc__.split())
  configs.typed(load(f"experiments/learning/config.py:{name}"))


# --- the corpus --------------------------------------------------------------------------------------------------------------

BOOK = "Produced by volunteers.\n\n*** START OF THE PROJECT GUTENBERG EBOOK ***\n\n{}\n\n*** END OF THE PROJECT GUTENBERG EBOOK ***\n\nLicence.\n"
ARTICLE = " = A Tree = \n\n It is 2 @,@ 000 years old , and it 's tall . \n It stands . \n"


@pytest.fixture
def raw(tmp_path, monkeypatch):
  """A folder of data: two books, one of them in a second edition, web pages and one article."""

  def write(path, text):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(tmp_path / path, "wt", encoding="utf-8") as file:
      file.write(text)

  paragraphs = [f"Paragraph {i} of the book is longer than most others are." for i in range(50)]
  write("gutenberg/a_book.txt.gz", BOOK.format("\n\n".join([*paragraphs, "Once  more\nand again."])))
  write("gutenberg/b_old_pandp10.txt.gz", BOOK.format("An edition too many."))
  write("c4_en_sample/train.jsonl.gz", "".join(json.dumps({"text": text}) + "\n" for text in ["Once more and again.", "A page.\nIts second line.", *(f"Page {i}." for i in range(78))]))
  write("wikitext2/valid.txt.gz", ARTICLE)
  monkeypatch.setenv("RESEARCH_DATA", str(tmp_path))
  return write


def test_the_corpus_has_every_paragraph_once_and_no_licence(raw, tmp_path, capsys):
  corpus.main([f"--out={tmp_path}/out", "--vocab_size=400"])
  documents = {split: [json.loads(line) for line in (tmp_path / "out" / f"{split}.jsonl").read_text().splitlines()] for split in ("train", "valid")}
  texts = [document["text"] for split in documents.values() for document in split]
  whole = "\n\n".join(texts)
  paragraphs = whole.split("\n\n")
  assert len(paragraphs) == len(set(paragraphs)) and paragraphs.count("Once more and again.") == 1
  assert not any(word in whole for word in ("volunteers", "Licence", "START OF", "too many"))
  assert "A Tree" in whole and "It is 2,000 years old, and it's tall.\n\nIt stands." in whole and "A page.\n\nIts second line." in texts
  assert [document["text"] for document in documents["valid"]] == ["Page 37.", "Page 77."], "every fortieth page, counted with those that had nothing new"
  told = json.loads((tmp_path / "out" / "corpus.json").read_text())
  assert told["sources"]["web"]["repeated_and_dropped"] == 1 and told["sources"]["books"]["paragraphs"] == 51 and told == json.loads(capsys.readouterr().out)
  assert (tmp_path / "out" / "tokenizer").is_dir() and told["tokens"]["train"] > 0


def test_a_book_that_is_none_of_project_gutenbergs_is_named(raw):
  raw("gutenberg/a_book.txt.gz", "Words alone.")
  with pytest.raises(UserError, match="a_book.txt.gz has no lines"):
    list(corpus.books())


# --- the table ---------------------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_arm_and_a_dash_where_nothing_is_known(raw, tmp_path, monkeypatch, capsys):
  models = ("ngram", "lstm", "txl", "gpt2")
  columns = {"agreement": (0.5, 0.625, 0.75, 0.875), "islands": (0.25, 0.375, 0.5, 0.625)}
  raw("blimp/models_summary_23.jsonl.gz", "".join(json.dumps({"UID": uid, **dict(zip(models, row))}) + "\n" for uid, row in columns.items()))
  monkeypatch.setattr(report, "HERE", tmp_path)
  metric = {"name": report.BLIMP, "better": "higher"}
  plain = fake.study(tmp_path / "tiny", [{"model.width": 64}, {"model.width": 128}], metrics=[metric], decides={"metric": report.BLIMP, "baseline": "width=64"})
  scores = [50.0, 51.0, 52.0]
  for block, value in enumerate(scores):
    fake.write(tmp_path / "tiny" / "runs" / f"00{block:02x}" / "evaluations.json", {"minimal_pairs of x": {"scores": {"overall": {"value": value}, "islands": {"value": 10.0}}, "settings": {}}})
  report.main("tiny", str(tmp_path))
  said = (tmp_path / "results-tiny.md").read_text()
  assert said.rstrip() == capsys.readouterr().out.rstrip()
  rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for line in said.splitlines() if line.startswith("|") and (cells := line.strip("|").split("|"))}
  assert rows[plain["arms"][0]["name"]][:3] == ["100", "0.0", "51.0 (48.5 … 53.5)"] and rows[plain["arms"][1]["name"]][2:] == ["–"] * 5
  assert "random" not in rows, "nothing was fine-tuned"
  assert rows["mean"] == ["51.0", "37.5", "50.0", "62.5", "75.0"] and rows["islands"] == ["10.0", "25.0", "37.5", "50.0", "62.5"] and rows["agreement"][0] == "–"
