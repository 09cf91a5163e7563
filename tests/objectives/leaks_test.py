"""No target helps to predict itself: by gradients from the loss to the embedding of each token, and by changing what the model reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.types import Batch
from research.model.attention import grouped
from research.model.attention.kernels import chunked, splash
from tests.contracts import common
from tests.contracts.common import corrupted

HIDING = dict(keep_rate=0.0, random_rate=0.0)  # no token stays in sight, none is drawn that might be another's
CASES = {
    "causal_lm": {},
    "causal_lm-prefix": {},
    "masked_lm": dict(mask_rate=0.4, **HIDING),
    "masked_lm-span": HIDING,
    "permutation_lm": dict(predict=2),
    "permutation_lm-all": {},
    "permutation_lm-parts": {},
}


def prepared(name, kernel="auto"):
  """One packed row in which no token comes twice, and the loss of each of its targets as a function of parameters and inputs."""
  attention = grouped.Config(heads=4, kernel=kernel)
  objective, _, params, apply = common.build(name, model_keys=dict(tie_head=False, attention=attention), **CASES[name])
  batch = common.batch(objective, 1)
  width = batch.rows["tokens"].shape[1]
  tokens = np.where(batch.rows["segments"] > 0, np.random.default_rng(1).permutation(np.arange(7, common.SIZE))[:width], 0).astype(np.int32)
  batch = Batch({**batch.rows, "tokens": tokens}, batch.index, batch.valid)
  example = corrupted(objective, jax.random.key(1), batch, 0)
  (term,) = example.weights
  targets = np.flatnonzero(example.weights[term][0])
  ones = jnp.eye(example.weights[term].shape[1])[targets][:, None]  # of each target alone

  def losses(params, inputs):
    alone = lambda weights: objective.loss(apply, params, example._replace(inputs=inputs, weights={term: weights}), None, False)[0][term].total
    return jax.lax.map(alone, ones)

  places = example.positions[term][0][targets] if example.positions else targets + 1
  return example, params, losses, np.asarray(example.targets[term][0][targets]), np.asarray(places)


def visible(name, example, target, place):
  """Places of the row that the target at `place` may depend on: what the rule says, with the query's own place left out."""
  inputs = jax.tree.map(lambda x: np.asarray(x[0]), example.inputs)
  at = np.arange(len(inputs.tokens))
  if name.startswith("causal_lm"):
    reader = place - 1
    before = at <= reader if inputs.kind == "causal" else inputs.order <= inputs.order[reader]
  elif name.startswith("masked_lm"):
    reader, before = place, inputs.tokens != common.SPECIAL["mask"]
  else:
    reader, before = place, inputs.order < inputs.order[place]
  return (inputs.segments == inputs.segments[reader]) & before


@pytest.mark.parametrize("name, kernel", [*((name, "auto") for name in CASES), ("causal_lm", "chunked"), ("masked_lm", "splash")])
def test_gradients_reach_the_visible_tokens_and_no_others(name, kernel, monkeypatch):
  monkeypatch.setattr(splash, "INTERPRET", True)
  monkeypatch.setattr(chunked, "CHUNK", 5)
  example, params, losses, targets, places = prepared(name, kernel)
  grads = jax.jit(jax.jacobian(lambda table: losses({**params, "embed": {"embedding": table}}, example.inputs)))(params["embed"]["embedding"])
  reached = np.abs(np.asarray(grads)).sum(-1) > 0  # [targets, V]
  tokens, parts = np.asarray(example.inputs.tokens[0]), 2 if name.endswith("parts") else 1
  assert len(targets) >= 2
  seen = 0
  for row, target, place in zip(reached, targets, places):
    assert not row[target]
    may = visible(name, example, target, place)
    if parts > 1:  # what lies in the part before is seen, but no gradient flows into it
      size = len(tokens) // parts
      may = may & (np.arange(len(tokens)) // size == place // size)
    ordinary = tokens >= len(common.SPECIAL)
    np.testing.assert_array_equal(row[tokens[ordinary]], may[ordinary])
    seen += may.sum()
  assert seen > 0


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("permutation_lm")])
def test_the_content_of_a_target_is_seen_by_later_targets_only(name):
  """The loss itself, both parts of a row with a memory among them: changing what stands at a target moves no loss before it in the order."""
  example, params, losses, _, places = prepared(name)
  order = np.asarray(example.inputs.order[0])
  segments = np.asarray(example.inputs.segments[0])
  of = jax.jit(lambda tokens: losses(params, example.inputs.replace(tokens=tokens)))
  tokens = np.asarray(example.inputs.tokens)
  before, moved_some = np.asarray(of(tokens)), False
  for place in places:
    changed = tokens.copy()
    changed[0, place] = 7 + (tokens[0, place] - 7 + 1) % 33
    moved = np.asarray(of(changed)) != before
    later = (order[places] > order[place]) & (segments[places] == segments[place])
    np.testing.assert_array_equal(moved, later)
    moved_some |= moved.any()
  assert moved_some
