"""Permutation LM against brute force over all orders, its statistics, and the two streams' promises."""

from __future__ import annotations

import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.errors import UserError
from research.core.types import Batch
from research.model.inputs import Inputs
from research.model.position import relative
from research.objectives import spans
from research.objectives.base import corrupted
from tests.contracts import common

T = 4
ORDERS = list(itertools.permutations(range(T)))


def near(count, of, rate):
  """Within four standard deviations of a binomial."""
  return abs(count - of * rate) <= 4 * np.sqrt(of * rate * (1 - rate))


def batch(objective, count, tokens=None, seed=0):
  width = objective.element_spec["tokens"].shape[0]
  if tokens is None:
    tokens = np.random.default_rng(seed).integers(len(common.SPECIAL), common.SIZE, (count, width))
  index = np.stack([np.full(count, seed), np.arange(count)], 1).astype(np.uint32)
  return Batch({"tokens": np.asarray(tokens, np.int32), "segments": np.ones((count, width), np.int32)}, index, np.ones(count, bool))


# --- brute force ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
  """(objective, params, apply, tokens [T]) of an objective that predicts every token, one at a time."""
  objective, _, params, apply = common.build("permutation_lm", length=T, predict=1, span=1)
  return objective, params, apply, np.array([9, 17, 30, 12], np.int32)


@pytest.fixture(scope="module")
def naive(small):
  """{order: log-probability of the tokens}: for each token a pass of its own, over the tokens before it in the order and nothing else."""
  _, params, apply, tokens = small
  total = np.zeros(len(ORDERS))
  for step in range(T):
    known = np.array([order[:step] for order in ORDERS], np.int32).reshape(len(ORDERS), step)
    asked = np.array([order[step] for order in ORDERS], np.int32)
    # The place that is asked about is a token of the row too, which nobody may see: its id is any.
    inputs = Inputs(
      jnp.concatenate([tokens[known], np.full((len(ORDERS), 1), 33)], axis=1).astype(jnp.int32),
      positions=jnp.concatenate([known, asked[:, None]], axis=1),
      order=jnp.broadcast_to(jnp.arange(step + 1, dtype=jnp.int32), (len(ORDERS), step + 1)),
      queries=jnp.full((len(ORDERS), 1), step, jnp.int32),
      kind="ordered",
    )
    logits = jax.jit(lambda p: apply(p, inputs, read={"lm": jnp.full((len(ORDERS), 1), inputs.tokens.shape[1])}).heads["lm"].logits())(params)
    likelihoods = jax.nn.log_softmax(logits[:, 0])
    total += np.asarray(likelihoods)[np.arange(len(ORDERS)), tokens[asked]]
  return dict(zip(ORDERS, total))


def test_every_order_is_as_likely_and_its_loss_is_that_of_separate_passes(small, naive):
  """So the expected loss is the average over all factorisation orders, computed naively."""
  objective, params, apply, tokens = small
  count = 4800
  found = jax.jit(lambda b: corrupted(objective, jax.random.key(0), b, 0))(batch(objective, count, np.broadcast_to(tokens, (count, T))))
  assert (np.asarray(found.weights["lm"]) == 1).all()
  orders = [tuple(np.argsort(order)) for order in np.asarray(found.inputs.order)]
  first = {order: i for i, order in reversed(list(enumerate(orders)))}
  assert set(first) == set(ORDERS)
  assert all(near(orders.count(order), count, 1 / len(ORDERS)) for order in ORDERS)
  each = jax.tree.map(lambda x: x[np.array([first[order] for order in ORDERS])], found)
  one = jax.jit(lambda p, e: objective.loss(apply, p, e, None, False)[0]["lm"].total)
  total = [float(one(params, jax.tree.map(lambda x: x[i : i + 1], each))) for i in range(len(ORDERS))]
  np.testing.assert_allclose(total, [-naive[order] for order in ORDERS], rtol=1e-5)
  assert np.std(total) > 1e-2  # the orders differ
  assert np.mean(total) == pytest.approx(-np.mean(list(naive.values())), rel=1e-5)


def test_the_likelihood_is_exact_in_its_order(small, naive):
  objective, params, apply, tokens = small
  rows = batch(objective, 1, tokens[None]).rows
  score = lambda objective: float(jax.jit(lambda p: objective.logprob(apply, p, rows, jax.random.key(5)))(params)[0])
  assert score(objective) == pytest.approx(naive[tuple(range(T))], rel=1e-5)
  keys = dict(length=T, predict=1, score_order="drawn")
  drawn = score(common.build("permutation_lm", **keys)[0])
  assert min(abs(drawn - value) for value in naive.values()) < 1e-4
  many = score(common.build("permutation_lm", score_orders=600, **keys)[0])  # each order about 25 times
  values = list(naive.values())
  assert abs(many - np.mean(values)) < 4 * np.std(values) / np.sqrt(600)


