"""Which targets count at the borders of documents."""

import jax
import numpy as np

from research.core import config as configs
from research.core.config import use
from research.core.types import Batch
from research.objectives.base import corrupted, finish, total_weights
from tests.contracts import common


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
