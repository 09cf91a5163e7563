"""XLNet against transformers: both streams, segments, padding, packing, memory, gradients, round trip."""

import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.errors import UserError
from research.hf import loading
from research.hf.family import describe
from research.model.inputs import Inputs, Past, positions_within
from tests.hf import common
from tests.hf.common import Case, close

B, L, P, M = 2, 10, 3, 4  # rows, tokens, predicted places, places of memory


def cases(count=3):
  drawn = common.spread(
      count, 1,
      n_head=[1, 2, 3, 5], n_layer=[1, 2], d_inner=[20, 28], ff_activation=["gelu", "relu", "gelu_new", "silu"], clamp_len=[-1, 3],
      tie_word_embeddings=[True, False], layer_norm_eps=[1e-12, 1e-3], vocab_size=[61, 83],
  )  # fmt: skip
  for i, config in enumerate(drawn):
    yield Case(f"xlnet-{i}", "XLNetLMHeadModel", "XLNetConfig", config | dict(d_model=config["n_head"] * 8))


@pytest.fixture(scope="module", params=cases(), ids=str)
def pair(request, tmp_path_factory):
  return common.make_pair(request.param, tmp_path_factory.mktemp("xlnet"))


class Rows(NamedTuple):
  tokens: np.ndarray  # [B, L]
  types: np.ndarray  # [B, L]
  mask: np.ndarray  # [B, L], 1 for a token, 0 for padding
  order: np.ndarray  # [B, L]: 0 for the context, then 1, 2, …
  queries: np.ndarray  # [B, P]


def drawn_rows(vocab_size: int, seed: int = 0) -> Rows:
  """Rows, the first padded at its start, as XLNet pads, of which some tokens are the context and the others in a random order."""
  rng = np.random.default_rng(seed)
  mask = np.ones((B, L), np.int32)
  mask[0, :2] = 0
  order, queries = np.zeros((B, L), np.int32), np.zeros((B, P), np.int32)
  for row in range(B):
    targets = rng.permutation(np.flatnonzero(mask[row]))[: P + 2]  # two of them are predicted by nobody
    order[row, targets] = np.arange(1, len(targets) + 1)
    queries[row] = rng.permutation(targets)[:P]
  return Rows(common.rows(vocab_size, B, L, seed), np.sort(rng.integers(0, 3, (B, L)), axis=1).astype(np.int32), mask, order, queries)


def theirs_of(rows: Rows) -> dict:
  """The arguments with which transformers computes the predicted places of these rows."""
  torch, _ = common.reference()
  lowest = rows.order - (rows.order > 0)  # what a query may see at most
  hidden = rows.order[:, None, :] > lowest[:, :, None]
  mapping = np.eye(L, dtype=np.float32)[rows.queries]
  return dict(input_ids=torch.tensor(rows.tokens, dtype=torch.long), perm_mask=torch.tensor(hidden, dtype=torch.float32), target_mapping=torch.tensor(mapping),
              token_type_ids=torch.tensor(rows.types, dtype=torch.long), attention_mask=torch.tensor(rows.mask, dtype=torch.float32))  # fmt: skip


def ours_of(rows: Rows) -> Inputs:
  fields = dict(segments=rows.mask, types=rows.types, order=rows.order, queries=rows.queries)
  return Inputs(jnp.asarray(rows.tokens), kind="ordered", **{key: jnp.asarray(value) for key, value in fields.items()})


def asked(places: int = P) -> jax.Array:
  return jnp.broadcast_to(jnp.arange(L, L + places), (B, places))


def run(pair, inputs, read, past=None):
  return common.quick(lambda params: pair.apply(params, inputs, read=read, past=past))(pair.loaded.params)


def remembered(pair, segments: bool) -> tuple[list, Past]:
  """A random memory of M places for both."""
  torch, _ = common.reference()
  cfg = pair.loaded.described.cfg
  states = np.random.default_rng(5).normal(size=(cfg.layers, B, M, cfg.width)).astype(np.float32)
  theirs = [torch.tensor(state.transpose(1, 0, 2)) for state in states]
  place = jnp.broadcast_to(jnp.arange(-M, 0), (B, M))
  return theirs, Past(tuple(jnp.asarray(state) for state in states), place, jnp.ones((B, M), jnp.int32) if segments else None)


# --- against transformers -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("types", [False, True])
def test_bidirectional_rows_with_padding(pair, types):
  torch, _ = common.reference()
  rows = drawn_rows(pair.loaded.described.vocab_size)
  more = dict(token_type_ids=torch.tensor(rows.types, dtype=torch.long)) if types else {}
  theirs = common.their_logits(pair, rows.tokens, attention_mask=torch.tensor(rows.mask, dtype=torch.float32), **more)
  padding = torch.tensor(1.0 - rows.mask, dtype=torch.float32)
  np.testing.assert_array_equal(common.their_logits(pair, rows.tokens, input_mask=padding, **more), theirs)
  fields = dict(segments=jnp.asarray(rows.mask), kind="full") | (dict(types=jnp.asarray(rows.types)) if types else {})
  ours = np.asarray(run(pair, Inputs(jnp.asarray(rows.tokens), **fields), {"lm": None}).heads["lm"].logits())
  close(ours[rows.mask == 1], theirs[rows.mask == 1])


