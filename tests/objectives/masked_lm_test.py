"""The statistics of masking, over many tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core import config as configs
from research.core.config import use
from research.core.errors import UserError
from research.core.types import Batch
from research.objectives.base import choose, corrupted
from tests.contracts import common

ROWS, LENGTH, SIZE = 512, 64, 1000
FIRST = len(common.SPECIAL)


def vocab():
  text = np.arange(SIZE) >= FIRST
  return common.vocab()._replace(size=SIZE, word_start=text, byte_length=text.astype(np.int32))


def build(**changes):
  return configs.make(configs.typed(use("objectives.masked_lm", **changes)), vocab(), LENGTH)


def batch(seed=0, special=0.1):
  """Rows of unequal length with special tokens strewn in."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(FIRST, SIZE, (ROWS, LENGTH)).astype(np.int32)
  tokens = np.where(rng.random(tokens.shape) < special, rng.integers(1, FIRST, tokens.shape), tokens).astype(np.int32)
  lengths = rng.integers(LENGTH // 2, LENGTH + 1, ROWS)
  segments = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
  tokens = np.where(segments > 0, tokens, 0).astype(np.int32)
  index = np.stack([np.zeros(ROWS), np.arange(ROWS)], 1).astype(np.uint32)
  return Batch({"tokens": tokens, "segments": segments}, index, np.ones(ROWS, bool))


def corruption(**changes):
  objective = build(**changes)
  run = jax.jit(lambda batch: corrupted(objective, jax.random.key(0), batch, 0))
  return lambda batch: jax.tree.map(np.asarray, run(batch))


@pytest.fixture(scope="module")
def corrupt():
  return corruption()


def near(count, of, rate):
  """Within four standard deviations of a binomial."""
  return abs(count - of * rate) <= 4 * np.sqrt(of * rate * (1 - rate))


def test_how_many_are_chosen_and_where(corrupt):
  given = batch()
  tokens, segments = given.rows["tokens"], given.rows["segments"]
  example = corrupt(given)
  chosen, places = example.weights["mlm"] > 0, example.positions["mlm"]
  text = (segments > 0) & (tokens >= FIRST)
  np.testing.assert_array_equal(chosen.sum(1), np.maximum(1, np.round(0.15 * text.sum(1).astype(np.float32))))
  assert (places >= 0).all() and (places < LENGTH).all()
  for row in range(ROWS):
    here = places[row][chosen[row]]
    assert len(set(here)) == len(here) and text[row, here].all()  # never padding, never a special token
    np.testing.assert_array_equal(example.targets["mlm"][row][chosen[row]], tokens[row, here])
    others = np.setdiff1d(np.arange(LENGTH), here)
    np.testing.assert_array_equal(example.inputs.tokens[row, others], tokens[row, others])


def test_every_place_is_as_likely_as_any_other(corrupt):
  given = batch(special=0.0)
  given.rows["segments"][:] = 1
  given.rows["tokens"][:] = np.maximum(given.rows["tokens"], FIRST)
  example = corrupt(given)
  hits = np.bincount(example.positions["mlm"][example.weights["mlm"] > 0], minlength=LENGTH)
  assert hits.sum() == ROWS * round(0.15 * LENGTH)
  assert all(near(hit, ROWS, round(0.15 * LENGTH) / LENGTH) for hit in hits)


def test_mask_random_keep_are_80_10_10(corrupt):
  counts = np.zeros(3)
  replaced = []
  for seed in range(4):
    example = corrupt(batch(seed))
    chosen = example.weights["mlm"] > 0
    shown = np.take_along_axis(example.inputs.tokens, example.positions["mlm"], 1)[chosen]
    targets = example.targets["mlm"][chosen]
    masked, kept = shown == common.SPECIAL["mask"], shown == targets
    counts += [masked.sum(), (~masked & ~kept).sum(), kept.sum()]
    replaced.append(shown[~masked & ~kept])
  total = counts.sum()
  chance = 1 / (SIZE - FIRST)  # a random token may be the one that was there
  assert total > 10_000
  assert near(counts[0], total, 0.8) and near(counts[1], total, 0.1 * (1 - chance)) and near(counts[2], total, 0.1 * (1 + chance))
  replaced = np.concatenate(replaced)
  assert replaced.min() >= FIRST  # a random token is never a special one
  low = (replaced < FIRST + (SIZE - FIRST) // 4).sum()
  assert near(low, len(replaced), 0.25)


def test_masks_are_fresh_each_time_a_row_comes(corrupt):
  given = batch()
  again = given._replace(index=given.index + np.uint32([0, ROWS]))
  a, b = corrupt(given), corrupt(again)
  same = (a.positions["mlm"] == b.positions["mlm"]).all(1).mean()
  assert same < 0.01
  np.testing.assert_array_equal(corrupt(given).inputs.tokens, a.inputs.tokens)


def test_rows_without_a_candidate_weigh_nothing(corrupt):
  given = batch()
  given.rows["tokens"][0], given.rows["segments"][0] = 0, 0
  given.rows["tokens"][1] = common.SPECIAL["cls"]
  example = corrupt(given)
  assert example.weights["mlm"][:2].sum() == 0
  np.testing.assert_array_equal(example.inputs.tokens[:2], given.rows["tokens"][:2])


def test_keys_at_their_ends():
  given = jax.tree.map(lambda x: x[:8], batch())
  example = corruption(mask_rate=1.0, random_rate=0.0, keep_rate=0.0)(given)
  text = (given.rows["segments"] > 0) & (given.rows["tokens"] >= FIRST)
  np.testing.assert_array_equal(example.inputs.tokens == common.SPECIAL["mask"], text | (given.rows["tokens"] == common.SPECIAL["mask"]))
  kept = corruption(random_rate=0.0, keep_rate=1.0)(given)
  np.testing.assert_array_equal(kept.inputs.tokens, given.rows["tokens"])
  for changes in (dict(mask_rate=0.0), dict(mask_rate=1.5), dict(random_rate=0.6, keep_rate=0.6), dict(keep_rate=-0.1)):
    with pytest.raises(UserError, match="rate"):
      build(**changes)


def test_choose_is_uniform_over_subsets():
  """All 6 ways to choose 2 of 4 candidates are as likely."""
  candidates = jnp.array([True, False, True, True, False, True])
  draws = 6000
  places, chosen = jax.vmap(lambda key: choose(key, candidates, 2, 3))(jax.random.split(jax.random.key(0), draws))
  assert (np.asarray(chosen) == [True, True, False]).all()
  pairs = [tuple(pair) for pair in np.asarray(places)[:, :2]]
  counts = {pair: pairs.count(pair) for pair in set(pairs)}
  assert set(counts) == {(0, 2), (0, 3), (0, 5), (2, 3), (2, 5), (3, 5)}  # ascending, candidates only
  assert all(near(count, draws, 1 / 6) for count in counts.values())


def test_choose_takes_no_more_than_there_are():
  places, chosen = choose(jax.random.key(0), jnp.array([False, True, False, True]), 4, 4)
  assert np.asarray(places)[np.asarray(chosen)].tolist() == [1, 3] and int(chosen.sum()) == 2
  _, none = choose(jax.random.key(0), jnp.zeros(4, bool), 2, 3)
  assert not none.any()
