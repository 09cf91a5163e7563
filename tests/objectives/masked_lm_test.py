"""The statistics of masking, over many tokens."""

from __future__ import annotations

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core import config as configs
from research.core.config import use
from research.core.errors import UserError
from research.core.types import Batch
from research.model.inputs import Inputs, positions_within
from research.objectives import spans
from research.objectives.base import choose
from tests.contracts import common
from tests.contracts.common import corrupted

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


# --- words, spans, n-grams -----------------------------------------------------------------------------------------------------

MANY, LONG = 2000, 512  # 10⁶ tokens


def long_rows(starts=0.6, special=0.0, seed=0, count=MANY):
  """Rows of 512 tokens of which a share begins a word: ids of the upper half do, those of the lower do not."""
  rng = np.random.default_rng(seed)
  middle = FIRST + (SIZE - FIRST) // 2
  begins = rng.random((count, LONG)) < starts
  tokens = np.where(begins, rng.integers(middle, SIZE, begins.shape), rng.integers(FIRST, middle, begins.shape))
  tokens = np.where(rng.random(begins.shape) < special, common.SPECIAL["sep"], tokens).astype(np.int32)
  index = np.stack([np.full(count, seed), np.arange(count)], 1).astype(np.uint32)
  return Batch({"tokens": tokens, "segments": np.ones_like(tokens)}, index, np.ones(count, bool)), vocab()._replace(word_start=np.arange(SIZE) >= middle)


def long_corruption(words_of, at=0, **changes):
  objective = configs.make(configs.typed(use("objectives.masked_lm", **changes)), words_of, LONG)
  run = jax.jit(lambda batch, step: corrupted(objective, jax.random.key(0), batch, step))
  return lambda batch, step=at: jax.tree.map(np.asarray, run(batch, step))


def chosen_places(example):
  found = np.zeros(example.inputs.tokens.shape, bool)
  rows, slots = np.nonzero(example.weights["mlm"])
  found[rows, example.positions["mlm"][rows, slots]] = True
  return found


def words_of(given, vocab):
  reader = spans.Reader(vocab)
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(reader))(given.rows["tokens"], given.rows["segments"]))


def test_words_begin_at_their_first_token_at_special_tokens_and_documents():
  vocabulary = vocab()._replace(word_start=np.arange(SIZE) % 2 == 0)
  tokens = jnp.array([11, 12, 13, common.SPECIAL["sep"], 15, 15, 16, 17, 0, 0])
  words = spans.Reader(vocabulary)(tokens, jnp.array([1, 1, 1, 1, 1, 2, 2, 2, 0, 0]))
  assert words.text.tolist() == [True] * 3 + [False] + [True] * 4 + [False] * 2
  text = np.array([0, 1, 2, 4, 5, 6, 7])
  assert words.word[text].tolist() == [1, 2, 2, 3, 4, 5, 5] and words.run[text].tolist() == [1, 1, 1, 2, 3, 3, 3]
  assert words.first[text].tolist() == [0, 1, 1, 4, 5, 6, 6] and words.last[text].tolist() == [0, 2, 2, 4, 5, 7, 7]


@pytest.mark.parametrize("unit", ["token", "word", "span", "ngram"])
def test_a_million_tokens_15_percent_and_80_10_10(unit):
  given, vocabulary = long_rows()
  example = long_corruption(vocabulary, unit=unit)(given)
  chosen, weights = chosen_places(example), example.weights["mlm"] > 0
  share = chosen.mean()
  if unit in ("token", "span"):
    assert (chosen.sum(1) == round(0.15 * LONG)).all()
  else:  # whole words: the number may be missed where no word is left that fits
    assert (chosen.sum(1) <= round(0.15 * LONG)).all() and 0.1499 < share <= 77 / LONG
  shown = np.take_along_axis(example.inputs.tokens, example.positions["mlm"], 1)[weights]
  targets = example.targets["mlm"][weights]
  np.testing.assert_array_equal(targets, given.rows["tokens"][chosen])
  masked, kept = shown == common.SPECIAL["mask"], shown == targets
  each = 3.8 * 0.6**-1 if unit == "span" else 1.0  # the tokens of a span share their fate, so there are fewer draws
  for count, rate in ((masked.sum(), 0.8), ((~masked & ~kept).sum(), 0.1), (kept.sum(), 0.1)):
    assert abs(count - len(targets) * rate) <= 6 * np.sqrt(each * len(targets) * rate * (1 - rate)) + len(targets) * 0.1 / (SIZE - FIRST)
  np.testing.assert_array_equal(example.inputs.tokens[~chosen], given.rows["tokens"][~chosen])


