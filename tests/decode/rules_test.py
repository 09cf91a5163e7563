"""Rules of generated text: each forbids what it says and nothing else."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from research.core.errors import UserError
from research.decode.rules import Rules, Written, no_repeat, read, ruled

V = 9


def scores(rows):
  return jnp.asarray(np.random.default_rng(0).normal(size=(rows, V)), jnp.float32)


def written(prompts, texts, slots=6, before=0):
  """Prompts and texts (all of one length) as arrays."""
  longest = max(map(len, prompts))
  prompt = np.array([[-1] * (longest - len(p)) + list(p) for p in prompts], np.int32)
  tokens = np.zeros((len(prompts), slots), np.int32)
  for row, text in zip(tokens, texts):
    row[: len(text)] = text
  return Written(jnp.asarray(prompt), jnp.asarray(tokens), jnp.asarray(len(texts[0])), jnp.asarray(before))


def allowed(rules, given, limit=6):
  """The tokens that each row may draw; scores that are left must be unchanged."""
  before = scores(given.prompt.shape[0])
  after = np.asarray(ruled(rules, before, given, jnp.asarray(limit)))
  np.testing.assert_array_equal(after[np.isfinite(after)], np.asarray(before)[np.isfinite(after)])
  return [set(np.flatnonzero(np.isfinite(row)).tolist()) for row in after]


EVERY = set(range(V))


def test_without_rules_every_token_is_allowed():
  assert allowed(Rules(stop=(3,)), written([[1], [2, 4]], [[5, 5], [6, 6]])) == [EVERY, EVERY]


def test_tokens_never_drawn():
  assert allowed(Rules(never=(2, 8)), written([[1]], [[]])) == [EVERY - {2, 8}]


def test_no_stop_before_the_least_number_of_tokens():
  rules = Rules(stop=(3, 4), least=2)
  for drawn in range(4):
    assert allowed(rules, written([[1, 2, 3]], [[5] * drawn])) == [EVERY - {3, 4} if drawn < 2 else EVERY]
  assert allowed(rules, written([[1, 2, 3]], [[5]], before=1)) == [EVERY]


def test_the_first_token_is_forced_after_a_prompt_of_one():
  given = written([[1], [2, 4]], [[], []])
  out = np.asarray(ruled(Rules(first=6), scores(2), given, jnp.asarray(6)))
  assert out[0, 6] == 0 and np.isinf(np.delete(out[0], 6)).all() and np.isfinite(out[1]).all()
  assert allowed(Rules(first=6), written([[1], [2, 4]], [[6], [6]])) == [EVERY, EVERY]


def test_the_last_token_is_forced_at_the_limit():
  for drawn in range(5):
    out = np.asarray(ruled(Rules(last=6), scores(1), written([[1]], [[5] * drawn]), jnp.asarray(5)))
    assert set(np.flatnonzero(np.isfinite(out[0]))) == ({6} if drawn == 4 else EVERY)


def test_renormalised_scores_sum_to_one():
  out = ruled(Rules(never=(2, 8), renormalize=True), scores(2), written([[1], [1]], [[], []]), jnp.asarray(6))
  np.testing.assert_allclose(np.exp(out).sum(1), 1, rtol=1e-6)
  assert (out[:, 2] == -np.inf).all()


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_no_run_of_tokens_occurs_twice(n):
  rng = np.random.default_rng(n)
  forbidden = 0
  for _ in range(30):
    prompts = [rng.integers(0, 3, rng.integers(1, 8)).tolist() for _ in range(3)]
    drawn = int(rng.integers(0, 6))
    texts = [rng.integers(0, 3, drawn).tolist() for _ in prompts]
    given = written(prompts, texts)
    history = jnp.concatenate([given.prompt, given.tokens], axis=1)
    out = np.asarray(no_repeat(scores(3), history, given.prompt.shape[1] + given.count, n))
    for row, prompt, text in zip(out, prompts, texts):
      whole = prompt + text
      runs = {tuple(whole[i : i + n]) for i in range(len(whole) - n + 1)}
      recent = whole[len(whole) - n + 1 :]
      banned = {token for token in range(V) if len(recent) == n - 1 and (*recent, token) in runs}
      assert set(np.flatnonzero(np.isinf(row))) == banned
      forbidden += len(banned)
  assert forbidden > 5


def test_read():
  marian = dict(bad_words_ids=[[8]], decoder_start_token_id=8, eos_token_id=0, forced_eos_token_id=0, pad_token_id=8, max_length=512, num_beams=4,
                renormalize_logits=True, transformers_version="5", bos_token_id=0)  # fmt: skip
  assert read(marian, "f", True) == Rules(stop=(0,), start=8, last=0, never=(8,), renormalize=True)
  bart = dict(eos_token_id=2, decoder_start_token_id=2, forced_bos_token_id=0, min_length=5, no_repeat_ngram_size=3, repetition_penalty=1.0, top_k=None)
  assert read(bart, "f", True) == Rules(stop=(2,), start=2, first=0, least=4, no_repeat=3)
  assert read(dict(eos_token_id=[1, 2], min_new_tokens=3), "f", False) == Rules(stop=(1, 2), least=3)
  assert read(dict(eos_token_id=1, bad_words_ids=[[1], [4]], suppress_tokens=[1]), "f", False) == Rules(stop=(1,), never=(1, 4))


@pytest.mark.parametrize("key, value", [("repetition_penalty", 1.2), ("bad_words_ids", [[1, 2]]), ("min_length", 4), ("begin_suppress_tokens", [3]),
                                        ("forced_bos_token_id", [1]), ("penalty_alpha", 0.6)])  # fmt: skip
def test_what_has_no_counterpart_is_refused(key, value):
  with pytest.raises(UserError, match=f"folder/generation.json.*'{key}'"):
    read({key: value}, "folder/generation.json", False)


def test_tokens_outside_the_vocabulary_are_refused():
  with pytest.raises(ValueError, match="'never'.*5 entries"):
    Rules(never=(1, 5)).check(5)
  with pytest.raises(ValueError, match="'start'"):
    Rules(start=-1).check(5)
