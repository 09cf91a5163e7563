"""GPT-2 against transformers: logits, gradients, padding, packing, cache, round trip, training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.hf import loading
from research.model.inputs import Inputs
from tests.hf import common
from tests.hf.common import Case


def case(seed):
  heads = common.drawn(seed, heads=[1, 3, 5])["heads"]
  config = common.drawn(
      seed + 100,
      n_layer=[1, 2, 3], n_inner=[None, 28], activation_function=["gelu_new", "gelu", "relu", "silu"], tie_word_embeddings=[True, False],
      layer_norm_epsilon=[1e-5, 1e-3], scale_attn_weights=[True, True, False], vocab_size=[61, 83], n_positions=[16, 31],
  )  # fmt: skip
  config |= dict(n_head=heads, n_embd=heads * 8, bos_token_id=0, eos_token_id=0)
  return Case(f"gpt2-{seed}", "GPT2LMHeadModel", "GPT2Config", config)


@pytest.fixture(scope="module", params=range(4), ids=lambda seed: case(seed).name)
def pair(request, tmp_path_factory):
  return common.make_pair(case(request.param), tmp_path_factory.mktemp("gpt2"), request.param)


def test_padding_and_packing(pair):
  common.check_rows(pair)


def test_cache(pair):
  common.check_cache(pair)


def test_logits_and_gradients(pair):
  common.check_gradients(pair)


def test_round_trip(pair, tmp_path):
  common.check_round_trip(pair, tmp_path)


@pytest.mark.parametrize("changes", [dict(activation_function="gelu_fast"), dict(reorder_and_upcast_attn=True, attn_implementation="eager")], ids=str)
def test_options_that_are_one_arithmetic(changes, tmp_path):
  common.check_logits(common.make_pair(case(1)._replace(config=case(1).config | changes), tmp_path))


def test_folders_of_the_model_alone(tmp_path):
  """GPT2Model saves the same tensors without the prefix; old folders hold the causal masks too."""
  torch, transformers = common.reference()
  pair = common.make_pair(case(0)._replace(config=case(0).config | dict(tie_word_embeddings=True)), tmp_path / "whole")
  pair.theirs.transformer.save_pretrained(tmp_path / "bare")
  bare = loading.load_model(str(tmp_path / "bare"))
  jax.tree.map(np.testing.assert_array_equal, bare.params, pair.loaded.params)
  from safetensors.torch import load_file, save_file

  tensors = load_file(tmp_path / "bare" / "model.safetensors")
  save_file({**tensors, "h.0.attn.bias": torch.ones(1, 1, 4, 4)}, tmp_path / "bare" / "model.safetensors")
  assert list(loading.load_model(str(tmp_path / "bare")).report.ignored) == ["h.0.attn.bias"]


def test_twenty_steps_of_adamw(tmp_path):
  """The same batches, the same optimizer: our loss curve is torch's."""
  torch, _ = common.reference()
  changes = dict(n_layer=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=True)
  pair = common.make_pair(case(3)._replace(config=case(3).config | changes), tmp_path)
  batches = [common.rows(60, count=4, length=12, seed=seed) for seed in range(4)] * 5
  settings = dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
  optimizer, theirs = torch.optim.AdamW(pair.theirs.parameters(), **settings), []
  for batch in batches:
    ids = torch.tensor(batch, dtype=torch.long)
    optimizer.zero_grad()
    loss = pair.theirs(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    theirs.append(float(loss.detach()))

  adamw = optax.adamw(settings["lr"], *settings["betas"], eps=settings["eps"], weight_decay=settings["weight_decay"])

  @jax.jit
  def step(params, state, tokens):
    loss = lambda params: common.lm_loss(pair.apply(params, Inputs(tokens), read={"lm": None}).heads["lm"].logits(), tokens)
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = adamw.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  params, state, ours = pair.loaded.params, adamw.init(pair.loaded.params), []
  for batch in batches:
    params, state, value = step(params, state, jnp.asarray(batch))
    ours.append(float(value))
  assert theirs[0] - theirs[-1] > 0.5  # they learn
  np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=0)
