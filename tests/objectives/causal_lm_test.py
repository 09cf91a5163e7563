"""Which targets count at the borders of documents; the shapes of the loss; prefixes."""

import jax
import numpy as np
import pytest

from research.core import config as configs
from research.core.config import use
from research.core.errors import UserError
from research.core.types import Batch
from research.objectives.base import finish, total_weights
from tests.contracts import common
from tests.contracts.common import corrupted


def example(segments):
  objective = configs.make(configs.typed(use("objectives.causal_lm")), common.vocab(), len(segments) - 1)
  tokens = np.arange(10, 10 + len(segments), dtype=np.int32)[None]
  batch = Batch({"tokens": tokens, "segments": np.array([segments], np.int32)}, np.zeros((1, 2), np.uint32), np.ones(1, bool))
  return jax.tree.map(np.asarray, corrupted(objective, jax.random.key(0), batch, 0))


def test_targets_are_the_next_tokens_of_the_same_document():
  found = example([1, 1, 1, 2, 2, 3, 0, 0])
  assert found.inputs.tokens[0].tolist() == list(range(10, 17)) and found.targets["lm"][0].tolist() == list(range(11, 18))
  assert found.weights["lm"][0].tolist() == [1, 1, 0, 1, 0, 0, 0]
  assert found.inputs.positions[0].tolist() == [0, 1, 2, 0, 1, 0, 0] and found.inputs.kind == "causal"
  assert float(total_weights(found)["lm"]) == 3


def test_a_row_of_one_document_predicts_every_token():
  assert example([1] * 6).weights["lm"].sum() == 5


def test_the_likelihood_counts_each_target_once():
  objective, _, params, apply = common.build("causal_lm")
  batch = common.batch(objective, 4)
  found = corrupted(objective, jax.random.key(0), batch, 0)
  terms, metrics = jax.jit(lambda p, e: objective.loss(apply, p, e, None, False))(params, found)
  rows = jax.jit(lambda p, r: objective.logprob(apply, p, r, jax.random.key(1)))(params, batch.rows)
  assert rows.shape == (4,)
  np.testing.assert_allclose(-rows.sum(), terms["lm"].total, rtol=1e-5)
  values = finish(objective, {"loss_lm": terms["lm"], **metrics})
  np.testing.assert_allclose(values["loss"], -float(rows.sum()) / found.weights["lm"].sum(), rtol=1e-5)
  size = (np.asarray(common.vocab().byte_length)[found.targets["lm"]] * found.weights["lm"]).sum()
  np.testing.assert_allclose(values["bits_per_byte"], -float(rows.sum()) / np.log(2) / size, rtol=1e-5)


# --- z-loss and label smoothing ------------------------------------------------------------------------------------------------


def test_z_loss_and_smoothing_train_and_are_not_scored():
  """In training Σ −q log p + z log² Z, beside it the plain nll; in evaluation the plain nll alone."""
  plain, _, params, apply = common.build("causal_lm")
  shaped, *_ = common.build("causal_lm", z_loss=0.01, label_smoothing=0.1)
  found = corrupted(plain, jax.random.key(0), common.batch(plain, 3), 0)
  loss = lambda objective, train: jax.jit(lambda p: objective.loss(apply, p, found, None, train))(params)
  (bare, _), (scored, metrics), (trained, extra) = loss(plain, True), loss(shaped, False), loss(shaped, True)
  assert float(scored["lm"].total) == float(bare["lm"].total) and "nll" not in metrics
  np.testing.assert_allclose(extra["nll"].total, bare["lm"].total, rtol=1e-6)
  logits = apply(params, found.inputs, read={"lm": None}).heads["lm"].logits()
  likelihoods = jax.nn.log_softmax(logits)
  at_target = np.take_along_axis(np.asarray(likelihoods), np.asarray(found.targets["lm"])[..., None], -1)[..., 0]
  want = -0.9 * at_target - 0.1 * likelihoods.mean(-1) + 0.01 * jax.nn.logsumexp(logits, -1) ** 2
  np.testing.assert_allclose(trained["lm"].total, (want * found.weights["lm"]).sum(), rtol=1e-5)


def test_keys_out_of_range_are_refused():
  for changes in (dict(z_loss=-1.0), dict(label_smoothing=1.0), dict(label_smoothing=-0.1)):
    with pytest.raises(UserError, match=next(iter(changes))):
      common.build("causal_lm", **changes)


