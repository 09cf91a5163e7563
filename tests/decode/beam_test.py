"""Beam search: the best of all texts where it follows enough of them, and the same text beside other rows as alone."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.decode import beam, sample
from research.decode.beam import BeamSearch, Config
from research.decode.rules import Rules
from research.model import transformer
from research.model.attention import grouped
from research.model.inputs import HeadConfig, Inputs
from research.model.position import learned
from tests import drawn

V, STOP, LIMIT = 4, 2, 8
PROMPTS = [np.array(p, np.int32) for p in ([3, 1, 0, 1, 3], [1], [2, 1, 3])]
SOURCES = [np.array(s, np.int32) for s in ([1, 0], [3, 0, 0, 1, 2], [2])]
RULES = Rules(stop=(STOP,))


def build(scan=False, encoder_layers=0):
  cfg = transformer.Config(
      layers=2 - encoder_layers, encoder_layers=encoder_layers, width=16, attention=grouped.Config(heads=4, kv_heads=2), position=learned.Config(),
      deviation=0.5, scan=scan,
  )  # fmt: skip
  model = transformer.make(cfg, V, {"lm": HeadConfig(bias=True)}, 64)
  params = drawn.parameters(model, 2)
  params["head_lm"]["bias"] = 0.5 * jax.random.normal(jax.random.key(1), (V,))
  return model, params


@pytest.fixture(scope="module", params=[0, 1], ids=["decoder", "encoder-decoder"])
def built(request):
  return build(encoder_layers=request.param)


def sources_of(built, count=3):
  return SOURCES[:count] if built[0].cfg.encoder_layers else None


@functools.partial(jax.jit, static_argnums=0)
def whole(model, params, rows, source):
  given = None if source is None else Inputs(source[0], segments=source[1], kind="full")
  inputs = Inputs(rows, segments=None if source is None else jnp.ones_like(rows), source=given)
  return jax.nn.log_softmax(transformer.bind(model)(params, inputs, read={"lm": None}).heads["lm"].logits())


def log_p(built, prompt, source, texts):
  """log p of each token of texts [N, n] after a prompt, [N, n]: whole rows read at once, without a cache."""
  rows = np.zeros((len(texts), 5 + LIMIT), np.int32)
  rows[:, : len(prompt)] = prompt
  rows[:, len(prompt) : len(prompt) + texts.shape[1]] = texts
  if source is not None:
    padded = np.zeros((len(texts), 5), np.int32)
    padded[:, : len(source)] = source
    source = padded, np.repeat(np.arange(5)[None] < len(source), len(texts), 0).astype(np.int32)
  found = np.asarray(whole(*built, rows, source))[:, len(prompt) - 1 : len(prompt) - 1 + texts.shape[1]]
  return np.take_along_axis(found, texts[:, :, None], axis=2)[:, :, 0]


def every_text(built, prompt, source, limit, penalty):
  """(score, text) of every text that ends with the stop token or at the limit, best first."""
  texts = np.array(list(itertools.product(range(V), repeat=limit)), np.int32)
  scores, best = log_p(built, prompt, source, texts), {}
  for text, score in zip(texts.tolist(), scores):
    n = text.index(STOP) + 1 if STOP in text else limit
    best[tuple(text[:n])] = score[:n].sum() / n**penalty
  return sorted(((score, text) for text, score in best.items()), reverse=True)


@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.5, -0.7])
def test_with_enough_beams_it_finds_the_best_of_all_texts(built, penalty):
  limit, returned = 4, 12
  cfg = Config(beams=108, length_penalty=penalty, early="never", returned=returned)  # 3³ unfinished texts, 4 ways to go on
  found = BeamSearch(*built, RULES)(PROMPTS, cfg, limit, sources_of(built))
  for i, prompt in enumerate(PROMPTS):
    want = every_text(built, prompt, SOURCES[i] if sources_of(built) else None, limit, penalty)[:returned]
    got = [tuple(text[:n]) for text, n in zip(found.tokens[i].tolist(), found.lengths[i])]
    assert got == [text for _, text in want]
    np.testing.assert_allclose(found.scores[i], [score for score, _ in want], atol=1e-5)
    assert penalty > 0 or len({len(text) for text in got}) > 1


@pytest.mark.parametrize("early", ["full", "likely", "never"])
def test_scores_are_those_of_the_texts_read_anew(built, early):
  """With few beams, so that the cache's rows change places often."""
  penalty = 0.8
  found = BeamSearch(*built, RULES)(PROMPTS, Config(4, penalty, early, returned=4), LIMIT, sources_of(built))
  for i, prompt in enumerate(PROMPTS):
    for text, n, score in zip(found.tokens[i], found.lengths[i], found.scores[i]):
      alone = log_p(built, prompt, SOURCES[i] if sources_of(built) else None, text[None])
      assert score == pytest.approx(alone[0, :n].sum() / n**penalty, abs=1e-5)
      assert STOP not in text[: n - 1] and (text[n:] == STOP).all() and (n == LIMIT or text[n - 1] == STOP)
    assert len({tuple(text[:n]) for text, n in zip(found.tokens[i].tolist(), found.lengths[i])}) == 4
    assert (np.diff(found.scores[i]) <= 0).all()