def test_the_identity_order_is_a_causal_model(small):
  """The content stream's hidden states are those of a causal row, whatever is asked beside it."""
  _, params, apply, tokens = small
  place = jnp.arange(T, dtype=jnp.int32)[None]
  causal = apply(params, Inputs(tokens[None], kind="causal"), read={}).hidden
  both = apply(params, Inputs(tokens[None], order=place + 1, queries=place, kind="ordered"), read={}).hidden
  np.testing.assert_allclose(both[:, :T], causal, atol=1e-5)
  assert np.abs(both[:, T:] - causal).max() > 0.1


# --- what is predicted ---------------------------------------------------------------------------------------------------------


def test_a_sixth_is_predicted_and_the_rest_is_context():
  """Over 10⁶ tokens: exactly round(512/6) targets a row, each at a place of its own in the order, all others at the lowest."""
  objective, *_ = common.build("permutation_lm", length=512)
  found = jax.jit(lambda b: corrupted(objective, jax.random.key(0), b, 0))(batch(objective, 2000))
  order, queries = np.asarray(found.inputs.order), np.asarray(found.inputs.queries)
  assert (np.asarray(found.weights["lm"]) == 1).all() and queries.shape == (2000, 85)
  assert (np.diff(queries, axis=1) > 0).all()
  np.testing.assert_array_equal(np.sort(np.take_along_axis(order, queries, 1), 1), np.broadcast_to(np.arange(1, 86), (2000, 85)))
  assert ((order == 0).sum(1) == 512 - 85).all()
  np.testing.assert_array_equal(found.targets["lm"], np.take_along_axis(np.asarray(found.inputs.tokens), queries, 1))
  thirds = np.bincount(queries.flatten() // 171, minlength=3) / queries.size  # all over the row, though spans are drawn from its start
  assert (np.abs(thirds - 1 / 3) < 0.05).all()


def theirs(starts, count, longest, spacing, draw):
  """The spans of one row by XLNet's data code, one after the other: bool [L] and the lengths of whole spans."""
  chosen, lengths, at, weights = np.zeros(len(starts), bool), [], 0, [1 / n for n in range(1, longest + 1)]
  while at < len(starts) and chosen.sum() < count:
    n = min(draw.choices(range(1, longest + 1), weights)[0], count - int(chosen.sum()))
    ahead = draw.randrange(n * spacing)
    begin = next((i for i in range(at + ahead, len(starts)) if starts[i]), None)
    if begin is None or begin + n >= len(starts):
      break
    chosen[begin : begin + n] = True
    lengths.append(n)
    at = begin + n + n * spacing - ahead
  return chosen, lengths


def test_spans_are_those_of_xlnet_s_data_code():
  rows, length = 1000, 512
  starts = np.random.default_rng(0).random((rows, length)) < 0.6
  starts[:, 0] = True
  place = np.arange(length)
  first = np.maximum.accumulate(np.where(starts, place, 0), axis=1).astype(np.int32)
  text = np.ones((rows, length), bool)
  words = spans.Text(text, text.astype(np.int32), starts.cumsum(1).astype(np.int32), first, first)
  find = jax.jit(jax.vmap(lambda key, words: spans.spaced(key, words, jnp.int32(200), 5, 6)))
  ours = np.asarray(find(jax.random.split(jax.random.key(0), rows), words))
  edges = np.diff(np.pad(ours, ((0, 0), (1, 1))).astype(int), axis=1)
  begins, ends = np.nonzero(edges == 1), np.nonzero(edges == -1)
  whole = ends[1] < length - 5
  assert starts[begins].all()
  lengths = (ends[1] - begins[1])[whole]
  for n, rate in enumerate(spans.harmonic(5), start=1):
    assert near((lengths == n).sum(), len(lengths), rate)
  draw = random.Random(0)
  reference = np.array([theirs(row, 200, 5, 6, draw)[0].sum() for row in starts])
  assert abs(ours.sum(1).mean() - reference.mean()) < 4 * np.sqrt((ours.sum(1).var() + reference.var()) / rows) + 0.5  # a span that reaches the end is cut
  few = np.asarray(jax.jit(jax.vmap(lambda key, words: spans.spaced(key, words, jnp.int32(20), 5, 6)))(jax.random.split(jax.random.key(1), rows), words))
  assert (few.sum(1) == 20).all()


def test_special_tokens_and_padding_are_no_targets():
  objective, *_ = common.build("permutation_lm", predict=2)
  given = common.batch(objective, 64)
  given.rows["tokens"][:, 3] = common.SPECIAL["sep"]
  found = jax.tree.map(np.asarray, jax.jit(lambda b: corrupted(objective, jax.random.key(0), b, 0))(given))
  chosen = np.zeros(given.rows["tokens"].shape, bool)
  for row, (queries, weights) in enumerate(zip(found.inputs.queries, found.weights["lm"])):
    chosen[row, queries[weights > 0]] = True
  text = (given.rows["segments"] > 0) & (given.rows["tokens"] >= len(common.SPECIAL))
  assert not (chosen & ~text).any()
  np.testing.assert_array_equal(chosen.sum(1), np.round(text.sum(1) / 2))
  np.testing.assert_array_equal(found.inputs.order > 0, chosen)


# --- parts and directions ------------------------------------------------------------------------------------------------------


def test_half_of_the_rows_are_read_from_their_end():
  objective, *_ = common.build("permutation_lm", recurrence=2, bidirectional=True, predict=2)
  given = batch(objective, 1000)
  found = jax.tree.map(np.asarray, jax.jit(lambda b: corrupted(objective, jax.random.key(0), b, 0))(given))
  backwards = found.inputs.positions[:, 0] == common.LENGTH - 1
  assert near(backwards.sum(), 1000, 0.5)
  place = np.where(backwards[:, None], np.arange(common.LENGTH)[::-1], np.arange(common.LENGTH))
  np.testing.assert_array_equal(found.inputs.positions, place)  # a token keeps its position
  np.testing.assert_array_equal(found.inputs.tokens, np.take_along_axis(given.rows["tokens"], place, 1))
  np.testing.assert_array_equal(found.targets["lm"], np.take_along_axis(found.inputs.tokens, found.inputs.queries, 1))
  half = common.LENGTH // 2
  assert (found.inputs.order[:, :half].max(1) < found.inputs.order[:, half:].min(1)).all()
  np.testing.assert_array_equal(found.inputs.queries < half, np.broadcast_to(np.arange(half) < half // 2, found.inputs.queries.shape))


@pytest.mark.parametrize("scan", [False, True])
def test_a_part_sees_the_part_before_and_not_the_one_before_that(scan):
  """One layer, so that sight is not passed on; with packed documents no other document is seen."""
  keys = dict(layers=1, scan=scan, position=relative.Config())
  objective, _, params, apply = common.build("permutation_lm", length=12, recurrence=3, predict=2, span=1, model_keys=keys)
  segments = np.array([[1] * 12, [1] * 5 + [2] * 7], np.int32)
  tokens = np.random.default_rng(0).integers(len(common.SPECIAL), common.SIZE, (2, 12)).astype(np.int32)
  given = Batch({"tokens": tokens, "segments": segments}, np.array([[0, 0], [0, 1]], np.uint32), np.ones(2, bool))
  found = jax.jit(lambda b: corrupted(objective, jax.random.key(0), b, 0))(given)

  @jax.jit
  def of_part(tokens):
    """The loss of the targets of each row and part, [2, 3]."""
    alone = lambda weights: objective.loss(apply, params, found._replace(inputs=found.inputs.replace(tokens=tokens), weights={"lm": weights}), None, False)[0]["lm"].total
    which = np.zeros((6, 2, 6), np.float32)
    for i in range(6):
      which[i, i // 3, 2 * (i % 3) : 2 * (i % 3) + 2] = 1
    return jax.lax.map(alone, jnp.asarray(which)).reshape(2, 3)

  before = np.asarray(of_part(tokens))
  assert np.isfinite(before).all()
  moved = np.zeros((12, 2, 3), bool)
  for place in range(12):
    changed = tokens.copy()
    changed[:, place] = 7 + (tokens[:, place] - 7 + 1) % 33
    moved[place] = np.asarray(of_part(changed)) != before
  for part in range(3):
    for place in range(12):
      if place // 4 == part - 1:
        assert moved[place, 0, part]  # the whole part before is seen, its targets too
      elif place // 4 != part:
        assert not moved[place, :, part].any()
  fourth = bool((np.asarray(found.inputs.queries[1]) == 4).any())  # the first document's only token in the second part is a target
  np.testing.assert_array_equal(moved[:4, 1, 1], fourth)
  np.testing.assert_array_equal(moved[4:8, 1, 2], [False, True, True, True])


def test_mistakes_are_told():
  for changes, word in ((dict(predict=0), "predict"), (dict(recurrence=5), "recurrence"), (dict(score_orders=3), "score_order")):
    with pytest.raises(UserError, match=word):
      common.build("permutation_lm", **changes)
  objective, _, params, apply = common.build("permutation_lm", model_keys=dict(queries=False))
  found = jax.eval_shape(lambda b: corrupted(objective, jax.random.key(0), b, 0), common.batch(objective, 2))
  with pytest.raises(UserError, match="model.queries") as error:
    jax.eval_shape(lambda e: objective.loss(apply, params, e, None, False), found)
  assert str(error.value).count(".") == 2  # one sentence, one key
