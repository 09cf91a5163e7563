"""Random text is the same for the same seed and has something to learn."""

import collections

from research.data.sources.synthetic import Config, make


def test_seeded():
  cfg = Config(documents=20)
  assert list(make(cfg).documents("train")) == list(make(cfg).documents("train"))
  assert list(make(cfg).documents("train")) != list(make(Config(documents=20, seed=1)).documents("train"))
  assert make(cfg).fingerprint() == make(Config(documents=20)).fingerprint() != make(Config(documents=21)).fingerprint()


def test_sizes():
  source = make(Config(documents=50, words=(3, 9)))
  train, valid = list(source.documents("train")), list(source.documents("valid"))
  assert (len(train), len(valid)) == (50, 5) and not set(train) & set(valid)
  assert {len(document.split()) for document in train} == set(range(3, 10))


def test_a_word_tells_the_next():
  source = make(Config(followers=3))
  after = collections.defaultdict(set)
  for split in ("train", "valid"):
    for document in source.documents(split):
      words = document.rstrip(".\n").split()
      for first, second in zip(words, words[1:]):
        after[first].add(second)
  assert len(after) > 50 and max(map(len, after.values())) <= 2 * 3  # two words of the lexicon may be spelt alike