@pytest.mark.parametrize("memory", [False, True])
def test_both_streams_of_a_random_order_and_gradients(pair, memory):
  """With types and padding; the gradients are those of the cross-entropy of the predicted places."""
  torch, _ = common.reference()
  rows = drawn_rows(pair.loaded.described.vocab_size)
  targets = np.take_along_axis(rows.tokens, rows.queries, 1)
  mems, past = remembered(pair, segments=True) if memory else (None, None)
  theirs = pair.theirs(**theirs_of(rows), mems=mems, labels=torch.tensor(targets, dtype=torch.long), output_hidden_states=True)

  def loss(params):
    out = pair.apply(params, ours_of(rows), read={"lm": asked()}, past=past)
    logits = out.heads["lm"].logits()
    hidden = pair.apply(params, ours_of(rows), read={}, past=past).hidden
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(targets)[:, :, None], axis=-1)), (logits, hidden)

  (ours, (logits, hidden)), grads = common.quick(jax.value_and_grad(loss, has_aux=True))(pair.loaded.params)
  common.compare_gradients(pair, grads, common.their_gradients(pair, theirs.loss))
  assert abs(float(ours) - theirs.loss.item()) < 1e-5
  close(logits, theirs.logits.detach().numpy())
  content, query = (state.detach().numpy() for state in theirs.hidden_states[-2:])
  close(hidden[:, L:], query)
  close(np.asarray(hidden[:, :L])[rows.mask == 1], content[rows.mask == 1])