def test_words_are_chosen_whole_and_each_as_likely():
  given, vocabulary = long_rows(special=0.05)
  chosen = chosen_places(long_corruption(vocabulary, unit="word")(given))
  words = words_of(given, vocabulary)
  number = words.word + np.arange(MANY)[:, None] * (LONG + 1)
  size = np.bincount(number[words.text], minlength=MANY * (LONG + 1))
  hit = np.bincount(number[chosen], minlength=size.size)
  assert ((hit == 0) | (hit == size)).all() and not (chosen & ~words.text).any()
  budget = np.round(np.float32(0.15) * words.text.sum(1, dtype=np.float32))
  left = (budget - chosen.sum(1)).repeat(LONG + 1)
  assert not ((hit == 0) & (size > 0) & (size <= left)).any()  # nothing more fits
  for n in (1, 2, 3):
    here = size == n
    assert hit[here].sum() / (n * here.sum()) == pytest.approx(0.15, abs=0.006)


def spanbert(starts, budget, probabilities, draw):
  """The places that SpanBERT's loop chooses in one row, and the words of each of its spans."""
  length, chosen, sizes = len(starts), set(), []
  bounds = [*np.flatnonzero(starts), length]
  word = np.cumsum(starts) - 1
  while len(chosen) < budget:
    anchor = draw.randrange(length)
    if anchor in chosen:
      continue
    words = draw.choices(range(1, len(probabilities) + 1), probabilities)[0]
    stop = bounds[min(word[anchor] + words, len(bounds) - 1)]
    new = [place for place in range(bounds[word[anchor]], stop) if place not in chosen][: budget - len(chosen)]
    chosen.update(new)
    sizes.append(len(new))
  return chosen, sizes


def test_span_lengths_are_geometric_and_fall_where_spanbert_s_do():
  probabilities = spans.geometric(0.2, 10)
  assert (np.arange(1, 11) * probabilities).sum() == pytest.approx(3.8, abs=0.01)  # the mean that the paper gives
  given, vocabulary = long_rows(count=1000)
  words = words_of(given, vocabulary)
  run = jax.jit(jax.vmap(lambda key, words: spans.spans(key, words, jnp.int32(77), probabilities, cut=True)))
  owner = np.asarray(run(jax.random.split(jax.random.key(1), 1000), words))
  assert ((owner >= 0).sum(1) == 77).all()
  draw, sizes, reference = random.Random(0), [], np.zeros(LONG)
  starts = words.text & (words.first == np.arange(LONG))
  for row in range(300):
    chosen, found = spanbert(starts[row], 77, probabilities, draw)
    sizes += found
    reference[list(chosen)] += 1
  ours = np.concatenate([np.unique(row[row >= 0], return_counts=True)[1] for row in owner])
  assert ours.mean() == pytest.approx(np.mean(sizes), rel=0.03)  # tokens that a span adds
  for n in range(1, 12):
    assert (ours == n).mean() == pytest.approx((np.array(sizes) == n).mean(), abs=0.012)
  drawn = np.bincount(spans.lengths(jax.random.key(2), probabilities, (20_000,)), minlength=11)[1:]
  assert all(near(count, 20_000, rate) for count, rate in zip(drawn, probabilities))