# --- prefix LM -----------------------------------------------------------------------------------------------------------------


def prefix_example(segments, count, seed=0):
  """`count` rows of the same documents."""
  objective = configs.make(configs.typed(use("objectives.causal_lm", prefix=True)), common.vocab(), len(segments) - 1)
  tokens = np.broadcast_to(np.arange(10, 10 + len(segments), dtype=np.int32), (count, len(segments)))
  index = np.stack([np.full(count, seed), np.arange(count)], 1).astype(np.uint32)
  batch = Batch({"tokens": tokens, "segments": np.broadcast_to(np.array(segments, np.int32), tokens.shape)}, index, np.ones(count, bool))
  return jax.tree.map(np.asarray, jax.jit(lambda batch: corrupted(objective, jax.random.key(0), batch, 0))(batch))


def test_each_document_is_cut_anywhere_as_likely_and_by_itself():
  count = 4000
  found = prefix_example([1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 0, 4, 4], count)
  assert found.inputs.kind == "ordered"
  cuts = {}
  for document, (start, size) in {1: (0, 5), 2: (5, 4), 4: (11, 2)}.items():
    here = slice(start, start + size - 1)  # places that predict a token of the document
    targets = found.weights["lm"][:, here].sum(1).astype(int)
    assert targets.min() == 1 and targets.max() == size - 1
    cuts[document] = cut = size - targets
    inside = min(size, found.inputs.tokens.shape[1] - start)
    place = np.arange(inside)
    np.testing.assert_array_equal(found.inputs.order[:, start : start + inside], np.where(place < cut[:, None], 0, place - cut[:, None] + 1))
    np.testing.assert_array_equal(found.weights["lm"][:, here] > 0, np.arange(size - 1) >= cut[:, None] - 1)
    hits = np.bincount(cut, minlength=size)[1:]
    assert (np.abs(hits - count / (size - 1)) < 4 * np.sqrt(count / (size - 1))).all()
  assert abs(np.corrcoef(cuts[1], cuts[2])[0, 1]) < 4 / np.sqrt(count)
  others = np.ones(12, bool)
  others[[0, 1, 2, 3, 5, 6, 7, 11]] = False  # the last token of a document, a document of one token, padding
  assert not found.weights["lm"][:, others].any()
  np.testing.assert_array_equal(found.targets["lm"], np.broadcast_to(np.arange(11, 23), (count, 12)))


def test_the_rest_given_the_prefix_is_an_exact_product_of_separate_passes():
  """Each target's likelihood is what a row that ends before it gives, its prefix read in both directions."""
  objective, _, params, apply = common.build("causal_lm", prefix=True, length=8)
  batch = common.batch(objective, 2, packed=False)
  found = corrupted(objective, jax.random.key(1), batch, 0)
  terms, _ = jax.jit(lambda p, e: objective.loss(apply, p, e, None, False))(params, found)
  row, place = np.nonzero(found.weights["lm"])
  ends = jax.tree.map(lambda x: x[row], found.inputs)  # a row for each target, which ends before it
  ends = ends.replace(segments=np.where(np.arange(8) <= place[:, None], 1, 0))
  logits = jax.jit(lambda p: apply(p, ends, read={"lm": place[:, None]}).heads["lm"].logits())(params)[:, 0]
  alone = jax.nn.log_softmax(logits)[np.arange(len(row)), found.targets["lm"][row, place]]
  assert len(row) > 4 and float(terms["lm"].total) == pytest.approx(-float(alone.sum()), rel=1e-5)


def test_the_likelihood_of_a_prefix_lm_counts_what_a_causal_model_counts():
  objective, _, params, apply = common.build("causal_lm", prefix=True)
  causal, *_ = common.build("causal_lm")
  rows = common.rows(objective, 3)
  score = lambda objective: jax.jit(lambda p, r: objective.logprob(apply, p, r, jax.random.key(1)))(params, rows)
  np.testing.assert_array_equal(score(objective), score(causal))
  tokens, weights = objective.scored(rows)
  np.testing.assert_array_equal(tokens, rows["tokens"][:, 1:])
  np.testing.assert_array_equal(weights, (rows["segments"][:, 1:] == rows["segments"][:, :-1]) & (rows["segments"][:, 1:] > 0))
