"""What every objective promises; a new file in research/objectives joins by lying there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.core.config import use
from research.core.types import Batch
from research.evals import loss as loss_eval
from research.model.attention import grouped
from research.model.attention.kernels import chunked, splash
from research.parallel import mesh as meshes
from research.training.step import make_train_step
from tests.contracts import common
from tests.contracts.common import corrupted
from tests.mesh_invariance import ARCHITECTURES

each_objective = pytest.mark.parametrize("name", common.OBJECTIVES)
each_variant = pytest.mark.parametrize("name", [*common.OBJECTIVES, *common.VARIANTS])
KEY = jax.random.key(3)


@functools.cache
def evaluation(name):
  """(objective, parameters, compiled step of the evaluation) of a model with dropout, which an evaluation leaves out."""
  objective, _, params, apply = common.build(name, dropout=0.3, model_keys=common.shallow(name))
  return objective, params, jax.jit(loss_eval.make_step(apply, objective))


def test_the_family_is_found():
  assert {"causal_lm", "masked_lm"} <= set(common.OBJECTIVES)
  assert {name for name, _ in common.EXEMPT} <= set(common.OBJECTIVES)
  assert set(common.OBJECTIVES) - {common.OUTSIDE} <= ARCHITECTURES.keys(), "the table of meshes lacks an objective"


@each_variant
def test_a_row_is_corrupted_alike_in_any_batch_and_anew_each_time_it_comes(name):
  objective = common.objective_of(name)
  batch = common.batch(objective, 6)
  corrupt = lambda batch: corrupted(objective, KEY, batch, 0)
  whole = corrupt(batch)
  for rows in (slice(None, None, -1), slice(5, None)):  # in another order, and alone
    part = corrupt(jax.tree.map(lambda x: x[rows], batch))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[rows], b), whole, part)
  later = corrupt(batch._replace(index=batch.index + np.uint32([1, 0])))
  same = all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), whole, later)))
  assert same == (name in common.DETERMINISTIC)


@each_variant
def test_weights_are_the_denominators_of_the_loss(name):
  objective, params, step = evaluation(name)
  batch = common.batch(objective, 4)
  weights = objective.weights(corrupted(objective, KEY, batch, 0))
  sums = step(params, batch, KEY, 0)
  assert set(weights) == set(objective.factors)
  assert {f"loss_{term}" for term in weights} == {mean for mean in sums if mean.startswith("loss_")}
  for term, weight in weights.items():
    assert float(sums[f"loss_{term}"].weight) == pytest.approx(float(weight)) and float(weight) > 0
  for mean in sums.values():
    assert np.isfinite(float(mean.value()))


@pytest.mark.parametrize("name, kernel", common.KERNELS)
def test_documents_of_a_packed_row_do_not_see_each_other_in_any_kernel(name, kernel, monkeypatch):
  monkeypatch.setattr(splash, "INTERPRET", True)
  monkeypatch.setattr(chunked, "CHUNK", 5)
  apart(name, attention=grouped.Config(heads=4, kernel=kernel))


@common.objectives("packing")
def test_documents_of_a_packed_row_do_not_see_each_other(name):
  apart(name)


def apart(name, **model_keys):
  """Other tokens in the first document of each row move no score of the second."""
  objective, _, params, apply = common.build(name, model_keys=model_keys)
  batch = common.batch(objective, 4)
  # Other tokens, of which the same begin a word.
  other = np.where(batch.rows["segments"] == 1, (batch.rows["tokens"] - 7 + 6) % 33 + 7, batch.rows["tokens"])

  @jax.jit
  def read(tokens):
    example = corrupted(objective, KEY, batch._replace(rows={**batch.rows, "tokens": tokens}), 0)
    segments = common.all_segments(example.inputs)
    everywhere = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    output = apply(params, example.inputs, read={head: everywhere for head in objective.heads})
    return {head: common.scores(output, head) for head in objective.heads}, segments == 2

  (before, second), (after, _) = read(batch.rows["tokens"]), read(other.astype(np.int32))
  for head in objective.heads:
    before[head], after[head], where = np.asarray(before[head]), np.asarray(after[head]), np.asarray(second)
    assert (before[head] != after[head])[~where].any(), "the change had no effect at all"
    np.testing.assert_array_equal(before[head][where], after[head][where])


@common.objectives("packing")
def test_packed_loss_is_the_loss_of_the_documents_apart(name):
  """Sums over a row of two documents equal the sums over two rows of one, given the same corruption."""
  objective, _, params, apply = common.build(name)
  batch = common.batch(objective, 3)
  example = corrupted(objective, KEY, batch, 0)
  loss = jax.jit(lambda example: objective.loss(apply, params, example, None, False))
  terms, _ = loss(example)
  apart = {term: 0.0 for term in terms}
  for segment in (1, 2):
    here = example.inputs.segments == segment
    inputs = common.document(example.inputs, segment)
    kept = {}
    for term, weights in example.weights.items():
      places = example.positions.get(term, jnp.broadcast_to(jnp.arange(here.shape[1]), here.shape))
      kept[term] = weights * jnp.take_along_axis(here, places, 1)
    alone, _ = loss(example._replace(inputs=inputs, weights=kept))
    apart = {term: apart[term] + float(alone[term].total) for term in terms}
  for term in terms:
    assert float(terms[term].total) == pytest.approx(apart[term], rel=1e-5)


def flat(tree):
  """All leaves in one vector, on the host."""
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@each_objective
def test_microbatches_equal_one_batch(name):
  objective, _, params, apply = common.build(name, model_keys=common.shallow(name))
  batch = common.batch(objective, 8)
  optimizer = optax.with_extra_args_support(optax.sgd(1.0))  # the change of the parameters is the gradient

  def gradient(microbatches):
    step = jax.jit(make_train_step(apply, objective, optimizer, microbatches))
    after, metrics = step(common.state(params, optimizer), batch)
    return metrics["loss"], flat(params) - flat(after.params)

  loss, one = gradient(1)
  for parts in (2, 4):
    loss_parts, many = gradient(parts)
    assert float(loss) == pytest.approx(float(loss_parts), rel=1e-6)
    assert np.linalg.norm(one - many) <= 1e-5 * np.linalg.norm(one)


class Rows:
  """A finite split in memory."""

  def __init__(self, arrays):
    self.arrays = arrays

  def __len__(self):
    return len(next(iter(self.arrays.values())))

  def __getitem__(self, i):
    return {name: array[i] for name, array in self.arrays.items()}


@common.objectives("evaluation batch", variants=False)
def test_a_score_does_not_depend_on_the_evaluation_batch(name):
  objective, params, step = evaluation(name)
  split = Rows(common.rows(objective, 13))
  mesh = meshes.make(meshes.Config(), jax.devices()[:1])
  scores = [loss_eval.run(step, params, objective, split, size, mesh, KEY, 0) for size in (1, 4, 13, 16)]
  for other in scores[1:]:
    assert other == pytest.approx(scores[0], rel=2e-6)


@each_variant
def test_padding_rows_weigh_nothing(name):
  objective, params, step = evaluation(name)
  batch = common.batch(objective, 4)
  padded = Batch(batch.rows, batch.index, np.array([True, True, False, False]))
  short = jax.tree.map(lambda x: x[:2], batch)
  a, b = step(params, short, KEY, 0), step(params, padded, KEY, 0)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


@common.objectives("hidden targets")
def test_no_score_depends_on_the_token_it_is_to_predict(name):
  """Change one token of the text: where the target changes, the scores do not; elsewhere they do."""
  hide = {"keep_rate": 0.0, "mask_rate": 0.4}
  changes = {"masked_lm": hide, "next_sentence": {"masked": use("objectives.masked_lm", **hide)}}.get(name.partition("-")[0], {})
  objective, _, params, apply = common.build(name, **changes)
  batch = common.batch(objective, 3)

  @jax.jit
  def scores(tokens):
    example = corrupted(objective, KEY, batch._replace(rows={**batch.rows, "tokens": tokens}), 0)
    output = apply(params, example.inputs, read={head: common.asked(example, head) for head in objective.heads})
    return example, {head: common.scores(output, head) for head in objective.heads}

  tokens = batch.rows["tokens"]
  before, was = scores(tokens)
  own, others = 0, 0
  for place in range(tokens.shape[1]):
    changed = tokens.copy()
    changed[:, place] = np.where(tokens[:, place] > 0, (tokens[:, place] - 7 + 3) % 33 + 7, 0)  # as much the beginning of a word as before
    after, now = scores(changed)
    for term in before.targets:
      counts = np.asarray(before.weights[term]) > 0
      hit = (np.asarray(before.targets[term]) != np.asarray(after.targets[term])) & counts
      moved = np.abs(now[term] - was[term]).max(-1) > 0
      assert not (hit & moved).any(), f"the score of a target of '{term}' moved with the token at place {place}, which is that target"
      own, others = own + hit.sum(), others + (moved & counts & ~hit).sum()
  assert own > 0 and others > 0


@pytest.mark.parametrize("name", common.LABELS)
def test_no_score_depends_on_the_label_it_is_to_predict(name):
  objective, _, params, apply = common.build(name)
  batch, field = common.batch(objective, 3), common.LABELS[name]

  def scores(**changes):
    """What the loss reads of the model, and the loss."""
    read = []

    def seen(*args, **kwargs):
      output = apply(*args, **kwargs)
      read.append({head: common.scores(output, head) for head in output.heads})
      return output

    example = corrupted(objective, KEY, batch._replace(rows={**batch.rows, **changes}), 0)
    terms, _ = objective.loss(seen, params, example, None, False)
    return read, float(sum(term.total for term in terms.values()))

  labels, other = batch.rows[field], common.rows(objective, 3, seed=1)
  wrong = labels + 1 if objective.classes is None else np.where(labels >= 0, (labels + 1) % objective.classes, -1)
  (was, loss), (now, changed) = scores(), scores(**{field: wrong.astype(labels.dtype)})
  assert loss != changed
  jax.tree.map(np.testing.assert_array_equal, was, now)
  moved, _ = scores(**{name: values for name, values in other.items() if name != field})
  assert all((a != b).any() for a, b in zip(jax.tree.leaves(was), jax.tree.leaves(moved)))


@each_objective
def test_any_mesh_gives_the_same_losses(name):
  """Eight steps with dropout on two meshes; tests/mesh_invariance.py runs fifty on every mesh."""
  from tests.mesh_invariance import losses

  shallow = common.shallow(name)
  one = losses(name, dict(data=1), 8, **shallow)
  third = "sequence" if name in ("causal_lm", "masked_lm", "permutation_lm", "seq2seq") else "data"
  for axes in (dict(data=8), {"fsdp": 2, "tensor": 2, third: 2}):
    many = losses(name, axes, 8, **shallow)
    assert many[0] == pytest.approx(one[0], rel=1e-6), axes
    assert np.abs(np.array(one) - many).max() <= 1e-5, axes
