"""Classification, regression, tagging and sequence-to-sequence learning: the losses by their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.errors import UserError
from research.model.inputs import Inputs
from tests.contracts import common
from tests.contracts.common import corrupted

KEY = jax.random.key(0)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("pool", ["first", "mean"])
def test_classes(pool):
  objective, _, params, apply = common.build("classification", classes=3, pool=pool)
  batch = common.batch(objective, 5)
  example = corrupted(objective, KEY, batch, 0)
  terms, metrics = objective.loss(apply, params, example, None, False)
  found = objective.predict(apply, params, example)
  likelihood = softmax(np.asarray(found["scores"], np.float64))[np.arange(5), batch.rows["label"]]
  assert float(terms["class"].value()) == pytest.approx(-np.log(likelihood).mean(), rel=1e-5)
  assert float(metrics["accuracy"].value()) == pytest.approx((found["class"] == batch.rows["label"]).mean())
  hidden = np.asarray(apply(params, example.inputs, read={}).hidden)
  text = batch.rows["segments"][..., None] > 0
  pooled = hidden[:, 0] if pool == "first" else (hidden * text).sum(1) / text.sum(1)
  head = params["head_class"]
  vector = np.tanh(pooled @ head["transform"]["kernel"] + head["transform"]["bias"])
  np.testing.assert_allclose(vector @ head["outputs"]["kernel"] + head["outputs"]["bias"], found["scores"], atol=2e-5)


def test_types_reach_the_model():
  objective, _, params, apply = common.build("classification")
  batch = common.batch(objective, 2)
  scores = lambda types: objective.predict(apply, params, corrupted(objective, KEY, batch._replace(rows={**batch.rows, "types": types}), 0))["scores"]
  types = batch.rows["types"]
  assert (scores(types) != scores(np.zeros_like(types))).any()


def test_numbers():
  objective, _, params, apply = common.build("classification", classes=1, head_transform=False)
  assert objective.element_spec["label"].dtype == "float32" and objective.classes is None
  batch = common.batch(objective, 6)
  example = corrupted(objective, KEY, batch, 0)
  terms, metrics = objective.loss(apply, params, example, None, False)
  score = np.asarray(objective.predict(apply, params, example)["score"])
  assert score.shape == (6,) and "transform" not in params["head_class"]
  assert float(terms["class"].value()) == pytest.approx(((score - batch.rows["label"]) ** 2).mean(), rel=1e-5)
  assert float(metrics["absolute_error"].value()) == pytest.approx(np.abs(score - batch.rows["label"]).mean(), rel=1e-5)


def test_similarity_is_the_cosine_on_the_scale_of_the_scores():
  objective, _, params, apply = common.build("similarity", low=1.0, high=3.0)
  batch = common.batch(objective, 4)
  example = corrupted(objective, KEY, batch, 0)
  terms, metrics = objective.loss(apply, params, example, None, False)
  score = np.asarray(objective.predict(apply, params, example)["score"])
  for row in range(4):
    first, second = (
        np.asarray(apply(params, Inputs(batch.rows["tokens"][row, i][None], segments=np.minimum(batch.rows["segments"][row, i], 1)[None], kind="full"), read={}).hidden)[0]
        [batch.rows["segments"][row, i] > 0].mean(0) for i in (0, 1)
    )  # fmt: skip
    assert score[row] == pytest.approx(1 + 2 * first @ second / np.linalg.norm(first) / np.linalg.norm(second), abs=1e-5)
  assert float(terms["similarity"].value()) == pytest.approx(((score - batch.rows["label"]) ** 2).mean(), rel=1e-5)
  assert float(metrics["absolute_error"].value()) == pytest.approx(np.abs(score - batch.rows["label"]).mean(), rel=1e-5)
  with pytest.raises(UserError, match="low must be below high"):
    common.build("similarity", low=5.0)


def test_tags():
  objective, _, params, apply = common.build("tagging")
  batch = common.batch(objective, 4)
  terms, metrics = objective.loss(apply, params, example := corrupted(objective, KEY, batch, 0), None, False)
  scores = np.asarray(apply(params, example.inputs, read={"tags": None}).heads["tags"], np.float64)
  rows, places = np.nonzero(batch.rows["tags"] >= 0)
  tags = batch.rows["tags"][rows, places]
  assert float(terms["tags"].weight) == len(tags)
  assert float(terms["tags"].value()) == pytest.approx(-np.log(softmax(scores)[rows, places, tags]).mean(), rel=1e-5)
  assert float(metrics["accuracy"].value()) == pytest.approx((scores.argmax(-1)[rows, places] == tags).mean())


def test_the_decoder_reads_the_start_token_and_then_the_target():
  objective, *_ = common.build("seq2seq", start="cls")
  batch = common.batch(objective, 3)
  inputs = corrupted(objective, KEY, batch, 0).inputs
  for row, seen, segments in zip(batch.rows["tokens"], np.asarray(inputs.tokens), batch.rows["segments"]):
    for segment in (1, 2):
      here = segments == segment
      assert seen[here].tolist() == [common.SPECIAL["cls"], *row[here][:-1]]
  assert inputs.kind == "causal" and inputs.source.kind == "full"
  np.testing.assert_array_equal(inputs.source.tokens, batch.rows["source"])
  with pytest.raises(UserError, match="objective.start is 'bus'"):
    common.build("seq2seq", start="bus")


def test_the_log_probability_is_that_of_the_tokens_one_by_one():
  objective, _, params, apply = common.build("seq2seq")
  rows = common.rows(objective, 2, packed=False)
  rows["tokens"], rows["segments"] = rows["tokens"][:, :5], rows["segments"][:, :5]
  rows["segments"][1, 3:] = 0
  found, apply = objective.logprob(apply, params, rows, None), jax.jit(apply)
  for b, count in enumerate((5, 3)):
    total, text = 0.0, [common.SPECIAL["bos"]]
    for token in rows["tokens"][b, :count]:
      source = Inputs(jnp.asarray(rows["source"][b : b + 1]), kind="full")
      logits = apply(params, Inputs(jnp.array([text]), source=source), read={"lm": None}).heads["lm"].logits()[0, -1]
      total += float(jax.nn.log_softmax(logits)[token])
      text.append(int(token))
    assert float(found[b]) == pytest.approx(total, rel=1e-5)


def test_no_target_sees_what_follows_it_and_all_see_the_source():
  objective, _, params, apply = common.build("seq2seq")
  batch = common.batch(objective, 1, packed=False)
  example = corrupted(objective, KEY, batch, 0)

  def score(place):
    def of(embedding):
      output = apply({**params, "embed": {"embedding": embedding}}, example.inputs.replace(tokens=jnp.arange(16)[None] + 8, source=other), read={"lm": None})
      return output.heads["lm"].hidden[0, place].sum()

    other = example.inputs.source.replace(tokens=jnp.arange(16)[None] + 24)
    return np.abs(jax.jit(jax.grad(of))(params["embed"]["embedding"])).sum(1)

  reach = score(6)
  assert (reach[8:15] > 0).all() and not reach[15:24].any() and (reach[24:40] > 0).all()
