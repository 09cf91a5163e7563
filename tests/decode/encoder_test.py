"""Decoding with an encoder: what the cache keeps of a source, and sources of unequal length."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.decode import reader
from research.decode.rules import Rules
from research.decode.sample import Config, Generator
from research.model import transformer
from research.model.attention import grouped
from research.model.inputs import HeadConfig, Inputs
from research.model.position import bias, learned
from tests import drawn
from tests.contracts.common import compiled

V, START = 23, 7
GREEDY = Config(temperature=0)
KEY = jax.random.key(5)
RULES = Rules(start=START)
SOURCES = [np.array(s, np.int32) for s in ([3, 1, 4, 1, 5, 9], [2], [6, 5, 3])]
PROMPTS = [np.array(p, np.int32) for p in ([START], [START, 4, 8], [START, 2])]


def build(scan=False, position=None, norm_place="pre"):
  cfg = transformer.Config(
      layers=2, encoder_layers=2, width=16, attention=grouped.Config(heads=4, kv_heads=2, qk_norm=True), position=position or learned.Config(),
      deviation=0.6, scan=scan, norm_place=norm_place, tie_head=False,
  )  # fmt: skip
  model = transformer.make(cfg, V, {"lm": HeadConfig(bias=True)}, 64)
  params = nn.unbox(jax.jit(transformer.init, static_argnums=0)(model, jax.random.key(0)))
  params["head_lm"]["bias"] = jax.random.normal(jax.random.key(1), (V,))
  return model, params


@pytest.fixture(scope="module")
def built():
  return build()


def recompute(model, params, source, prompt, limit):
  """Greedy text of one source, everything read anew for every token: no cache, no padding of the source."""

  @jax.jit
  def best(text, at):
    inputs = Inputs(text[None], source=Inputs(jnp.asarray(source)[None], kind="full"))
    return jnp.argmax(transformer.bind(model)(params, inputs, read={"lm": at[None, None]}).heads["lm"].logits()[0, 0])

  text = np.zeros(len(prompt) + limit, np.int32)
  text[: len(prompt)] = prompt
  for at in range(len(prompt), len(text)):
    text[at] = best(text, np.int32(at - 1))
  return text[len(prompt) :].tolist()


@pytest.mark.parametrize("variant", [dict(), dict(scan=True, position=bias.Config(buckets=8, max_distance=10), norm_place="post")], ids=str)
def test_greedy_with_cache_is_greedy_without(variant):
  built = build(**variant)
  drawn = Generator(*built, RULES)(PROMPTS, GREEDY, 6, KEY, SOURCES)
  for row, prompt, source in zip(drawn, PROMPTS, SOURCES):
    assert row.tolist() == recompute(*built, source, prompt, 6)
  assert len(set(drawn.flatten())) > 3  # the model does say something


def test_the_start_token_is_the_prompt_where_none_is_given(built):
  generator = Generator(*built, RULES)
  starts = [np.array([START])] * len(SOURCES)
  np.testing.assert_array_equal(generator(None, GREEDY, 6, KEY, SOURCES), generator(starts, GREEDY, 6, KEY, SOURCES))


def test_a_row_does_not_depend_on_the_rows_beside_it(built):
  generator = Generator(*built, RULES)
  together = generator(PROMPTS, GREEDY, 6, KEY, SOURCES)
  for i in range(len(SOURCES)):
    np.testing.assert_array_equal(generator([PROMPTS[i]], GREEDY, 6, KEY, [SOURCES[i]])[0], together[i])


def test_the_encoder_and_the_projections_of_its_output_run_once(built):
  """Once the prompt is read, the weights that only a source needs may be anything."""
  model, params = built
  read = reader.prefill(model, "lm", 3, params, reader.rows(PROMPTS), reader.rows(SOURCES))
  poison = lambda path, leaf: leaf * jnp.nan if _of_source(path) else leaf
  poisoned = jax.tree_util.tree_map_with_path(poison, params)
  hurt = sum(int(jnp.isnan(leaf).any()) for leaf in jax.tree.leaves(poisoned))
  assert hurt > len(jax.tree.leaves(params["encoder"]))
  good = bad = read
  for token in (3, 5):
    tokens = jnp.full((3,), token)
    good, bad = reader.advance(model, "lm", params, good, tokens), reader.advance(model, "lm", poisoned, bad, tokens)
    np.testing.assert_array_equal(good.scores, bad.scores)
    assert jnp.isfinite(bad.scores).all()


def _of_source(path) -> bool:
  names = [entry.key for entry in path]
  return names[0].startswith("encoder") or "cross_attention" in names and names[-2] in ("key", "value", "key_norm")


def test_later_tokens_in_pieces_equal_the_whole(built):
  """Several tokens at once after the first, as in verifying drafts."""
  model, params = built
  x = jnp.asarray(np.random.default_rng(0).integers(0, V, (3, 9)), jnp.int32)
  rows = reader.rows(SOURCES)
  mask = (jnp.arange(6) < rows.lengths[:, None]).astype(jnp.int32)
  source = Inputs(rows.tokens, segments=mask, kind="full")
  apply = compiled(model)
  whole = apply(params, Inputs(x, segments=jnp.ones_like(x), source=source), read={"lm": None}).heads["lm"].logits()
  cache, parts = transformer.empty_cache(model, 3, 9), []
  for start, stop in ((0, 4), (4, 5), (5, 9)):
    place = jnp.broadcast_to(jnp.arange(start, stop), (3, stop - start))
    first = dict(segments=jnp.ones((3, 4), jnp.int32), source=source) if start == 0 else {}
    out = apply(params, Inputs(x[:, start:stop], positions=place, **first), read={"lm": None}, cache=cache)
    cache = out.cache
    parts.append(out.heads["lm"].logits())
  np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=2e-5)


def test_missing_and_needless_sources_are_refused(built):
  generator = Generator(*built, RULES)
  with pytest.raises(ValueError, match="needs sources"):
    generator(PROMPTS, GREEDY, 3, KEY)
  with pytest.raises(ValueError, match="as many prompts"):
    generator(PROMPTS[:2], GREEDY, 3, KEY, SOURCES)
  with pytest.raises(ValueError, match="every source"):
    generator(None, GREEDY, 3, KEY, [SOURCES[0], np.zeros(0, np.int32)])
  with pytest.raises(ValueError, match="Rules.start"):
    Generator(*built)(None, GREEDY, 3, KEY, SOURCES)
  with pytest.raises(ValueError, match="do not fit"):
    Generator(*built, RULES, context=5)(None, GREEDY, 6, KEY, SOURCES)
  cfg = transformer.Config(layers=1, width=16, attention=grouped.Config(heads=4))
  model = transformer.make(cfg, V, {"lm": HeadConfig()}, 64)
  single = model, drawn.parameters(model)
  with pytest.raises(ValueError, match="no encoder"):
    Generator(*single)(PROMPTS, GREEDY, 3, KEY, SOURCES)
