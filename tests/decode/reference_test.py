"""Greedy and beam search against transformers' generate: the same texts, live where it is installed and from golden files everywhere."""

from __future__ import annotations

import pytest

from research.hf import loading
from research.hf.family import families
from tests.decode import common

NAMES = [name for name in common.DECODERS if name in families()]


@pytest.fixture(scope="module", params=NAMES)
def decoder(request):
  return common.DECODERS[request.param]


@pytest.fixture(scope="module")
def pairs(decoder, tmp_path_factory):
  """Their model and ours with the same weights, for several seeds."""
  made = []
  for seed in range(3):
    theirs = common.make_theirs(decoder, seed)
    folder = str(tmp_path_factory.mktemp(decoder.case.name))
    theirs.save_pretrained(folder)
    made.append((theirs, loading.load_model(folder)))
  return made


@pytest.mark.parametrize("name", common.SETTINGS)
def test_a_batch_of_ragged_rows_gives_their_texts_one_by_one(decoder, pairs, name):
  settings, lengths = common.SETTINGS[name], set()
  for seed, (theirs, loaded) in enumerate(pairs):
    rows = common.texts(seed)
    for row, found in zip(rows, common.our_texts(decoder, loaded, rows, settings)):
      common.check(found, common.their_texts(decoder, theirs, row, settings))
      lengths |= {len(text.tokens) for text in found}
  assert name in ("greedy", "long") or len(lengths) > 1, "all texts are of one length: this shows nothing of stopping"


@pytest.mark.parametrize("name", NAMES)
def test_golden_texts(name):
  decoder = common.DECODERS[name]
  loaded = loading.load_model(str(common.GOLDEN / name))
  rows, expected = common.golden(name)
  assert set(expected) == set(common.IN_GOLDEN)
  for key, wanted_texts in expected.items():
    for found, wanted in zip(common.our_texts(decoder, loaded, rows, common.SETTINGS[key]), wanted_texts, strict=True):
      common.check(found, wanted)