@pytest.mark.parametrize("early", ["full", "likely", "never"])
def test_a_row_does_not_depend_on_the_rows_beside_it(built, early):
  search, cfg = BeamSearch(*built, RULES), Config(4, 1.3, early, returned=4)
  sources = sources_of(built)
  together = search(PROMPTS, cfg, LIMIT, sources)
  for i in range(3):
    mine, theirs = PROMPTS[i : i + 1], sources and sources[i : i + 1]
    alone = search(mine, cfg, LIMIT, theirs) if i == 1 else search(mine + [PROMPTS[0]] * 2, cfg, LIMIT, sources and theirs + [SOURCES[1]] * 2)
    width = alone.lengths[0].max()
    np.testing.assert_array_equal(alone.tokens[0, :, :width], together.tokens[i, :, :width])
    np.testing.assert_array_equal(alone.lengths[0], together.lengths[i])
    np.testing.assert_allclose(alone.scores[0], together.scores[i], atol=1e-5)


def test_scanned_layers_find_the_same():
  plain, scanned = build(), build(scan=True)
  blocks = [plain[1]["stack"][f"block_{i}"] for i in range(2)]
  params = {**plain[1], "stack": {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}}
  run = lambda model, params: BeamSearch(model, params, RULES)(PROMPTS, Config(4), LIMIT)
  np.testing.assert_array_equal(run(scanned[0], params).tokens, run(*plain).tokens)


def test_one_beam_that_stops_at_its_first_text_is_greedy(built):
  sources = sources_of(built)
  found = BeamSearch(*built, RULES)(PROMPTS, Config(1, early="full"), LIMIT, sources)
  greedy = sample.Generator(*built, RULES)(PROMPTS, sample.Config(temperature=0), LIMIT, jax.random.key(0), sources)
  np.testing.assert_array_equal(found.tokens[:, 0], greedy)


def test_a_larger_penalty_gives_longer_texts(built):
  lengths = [BeamSearch(*built, RULES)(PROMPTS, Config(4, penalty, "never"), LIMIT, sources_of(built)).lengths.mean() for penalty in (-1.0, 0.5, 4.0)]
  assert lengths[0] <= lengths[1] <= lengths[2] and lengths[0] < lengths[2]


def test_rows_that_hold_too_few_texts_say_so(built):
  found = BeamSearch(*built, RULES)(PROMPTS[:1], Config(12, returned=12), 1, sources_of(built, 1))
  assert (found.lengths[0] > 0).sum() == V and found.lengths[0, V:].sum() == 0


def test_rules_hold_in_every_beam(built):
  rules = Rules(stop=(STOP,), never=(1,), least=4, last=STOP, no_repeat=3)
  found = BeamSearch(*built, rules)(PROMPTS, Config(4, early="never", returned=4), LIMIT, sources_of(built))
  for prompt, texts, lengths in zip(PROMPTS, found.tokens.tolist(), found.lengths):
    for text, n in zip(texts, lengths):
      assert n >= 5 and text[n - 1] == STOP and 1 not in text[:n]
      free = [*prompt.tolist(), *text[: n - (n == LIMIT)]]  # the last one is forced at the limit, whatever it repeats
      runs = [tuple(free[i : i + 3]) for i in range(len(free) - 2)]
      assert all(runs.count(run) == 1 for run in runs)


def test_a_text_that_does_not_fit_is_refused(built):
  with pytest.raises(ValueError, match="do not fit"):
    BeamSearch(*built, RULES, context=9)(PROMPTS, Config(), 5, sources_of(built))


@pytest.mark.parametrize("wrong", [dict(beams=0), dict(returned=5), dict(early="soon")])
def test_settings_out_of_range_are_refused(wrong):
  with pytest.raises(ValueError, match=next(iter(wrong))):
    beam.Config(**wrong)
