"""Writes the corpus that all arms of the study read: books, web pages and encyclopedia articles as JSON lines, and the one tokenizer.

  python -m experiments.objectives.corpus            (--out=runs/objectives/corpus --vocab_size=4096)

Sources, of $RESEARCH_DATA: Project Gutenberg's books without its header and licence, of Pride and Prejudice one edition; the C4 sample; WikiText-2's validation part, its
spacing of punctuation undone (its `<unk>` stay, and so does `don 't`). A paragraph that has occurred before, but for white space, is left out wherever it comes up again. Every fortieth
document is for validation. corpus.json tells what was kept.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
from collections.abc import Iterator

from absl import flags

from research.core.errors import UserError, command
from research.core.flags import parse
from research.data import tokenizer
from research.data.sources import files

FLAGS = flags.FlagValues()
flags.DEFINE_string("out", "runs/objectives/corpus", "folder that is written to", flag_values=FLAGS)
flags.DEFINE_integer("vocab_size", 4096, "entries of the tokenizer", flag_values=FLAGS)

OTHER_EDITIONS = ("old_pandp10", "old_pandp12", "_42671")  # of Pride and Prejudice
PIECE = 8000  # characters, or a little more, of a book that are one document
EVERY = 40  # of so many documents one is for validation
GUTENBERG = re.compile(r"\*\*\* ?START OF[^\n]*\*\*\*\s*\n(.*)\*\*\* ?END OF", re.DOTALL)
HEADING = re.compile(r"^ = ([^=].*[^=]) = $", re.MULTILINE)
SPACING = ((r" @([-,.])@ ", r"\1"), (r" ([.,;:!?%)\]}])", r"\1"), (r"([(\[{$£]) ", r"\1"), (r" ('(?:s|re|ve|ll|d|m)|n't)\b", r"\1"), (r" – ", "–"))


def main(arguments: list[str]) -> None:
  parse(arguments, FLAGS, __doc__)
  os.makedirs(FLAGS.out, exist_ok=True)
  counts, seen = {}, set()
  texts: dict[str, list[dict[str, str]]] = {"train": [], "valid": []}
  for name, documents in (("books", books()), ("web", web()), ("encyclopedia", encyclopedia())):
    kept = dropped = 0
    for number, document in enumerate(documents):
      found = [p for p in (part.strip() for part in re.split(r"\n\s*\n", document)) if p]
      new = [p for p in found if (key := hashlib.sha256(" ".join(p.split()).encode()).digest()) not in seen and not seen.add(key)]
      kept, dropped = kept + len(new), dropped + len(found) - len(new)
      if new:
        texts["valid" if number % EVERY == EVERY - 1 else "train"].append({"source": name, "text": "\n\n".join(" ".join(p.split()) for p in new)})
    counts[name] = {"paragraphs": kept, "repeated_and_dropped": dropped}
  for split, documents in texts.items():
    with open(os.path.join(FLAGS.out, f"{split}.jsonl"), "w", encoding="utf-8") as file:
      file.writelines(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    for name in counts:
      counts[name][split] = {"documents": sum(d["source"] == name for d in documents), "characters": sum(len(d["text"]) for d in documents if d["source"] == name)}
  trained = tokenizer.train(tokenizer.Config(vocab_size=FLAGS.vocab_size), (document["text"] for document in texts["train"]))
  trained.save(os.path.join(FLAGS.out, "tokenizer"))
  total = {"sources": counts, "tokenizer": trained.digest, "tokens": {split: sum(map(len, trained.encode_batch([d["text"] for d in documents]))) for split, documents in texts.items()}}
  with open(os.path.join(FLAGS.out, "corpus.json"), "w", encoding="utf-8") as file:
    json.dump(total, file, indent=1)
  print(json.dumps(total, indent=1))


def books() -> Iterator[str]:
  """Pieces of the books, cut between paragraphs."""
  folder = os.path.join(files.data_root(), "gutenberg")
  for name in sorted(os.listdir(folder)):
    if not any(edition in name for edition in OTHER_EDITIONS):
      with gzip.open(os.path.join(folder, name), "rt", encoding="utf-8-sig") as file:
        text = file.read().replace("\r\n", "\n")
      match = GUTENBERG.search(text)
      if match is None:
        raise UserError(f"{name} has no lines *** START OF … and *** END OF …: it is no book of Project Gutenberg.")
      piece: list[str] = []
      for paragraph in re.split(r"\n\s*\n", match[1]):
        piece.append(paragraph)
        if sum(map(len, piece)) >= PIECE:
          yield "\n\n".join(piece)
          piece = []
      yield "\n\n".join(piece)


def web() -> Iterator[str]:
  with gzip.open(os.path.join(files.data_root(), "c4_en_sample", "train.jsonl.gz"), "rt", encoding="utf-8") as file:
    for line in file:
      yield json.loads(line)["text"].replace("\n", "\n\n")


def encyclopedia() -> Iterator[str]:
  """Articles, a paragraph a line there."""
  with gzip.open(os.path.join(files.data_root(), "wikitext2", "valid.txt.gz"), "rt", encoding="utf-8") as file:
    text = file.read()
  starts = [match.start() for match in HEADING.finditer(text)] + [len(text)]
  for start, end in zip(starts, starts[1:]):
    article = text[start:end]
    for pattern, replacement in SPACING:
      article = re.sub(pattern, replacement, article)
    yield article.replace("\n", "\n\n")


if __name__ == "__main__":
  command(main)
