"""Next-sentence prediction joined with masked language modelling: against transformers, and against the two apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core import config as configs
from research.core.config import use
from research.core.types import Batch, Vocab
from research.objectives.base import finish
from tests.contracts import common
from tests.contracts.common import corrupted
from tests.hf.common import Case, make_pair, quick, reference

KEY = jax.random.key(2)
SMALL = dict(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=16)


def pairs(count: int) -> Batch:
  """Rows as data.pairs makes them: [CLS] A [SEP] B [SEP], some padding."""
  rng = np.random.default_rng(0)
  rows = {name: np.zeros((count, 16), np.int32) for name in ("tokens", "segments", "types")}
  for i in range(count):
    a, end = int(rng.integers(2, 7)), int(rng.integers(12, 17))
    rows["tokens"][i, :end] = rng.integers(len(common.SPECIAL), 40, end)
    rows["tokens"][i, [0, a, end - 1]] = [common.SPECIAL[name] for name in ("cls", "sep", "sep")]
    rows["segments"][i, :end] = 1
    rows["types"][i, a + 1 : end] = 1
  rows["is_next"] = np.arange(count, dtype=np.int32) % 3 % 2
  return Batch(rows, np.stack([np.zeros(count), np.arange(count)], 1).astype(np.uint32), np.ones(count, bool))


def test_the_loss_is_that_of_transformers(tmp_path):
  torch, _ = reference()
  pair = make_pair(Case("bert", "BertForPreTraining", "BertConfig", SMALL), tmp_path)
  objective = configs.make(configs.typed(use("objectives.next_sentence")), common.vocab(), 16)
  assert dict(pair.loaded.described.heads) == dict(objective.heads)  # so that its checkpoints import into this objective's model
  batch = pairs(6)
  example = corrupted(objective, KEY, batch, 0)
  terms, metrics = quick(lambda params: objective.loss(pair.apply, params, example, None, False))(pair.loaded.params)
  labels = np.full((6, 17), -100)
  places = np.where(example.weights["mlm"] > 0, example.positions["mlm"], 16)
  np.put_along_axis(labels, places, np.asarray(example.targets["mlm"]), 1)
  long = lambda x: torch.tensor(np.asarray(x), dtype=torch.long)
  labels[:, 16] = -100
  with torch.no_grad():
    theirs = pair.theirs(
        input_ids=long(example.inputs.tokens), attention_mask=long(batch.rows["segments"]), token_type_ids=long(batch.rows["types"]),
        labels=long(labels[:, :16]), next_sentence_label=long(1 - batch.rows["is_next"]),
    )  # fmt: skip
  values = finish(objective, {f"loss_{term}": mean for term, mean in terms.items()})
  assert values["loss"] == pytest.approx(float(theirs.loss), abs=1e-4) and values["loss_nsp"] > 0.1
  right = theirs.seq_relationship_logits.argmax(-1).numpy() == 1 - batch.rows["is_next"]
  assert float(metrics["next_sentence_accuracy"].value()) == pytest.approx(right.mean())


def test_the_masked_part_is_masked_lm_itself():
  objective, _, params, apply = common.build("next_sentence", masked=use("objectives.masked_lm", mask_rate=0.3), factor=0.5, masked_factor=2.0)
  masked = configs.make(configs.typed(use("objectives.masked_lm", mask_rate=0.3)), common.vocab(), common.LENGTH)
  batch = common.batch(objective, 4)
  joined, alone = corrupted(objective, KEY, batch, 0), corrupted(masked, KEY, batch, 0)
  np.testing.assert_array_equal(joined.inputs.tokens, alone.inputs.tokens)
  np.testing.assert_array_equal(joined.inputs.types, batch.rows["types"])
  terms, _ = jax.jit(lambda params: objective.loss(apply, params, joined, None, False))(params)
  typed = alone._replace(inputs=alone.inputs.replace(types=jnp.asarray(batch.rows["types"])))
  same, _ = jax.jit(lambda params: masked.loss(apply, params, typed, None, False))(params)
  assert float(terms["mlm"].total) == pytest.approx(float(same["mlm"].total), rel=1e-5)
  values = finish(objective, {f"loss_{term}": mean for term, mean in terms.items()})
  assert values["loss"] == pytest.approx(2 * values["loss_mlm"] + 0.5 * values["loss_nsp"])


def test_one_forward_pass_serves_both():
  objective, _, params, apply = common.build("next_sentence")
  calls = []

  def counted(*args, **kwargs):
    calls.append(kwargs["read"])
    return apply(*args, **kwargs)

  example = corrupted(objective, KEY, common.batch(objective, 2), 0)
  jax.eval_shape(lambda params: objective.loss(counted, params, example, None, False), params)
  assert len(calls) == 1 and set(calls[0]) == {"mlm", "nsp"}


def test_types_and_special_tokens_are_told_apart():
  """What a row's second text is, the model must be able to tell: other types, another answer."""
  objective, _, params, apply = common.build("next_sentence")
  batch = pairs(4)
  score = lambda rows: apply(params, corrupted(objective, KEY, batch._replace(rows=rows), 0).inputs, read={"nsp": None}).heads["nsp"]
  assert (score(batch.rows) != score({**batch.rows, "types": 1 - batch.rows["types"]})).all()
  example = corrupted(objective, KEY, batch, 0)
  hidden = np.asarray(example.targets["mlm"])[np.asarray(example.weights["mlm"]) > 0]
  assert (hidden >= len(common.SPECIAL)).all() and isinstance(common.vocab(), Vocab)