def test_ngram_lengths_are_harmonic():
  probabilities = spans.harmonic(3)
  np.testing.assert_allclose(probabilities, [6 / 11, 3 / 11, 2 / 11])
  count = 6000
  words = words_of(Batch({"tokens": np.full((count, 64), SIZE - 1), "segments": np.ones((count, 64), np.int32)}, None, None), vocab())
  run = jax.jit(jax.vmap(lambda key, words: spans.spans(key, words, jnp.int32(9), probabilities, cut=False)))
  owner = np.asarray(run(jax.random.split(jax.random.key(1), count), words))
  assert ((owner >= 0).sum(1) == 9).all()
  sizes = np.concatenate([np.unique(row[row >= 0], return_counts=True)[1] for row in owner])
  assert sizes.max() == 3
  draw, reference = random.Random(0), []
  for _ in range(2000):  # ALBERT's loop: n-grams in random order, shortened to what is left, none over another
    order, free, left = draw.sample(range(64), 64), np.ones(64, bool), 9
    for place in order:
      if not left:
        break
      size = min(draw.choices((1, 2, 3), probabilities)[0], left, 64 - place)
      if free[place : place + size].all():
        free[place : place + size] = False
        left -= size
        reference.append(size)
  for n in (1, 2, 3):
    assert (sizes == n).mean() == pytest.approx((np.array(reference) == n).mean(), abs=0.02)


def test_a_span_is_masked_randomised_or_kept_as_one():
  """Spans are mostly longer here than the number of places, so most rows have a single one."""
  given, vocabulary = long_rows(starts=1.0, count=1500)
  example = long_corruption(vocabulary, unit="span", span_p=1e-6, span_max=64, mask_rate=0.02)(given)
  chosen = chosen_places(example)
  weights = example.weights["mlm"] > 0
  shown = np.take_along_axis(example.inputs.tokens, example.positions["mlm"], 1)
  one = (np.diff(np.pad(chosen, ((0, 0), (1, 1))).astype(int), axis=1) == 1).sum(1) == 1
  masked, kept = ((shown == common.SPECIAL["mask"]) & weights).sum(1), ((shown == example.targets["mlm"]) & weights).sum(1)
  size = weights.sum(1)
  whole_masked, whole_kept = (masked == size)[one], (kept == size)[one]
  assert one.sum() > 1000 and ((masked == 0) | (masked == size))[one].all()
  assert near(whole_masked.sum(), one.sum(), 0.8) and near(whole_kept.sum(), one.sum(), 0.1)


# --- how many ------------------------------------------------------------------------------------------------------------------


def test_bernoulli_counts_vary_as_independent_draws_and_overflow_is_counted():
  given, vocabulary = long_rows()
  example = long_corruption(vocabulary, count="bernoulli")(given)
  counts = example.weights["mlm"].sum(1)
  assert near(counts.sum(), MANY * LONG, 0.15)
  deviation = np.sqrt(LONG * 0.15 * 0.85)
  assert counts.std() == pytest.approx(deviation, rel=0.07) and not example.counts["overflow"].any()
  tight = long_corruption(vocabulary, count="bernoulli", slack=0.0)(given)
  slots = tight.weights["mlm"].shape[1]
  assert slots == 77
  np.testing.assert_array_equal(tight.counts["asked"], example.counts["asked"])
  np.testing.assert_array_equal(tight.counts["overflow"], np.maximum(tight.counts["asked"] - 77, 0))
  np.testing.assert_array_equal(tight.weights["mlm"].sum(1), np.minimum(tight.counts["asked"], 77))
  assert tight.counts["overflow"].mean() == pytest.approx(deviation / np.sqrt(2 * np.pi), rel=0.15)


def test_metrics_tell_the_overflow():
  objective, _, params, apply = common.build("masked_lm", count="bernoulli", slack=0.0, mask_rate=0.4)
  given = common.batch(objective, 8)
  example = corrupted(objective, jax.random.key(0), given._replace(valid=np.arange(8) < 6), 0)
  _, metrics = jax.jit(lambda p: objective.loss(apply, p, example, None, False))(params)
  rows = np.asarray(example.weights["mlm"]).any(1)
  assert rows.sum() == 6
  asked = np.asarray(example.counts["asked"])[:6]
  assert float(metrics["overflow"].value()) == pytest.approx(np.maximum(asked - example.weights["mlm"].shape[1], 0).sum() / asked.sum())


