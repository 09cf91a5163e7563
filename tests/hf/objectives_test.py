"""The losses of our objectives against transformers' models on the same corrupted rows."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from research.core import config as configs
from research.core.types import Batch, Vocab
from research.objectives.base import corrupted
from tests.hf import common
from tests.hf.common import Case

FIRST, SIZE, LENGTH, ROWS = 5, 61, 16, 4
SPECIAL = dict(pad=0, unk=1, cls=2, sep=3, mask=4)


def objective_and_rows(name, **changes):
  """An objective and a batch of its rows: two documents packed into each, if `packed`, else one; and padding."""
  packed = changes.pop("packed", False)
  text = np.arange(SIZE) >= FIRST
  vocab = Vocab(SIZE, SPECIAL, np.arange(SIZE) % 3 == 0, text.astype(np.int32))
  objective = configs.make(configs.typed(configs.use(f"objectives.{name}", **changes)), vocab, LENGTH)
  rng = np.random.default_rng(0)
  segments = (np.arange(LENGTH) < rng.integers(12, LENGTH + 1, (ROWS, 1))).astype(np.int32)
  if packed:
    segments[:, 7:] *= 2
  tokens = np.where(segments > 0, rng.integers(FIRST, SIZE, segments.shape), 0).astype(np.int32)
  index = np.stack([np.zeros(ROWS), np.arange(ROWS)], 1).astype(np.uint32)
  return objective, Batch({"tokens": tokens, "segments": segments}, index, np.ones(ROWS, bool))


def corrupt(objective, batch):
  return jax.tree.map(np.asarray, common.quick(lambda b: corrupted(objective, jax.random.key(0), b, 0))(batch))


def mean_loss(objective, pair, example):
  (term,) = objective.factors
  value = common.quick(lambda params: objective.loss(pair.apply, params, example, None, False)[0][term].value())(pair.loaded.params)
  return float(value)


@pytest.mark.parametrize("unit", ["token", "span"])
def test_masked_lm_is_bert_s(unit, tmp_path):
  torch, _ = common.reference()
  sizes = dict(vocab_size=SIZE, hidden_size=24, num_attention_heads=3, num_hidden_layers=2, intermediate_size=48, max_position_embeddings=LENGTH)
  pair = common.make_pair(Case("bert", "BertForPreTraining", "BertConfig", sizes), tmp_path)
  objective, batch = objective_and_rows("masked_lm", unit=unit, mask_rate=0.3)
  example = corrupt(objective, batch)
  labels = np.full((ROWS, LENGTH), -100)
  rows, slots = np.nonzero(example.weights["mlm"])
  labels[rows, example.positions["mlm"][rows, slots]] = example.targets["mlm"][rows, slots]
  long = lambda x: torch.tensor(np.asarray(x), dtype=torch.long)
  with torch.no_grad():
    logits = pair.theirs(input_ids=long(example.inputs.tokens), attention_mask=long(example.inputs.segments)).prediction_logits
    theirs = torch.nn.functional.cross_entropy(logits.view(-1, SIZE), long(labels).view(-1)).item()
  assert len(rows) > 10 and abs(mean_loss(objective, pair, example) - theirs) < 1e-4


@pytest.mark.parametrize("keys", [dict(predict=3), dict(predict=3, packed=True), dict(predict=3, recurrence=2)], ids=["one", "packed", "parts"])
def test_permutation_lm_is_xlnet_s(keys, tmp_path):
  """Queries as target_mapping, orders and documents as perm_mask, the part before as mems. Each row has context, see research/hf/xlnet.py."""
  torch, _ = common.reference()
  sizes = dict(vocab_size=SIZE, d_model=24, n_head=3, n_layer=2, d_inner=40)
  pair = common.make_pair(Case("xlnet", "XLNetLMHeadModel", "XLNetConfig", sizes), tmp_path)
  assert pair.loaded.described.objective == "objectives.permutation_lm"
  objective, batch = objective_and_rows("permutation_lm", **keys)
  assert dict(objective.heads) == dict(pair.loaded.described.heads)
  parts = keys.get("recurrence", 1)
  if parts > 1:  # padding would stand in the memory, where transformers does not hide it
    batch.rows["segments"][:], batch.rows["tokens"][:] = 1, np.maximum(batch.rows["tokens"], FIRST)
  example = corrupt(objective, batch)
  inputs, targets, weights = example.inputs, example.targets["lm"], example.weights["lm"]
  size, slots = LENGTH // parts, targets.shape[1] // parts
  total, count, mems = 0.0, 0, None
  for part in range(parts):
    here, asked = slice(part * size, (part + 1) * size), slice(part * slots, (part + 1) * slots)
    order, segments = inputs.order[:, here], inputs.segments[:, here]
    lowest = order - (order > order.min())  # what a query sees at most; the context has the lowest order
    hidden = (order[:, None, :] > lowest[:, :, None]) | (segments[:, None, :] != segments[:, :, None])
    mapping = np.eye(size, dtype=np.float32)[inputs.queries[:, asked] - part * size]
    with torch.no_grad():
      output = pair.theirs(input_ids=torch.tensor(inputs.tokens[:, here], dtype=torch.long), perm_mask=torch.tensor(hidden, dtype=torch.float32),
                           target_mapping=torch.tensor(mapping), mems=mems, use_mems=parts > 1)  # fmt: skip
    labels = torch.tensor(np.where(weights[:, asked] > 0, targets[:, asked], -100), dtype=torch.long)
    total += torch.nn.functional.cross_entropy(output.logits.transpose(1, 2), labels, reduction="sum").item()
    count, mems = count + int((labels >= 0).sum()), output.mems if parts > 1 else None
  assert count > 10 and abs(mean_loss(objective, pair, example) - total / count) < 1e-4