def test_memory_of_rows_before(pair):
  """The states that transformers keeps are ours, and the next rows read them alike."""
  torch, _ = common.reference()
  tokens, types = common.rows(pair.loaded.described.vocab_size, B, 2 * L), np.tile(np.arange(2 * L) // 7 % 2, (B, 1))
  halves = slice(0, L), slice(L, 2 * L)
  mems, states = None, tuple(jnp.zeros((B, 0, pair.loaded.described.cfg.width)) for _ in range(pair.loaded.described.cfg.layers))
  for number, half in enumerate(halves):
    with torch.no_grad():
      theirs = pair.theirs(input_ids=torch.tensor(tokens[:, half], dtype=torch.long), token_type_ids=torch.tensor(types[:, half]), mems=mems, use_mems=True)
    place = jnp.broadcast_to(jnp.arange(-states[0].shape[1], 0), (B, states[0].shape[1]))
    ours = run(pair, Inputs(jnp.asarray(tokens[:, half]), types=jnp.asarray(types[:, half]), kind="full"), {"lm": None}, Past(states, place))
    close(ours.heads["lm"].logits(), theirs.logits.numpy())
    for mine, their in zip(ours.past, theirs.mems):
      close(mine, their.numpy().transpose(1, 0, 2)[:, -L:])
    mems, states = theirs.mems, ours.past
    assert mems[0].shape[0] == L * (number + 1)


def test_a_causal_row_is_their_attention_of_one_direction(pair):
  torch, transformers = common.reference()
  config = transformers.XLNetConfig(**pair.case.config | dict(attn_type="uni"))
  uni = transformers.XLNetLMHeadModel(config)
  uni.load_state_dict(pair.theirs.state_dict())
  tokens = common.rows(pair.loaded.described.vocab_size)
  mems, past = remembered(pair, segments=False)
  for before, theirs in ((None, None), (past, mems)):
    ours = run(pair, Inputs(jnp.asarray(tokens)), {"lm": None}, before).heads["lm"].logits()
    close(ours, common.their_logits(pair._replace(theirs=uni.eval()), tokens, mems=theirs))


def test_packed(pair):
  """Two documents in one row, each with an order and queries of its own, against their separate rows."""
  torch, _ = common.reference()
  tokens = common.rows(pair.loaded.described.vocab_size, 1, L)
  segments = jnp.array([[1] * 5 + [2] * 4 + [0]])
  order, types = jnp.array([[0, 2, 1, 3, 0, 3, 0, 1, 2, 0]]), jnp.array([[0, 0, 1, 1, 1, 0, 0, 0, 1, 0]])
  queries = jnp.array([[1, 3, 8, 5]])
  both = dict(segments=segments, types=types, positions=positions_within(segments))
  full = run(pair, Inputs(jnp.asarray(tokens), kind="full", **both), {"lm": None}).heads["lm"].logits()
  ordered = run(pair, Inputs(jnp.asarray(tokens), order=order, queries=queries, kind="ordered", **both), {"lm": L + jnp.arange(4)[None]})
  for start, stop, mine in ((0, 5, [0, 1]), (5, 9, [2, 3])):
    part = slice(start, stop)
    ids, segment = torch.tensor(tokens[:, part], dtype=torch.long), torch.tensor(np.asarray(types[:, part]), dtype=torch.long)
    with torch.no_grad():
      close(full[:, part], pair.theirs(input_ids=ids, token_type_ids=segment).logits.numpy())
      place = np.asarray(order[:, part])
      hidden = torch.tensor((place[:, None, :] > (place - (place > 0))[:, :, None]).astype(np.float32))
      mapping = torch.tensor(np.eye(stop - start, dtype=np.float32)[np.asarray(queries[0, np.array(mine)]) - start][None])
      theirs = pair.theirs(input_ids=ids, token_type_ids=segment, perm_mask=hidden, target_mapping=mapping).logits.numpy()
    close(ordered.heads["lm"].logits()[:, np.array(mine)], theirs)


def test_the_model_without_a_head(tmp_path):
  torch, _ = common.reference()
  bare = common.make_pair(next(cases())._replace(model_class="XLNetModel"), tmp_path / "bare")
  assert not bare.loaded.described.heads
  tokens = common.rows(61)
  with torch.no_grad():
    theirs = bare.theirs(input_ids=torch.tensor(tokens, dtype=torch.long)).last_hidden_state.numpy()
  close(run(bare, Inputs(jnp.asarray(tokens), kind="full"), {}).hidden, theirs)
  ids = torch.tensor(tokens, dtype=torch.long)
  common.check_round_trip(bare, tmp_path / "again", inputs=lambda model: model(input_ids=ids).last_hidden_state)


def test_round_trip(pair, tmp_path):
  arguments = theirs_of(drawn_rows(pair.loaded.described.vocab_size))
  common.check_round_trip(pair, tmp_path, inputs=lambda model: model(**arguments).logits)


# --- config ------------------------------------------------------------------------------------------------------------------

PUBLISHED = dict(
    architectures=["XLNetLMHeadModel"], attn_type="bi", bi_data=False, bos_token_id=1, clamp_len=-1, d_head=64, d_inner=3072, d_model=768, dropout=0.1,
    end_n_top=5, eos_token_id=2, ff_activation="gelu", initializer_range=0.02, layer_norm_eps=1e-12, mem_len=None, model_type="xlnet", n_head=12, n_layer=12,
    pad_token_id=5, reuse_len=None, same_length=False, start_n_top=5, summary_activation="tanh", summary_last_dropout=0.1, summary_type="last",
    summary_use_proj=True, untie_r=True, vocab_size=32000,
)  # fmt: skip


def test_a_published_config():
  family, described = describe(PUBLISHED, "config.json")
  assert (family.name, described.cfg.layers, described.cfg.width, described.vocab_size) == ("xlnet", 12, 768, 32000)
  assert described.cfg.queries and described.cfg.position.clamp is None and described.cfg.tie_head


@pytest.mark.parametrize("key, value", [
    ("attn_type", "uni"), ("bi_data", True), ("same_length", True), ("untie_r", False), ("d_head", 32), ("ff_activation", "mish"), ("a_new_key", 1),
])  # fmt: skip
def test_what_is_not_supported_is_named(key, value):
  with pytest.raises(UserError, match=f"unsupported value in config.json: '{key}' is {json.dumps(value)}"):
    describe(PUBLISHED | {key: value}, "config.json")


# --- golden ------------------------------------------------------------------------------------------------------------------

GOLDEN = Case("xlnet", "XLNetLMHeadModel", "XLNetConfig", dict(vocab_size=19, d_model=8, n_head=2, n_layer=2, d_inner=12, clamp_len=5))


def golden_arrays(model, case):
  """Rows and the scores of their predicted places, for the golden folder."""
  torch, _ = common.reference()
  rows = drawn_rows(case.config["vocab_size"])
  with torch.no_grad():
    return {**rows._asdict(), "predicted": model(**theirs_of(rows)).logits.numpy()}


def test_golden(tmp_path):
  """The comparison with both streams, from numbers that transformers gave."""
  folder, arrays = common.golden("xlnet")
  loaded = loading.load_model(folder)
  rows = Rows(**{name: arrays[name] for name in Rows._fields})
  close(run(common.Pair(None, None, loaded, folder), ours_of(rows), {"lm": asked()}).heads["lm"].logits(), arrays["predicted"])
  loading.export(str(tmp_path / "again"), loaded.model, loaded.params)
  assert json.loads(pathlib.Path(tmp_path / "again" / "config.json").read_text())["model_type"] == "xlnet"
  jax.tree.map(np.testing.assert_array_equal, loading.load_model(str(tmp_path / "again")).params, loaded.params)