def test_the_rate_follows_its_schedule():
  given, vocabulary = long_rows(count=4)
  for start, end in ((0.1, 0.4), (0.4, 0.1)):
    corrupt = long_corruption(vocabulary, mask_rate=start, final_mask_rate=end, mask_rate_steps=200)
    for step, rate in ((0, start), (50, start + (end - start) / 4), (100, 0.25), (200, end), (900, end)):
      example = corrupt(given, jnp.int32(step))
      assert example.weights["mlm"].shape[1] == round(0.4 * LONG)
      assert (np.abs(example.weights["mlm"].sum(1) - rate * LONG) <= 0.51).all()
  for changes in (dict(final_mask_rate=0.2), dict(mask_rate_steps=5), dict(final_mask_rate=2.0, mask_rate_steps=5)):
    with pytest.raises(UserError, match="mask_rate"):
      build(**changes)


# --- pseudo-likelihood ---------------------------------------------------------------------------------------------------------


def test_the_score_hides_each_token_and_the_rest_of_its_word():
  """Against one pass for each token, its word's rest hidden by hand, over packed rows with a special token."""
  objective, _, params, apply = common.build("masked_lm", length=9)
  rows = {"tokens": np.array([[9, 10, 11, 5, 12, 13, 14, 0, 0], [10, 12, 13, 14, 16, 17, 9, 10, 9]], np.int32),
          "segments": np.array([[1, 1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 2, 2, 2, 2, 2]], np.int32)}  # fmt: skip
  # A word begins at ids divisible by 3, after a special token and with a document.
  words = [[0, 1, 2], [4, 5, 6]], [[0], [1, 2, 3], [4, 5], [6, 7], [8]]
  want = np.zeros(2)
  forward = jax.jit(lambda tokens, segments: apply(params, Inputs(tokens, positions=positions_within(segments), segments=segments, kind="full"),
                                                   read={"mlm": None}).heads["mlm"].logits())  # fmt: skip
  for row in range(2):
    for word in words[row]:
      for i, place in enumerate(word):
        tokens = rows["tokens"][row].copy()
        tokens[word[i:]] = common.SPECIAL["mask"]
        logits = forward(tokens[None], rows["segments"][row][None])[0, place]
        want[row] += float(jax.nn.log_softmax(logits)[rows["tokens"][row, place]])
  found = jax.jit(lambda p, r: objective.logprob(apply, p, r, jax.random.key(0)))(params, rows)
  np.testing.assert_allclose(found, want, rtol=1e-5)
  tokens, weights = objective.scored(rows)
  np.testing.assert_array_equal(weights, (rows["segments"] > 0) & (rows["tokens"] >= FIRST))
  np.testing.assert_array_equal(tokens, rows["tokens"])


def test_a_loss_with_one_mask_is_a_term_of_the_pseudo_likelihood():
  """Every token a word: the losses of the rows that hide place 0, 1, … alone add up to the score."""
  objective, _, params, apply = common.build("masked_lm", length=5, mask_rate=0.2, keep_rate=0.0, random_rate=0.0)
  tokens = np.broadcast_to(np.array([9, 12, 15, 30, 36], np.int32), (60, 5))
  index = np.stack([np.zeros(60), np.arange(60)], 1).astype(np.uint32)
  example = corrupted(objective, jax.random.key(0), Batch({"tokens": tokens, "segments": np.ones_like(tokens)}, index, np.ones(60, bool)), 0)
  assert example.weights["mlm"].shape == (60, 1)
  places = np.asarray(example.positions["mlm"][:, 0])
  one = jax.jit(lambda e: objective.loss(apply, params, e, None, False)[0]["mlm"].total)
  total = sum(float(one(jax.tree.map(lambda x: x[i : i + 1], example))) for i in (int(np.flatnonzero(places == place)[0]) for place in range(5)))
  rows = {"tokens": tokens[:1], "segments": np.ones((1, 5), np.int32)}
  score = jax.jit(lambda p: objective.logprob(apply, p, rows, jax.random.key(0)))(params)
  assert float(score[0]) == pytest.approx(-total, rel=1e-5)
