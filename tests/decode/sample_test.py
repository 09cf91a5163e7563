"""Decoding: with the cache as without, together as apart, at once as in pieces."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.decode import beam, sample
from research.decode.rules import Rules
from research.decode.sample import Config, Generator, filtered, pick
from research.model import transformer
from research.model.attention import grouped
from research.model.inputs import HeadConfig, Inputs
from research.model.position import bias, learned

V, CONTEXT = 23, 12
GREEDY, SAMPLED = Config(temperature=0), Config(temperature=1.3, top_k=12, top_p=0.9)
KEY = jax.random.key(5)
PROMPTS = [np.array(p, np.int32) for p in ([3, 1, 4, 1, 5], [9], [2, 6, 5])]


def build(scan=False, position=learned.Config()):
  cfg = transformer.Config(layers=2, width=16, attention=grouped.Config(heads=4, kv_heads=2), position=position, deviation=0.6, scan=scan)
  model = transformer.make(cfg, V, {"lm": HeadConfig(bias=True)}, 64)
  params = nn.unbox(jax.jit(transformer.init, static_argnums=0)(model, jax.random.key(0)))
  params["head_lm"]["bias"] = jax.random.normal(jax.random.key(1), (V,))
  return model, params


@pytest.fixture(scope="module")
def built():
  return build()


def recompute(model, params, prefix=False):
  """Greedy continuation that reads the whole text anew for every token, one row at a time."""
  apply = transformer.bind(model)

  @jax.jit
  def best(tokens, length, prompt):
    place = jnp.arange(64)
    inputs = Inputs(tokens[None], segments=(place < length).astype(jnp.int32)[None])
    if prefix:
      inputs = inputs.replace(kind="ordered", order=jnp.where(place < prompt, 0, place - prompt + 1)[None])
    return jnp.argmax(apply(params, inputs, read={"lm": jnp.array([[length - 1]])}).heads["lm"].logits()[0, 0])

  def run(prompt, limit, context=None):
    text, drawn = list(prompt), []
    for _ in range(limit):
      if context is not None and len(text) >= context:
        text = text[-(context // 2) :]
      drawn.append(int(best(jnp.asarray(text + [0] * (64 - len(text)), jnp.int32), len(text), len(prompt))))
      text.append(drawn[-1])
    return drawn

  return run


@pytest.fixture(scope="module")
def reference(built):
  return recompute(*built)


@pytest.mark.parametrize("scan", [False, True])
def test_greedy_with_cache_is_greedy_without(built, reference, scan):
  if scan:
    built = build(scan=True)
    reference = recompute(*built)
  drawn = Generator(*built)(PROMPTS, GREEDY, 20, KEY)
  assert drawn.shape == (3, 20)
  for row, prompt in zip(drawn, PROMPTS):
    assert row.tolist() == reference(prompt, 20)
  assert len(set(drawn.flatten())) > 3  # the model does say something


@pytest.mark.parametrize("position", [learned.Config(), bias.Config(max_distance=16)])
def test_a_prefix_lm_reads_its_prompt_in_both_directions(position):
  built = build(position=position)
  prompts = [*PROMPTS, np.arange(1, 12, dtype=np.int32)]
  both, one = (Generator(*built, Rules(prefix=prefix))(prompts, GREEDY, 12, KEY) for prefix in (True, False))
  for row, prompt in zip(both, prompts):
    assert row.tolist() == recompute(*built, prefix=True)(prompt, 12)
  assert (both != one).any()
  found = beam.BeamSearch(*built, Rules(prefix=True))(prompts, beam.Config(1), 12)
  np.testing.assert_array_equal(found.tokens[:, 0], both)


def test_a_row_does_not_depend_on_the_rows_beside_it(built):
  generator = Generator(*built)
  for cfg in (GREEDY, SAMPLED):
    together = generator(PROMPTS, cfg, 12, KEY)
    for i, prompt in enumerate(PROMPTS):
      others = [np.array([7, 7, 7, 7, 7, 7], np.int32)] * len(PROMPTS)
      others[i] = prompt
      np.testing.assert_array_equal(generator(others, cfg, 12, KEY)[i], together[i])
  np.testing.assert_array_equal(generator(PROMPTS[:1], SAMPLED, 12, KEY)[0], together[0])


def test_equal_prompts_draw_apart_and_the_key_decides(built):
  generator = Generator(*built)
  rows = generator([PROMPTS[0]] * 4, SAMPLED, 12, KEY)
  assert len({tuple(row) for row in rows}) == 4
  np.testing.assert_array_equal(rows, generator([PROMPTS[0]] * 4, SAMPLED, 12, KEY))
  assert (rows != generator([PROMPTS[0]] * 4, SAMPLED, 12, jax.random.key(6))).any()


@pytest.mark.parametrize("context", [None, CONTEXT])
def test_in_pieces_as_at_once(built, context):
  generator = Generator(*built, context=context)
  whole = generator(PROMPTS, SAMPLED, 20, KEY)
  for every in (1, 7):
    *earlier, last = generator.stream(PROMPTS, SAMPLED, 20, KEY, every=every)
    np.testing.assert_array_equal(last, whole)
    for shorter in earlier:
      np.testing.assert_array_equal(shorter, whole[:, : shorter.shape[1]])
  assert whole.shape == (3, 20)


def test_a_stop_token_fills_the_rest_of_its_row(built):
  free = Generator(*built)(PROMPTS, GREEDY, 20, KEY)
  stop = int(free[0, 3])
  ended = Generator(*built, Rules(stop=(stop,)))(PROMPTS, GREEDY, 20, KEY)
  for row, without in zip(ended, free):
    at = next((i for i, token in enumerate(without) if token == stop), len(without))
    np.testing.assert_array_equal(row[: at + 1], without[: len(row)][: at + 1])
    assert (row[at:] == stop).all()
  alone = Generator(*built, Rules(stop=(stop,)))(PROMPTS[:1], GREEDY, 20, KEY)
  assert alone.shape[1] == list(free[0]).index(stop) + 1  # nothing is drawn once every row has stopped


def test_any_of_several_stop_tokens_ends_a_row(built):
  free = Generator(*built)(PROMPTS[:1], GREEDY, 20, KEY)[0]
  first, second = int(free[5]), int(free[2])
  ended = Generator(*built, Rules(stop=(first, second)))(PROMPTS[:1], GREEDY, 20, KEY)[0]
  assert len(ended) == min(list(free).index(first), list(free).index(second)) + 1


def test_a_row_that_has_stopped_stays_so_when_the_context_slides(built):
  free = Generator(*built, context=CONTEXT)(PROMPTS, GREEDY, 30, KEY)
  stop = int(free[1, 2])
  ended = Generator(*built, Rules(stop=(stop,)), context=CONTEXT)(PROMPTS, GREEDY, 30, KEY)
  at = list(free[1]).index(stop)
  assert (ended[1, at:] == stop).all()


def test_a_sliding_context_reads_its_last_half_anew(built, reference):
  long = np.arange(CONTEXT + 5, dtype=np.int32) % V
  prompts = [*PROMPTS, long, long[:CONTEXT], long[: CONTEXT - 1]]
  drawn = Generator(*built, context=CONTEXT)(prompts, GREEDY, 20, KEY)
  for row, prompt in zip(drawn, prompts):
    assert row.tolist() == reference(prompt, 20, CONTEXT)
  sampled = Generator(*built, context=CONTEXT)(PROMPTS, SAMPLED, 20, KEY)
  beside_others = Generator(*built, context=CONTEXT)([PROMPTS[0], long[:8], long[:2]], SAMPLED, 20, KEY)
  np.testing.assert_array_equal(sampled[0], beside_others[0])  # draws do not hang on when the others' contexts slide


def test_an_empty_prompt_is_refused(built):
  with pytest.raises(ValueError, match="at least one token"):
    Generator(*built)([np.zeros(0, np.int32)], GREEDY, 3, KEY)


# --- filters -----------------------------------------------------------------------------------------------------------------


def scores(rows=50, seed=0):
  return jnp.asarray(3 * np.random.default_rng(seed).normal(size=(rows, V)), jnp.float32)


def kept(cfg, given):
  return np.isfinite(np.asarray(filtered(cfg, given)))


def test_filters_keep_scores_over_the_temperature():
  given = scores()
  np.testing.assert_allclose(filtered(Config(temperature=0.5), given), given / 0.5, rtol=1e-6)
  out = np.asarray(filtered(Config(temperature=2.0, top_k=4, top_p=0.8, min_p=0.1), given))
  np.testing.assert_allclose(out[np.isfinite(out)], (np.asarray(given) / 2)[np.isfinite(out)], rtol=1e-6)


@pytest.mark.parametrize("k", [1, 3, V, V + 5])
def test_top_k_keeps_the_k_largest(k):
  given = scores()
  found = kept(Config(top_k=k), given)
  rank = np.argsort(np.argsort(-np.asarray(given), axis=1), axis=1)
  np.testing.assert_array_equal(found, rank < k)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
def test_top_p_keeps_the_smallest_set_that_holds_p(p, temperature):
  given = scores()
  found = kept(Config(temperature=temperature, top_p=p), given)
  share = np.asarray(jax.nn.softmax(given / temperature))
  for row, chosen in zip(share, found):
    assert row[chosen].sum() >= p - 1e-6 and row[chosen].sum() - row[chosen].min() < p + 1e-6
    assert chosen.all() or row[chosen].min() > row[~chosen].max()


@pytest.mark.parametrize("least", [0.05, 0.5, 1.0])
def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(least):
  given = scores()
  share = np.asarray(jax.nn.softmax(given))
  found = kept(Config(min_p=least), given)
  np.testing.assert_array_equal(found, share >= share.max(1, keepdims=True) * (least - 1e-6))


def test_filters_apply_one_after_the_other():
  given = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
  assert kept(Config(top_k=3, top_p=0.75), given).tolist() == [[True, True, False, False]]  # 0.4 + 0.3 of 0.9 is over 0.75
  assert kept(Config(top_p=0.75), given).tolist() == [[True, True, True, False]]


def test_temperature_zero_takes_the_largest():
  given = scores()
  np.testing.assert_array_equal(pick(GREEDY, given, jax.random.split(KEY, 50)), np.argmax(given, axis=1))


@pytest.mark.parametrize("cfg", [Config(), Config(temperature=1.7), Config(top_k=5), Config(top_p=0.8), Config(min_p=0.2)], ids=str)
def test_draws_are_distributed_as_the_filtered_probabilities(cfg):
  draws = 20_000
  given = scores(1) / 2
  tokens = pick(cfg, jnp.repeat(given, draws, 0), jax.random.split(KEY, draws))
  wanted = np.asarray(jax.nn.softmax(filtered(cfg, given)))[0]
  counts = np.bincount(tokens, minlength=V)
  assert (counts[wanted == 0] == 0).all()
  assert (np.abs(counts - draws * wanted) <= 4 * np.sqrt(draws * wanted * (1 - wanted)) + 1e-9).all()


@pytest.mark.parametrize("wrong", [dict(temperature=-1.0), dict(top_k=0), dict(top_p=0.0), dict(top_p=1.1), dict(min_p=2.0)])
def test_settings_out_of_range_are_refused(wrong):
  with pytest.raises(ValueError, match=next(iter(wrong))):
    sample.Config(**wrong)
