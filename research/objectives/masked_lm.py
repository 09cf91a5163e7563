"""Masked language modelling: hide some tokens, predict them from both sides (Devlin et al. 2019, BERT, section 3.1).

A share `mask_rate` of a row's tokens is chosen; each becomes the mask token, a random token, or stays as it is. Only these places reach the
head. Unlike BERT's files, the places are drawn anew each time a row comes round (RoBERTa's dynamic masking).

What is chosen at once, `unit` says; the rate is always one of tokens:

  token   each by itself
  word    whole words, as BERT's second release has them; a word that would exceed the number is left out
  span    SpanBERT (Joshi et al. 2020, section 3.1): 1 to `span_max` words, geometric in length; mask, random or kept is drawn once a span
  ngram   ALBERT (Lan et al. 2020, section 3.1): 1 to `ngram_max` words with probability ∝ 1/n

The score of a text is its pseudo-log-likelihood (Salazar et al. 2020): each token's log-probability with that token hidden, and with it the
later tokens of its word, which would give it away (Kauf and Ivanova 2023, "within_word_l2r").
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from research.core.types import Field, Mean, Vocab
from research.model.inputs import HeadConfig, Inputs, positions_within
from research.objectives import spans
from research.objectives.base import ROW_AXES, SEGMENTS_MEANING, Example, Objective, choose, token_metrics
from research.objectives.cross_entropy import token_loss


@dataclasses.dataclass(frozen=True)
class Config:
  mask_rate: float = 0.15  # share of a row's tokens that are predicted; with a schedule, at its start
  final_mask_rate: float | None = None  # that share from step mask_rate_steps on, approached linearly; None: mask_rate all the time
  mask_rate_steps: int = 0  # steps of the schedule
  unit: Literal["token", "word", "span", "ngram"] = "token"  # what is chosen at once
  span_p: float = 0.2  # of the geometric distribution of a span's words
  span_max: int = 10  # words of the longest span
  ngram_max: int = 3  # words of the longest n-gram
  count: Literal["exact", "bernoulli"] = "exact"  # round(rate · tokens) of each row; or as many as if each token were drawn by itself
  slack: float = 4.0  # bernoulli: slots beyond the expected number, in standard deviations; what exceeds them stays, and is counted as 'overflow'
  random_rate: float = 0.1  # share of the chosen tokens that become a random token
  keep_rate: float = 0.1  # share of these that stay; the rest becomes the mask token
  head_transform: bool = True  # dense, activation and norm before the scores, as in BERT
  activation: str = "gelu"  # of the transform
  head_bias: bool = True  # a bias for each vocabulary entry

  def __post_init__(self):
    for key, rate in (("mask_rate", self.mask_rate), ("final_mask_rate", self.final_mask_rate)):
      if rate is not None and not 0 < rate <= 1:
        raise ValueError(f"{key} must lie in (0, 1]; got {rate}")
    if (self.final_mask_rate is None) != (self.mask_rate_steps == 0) or self.mask_rate_steps < 0:
      raise ValueError(f"a schedule of the mask rate needs both final_mask_rate and mask_rate_steps > 0; got {self.final_mask_rate} and {self.mask_rate_steps}")
    if self.random_rate < 0 or self.keep_rate < 0 or self.random_rate + self.keep_rate > 1:
      raise ValueError(f"random_rate and keep_rate must be shares with a sum of at most 1; got {self.random_rate} and {self.keep_rate}")
    if not 0 < self.span_p < 1 or self.span_max < 1 or self.ngram_max < 1 or self.slack < 0:
      raise ValueError("span_p must lie in (0, 1), span_max and ngram_max must be at least 1 and slack at least 0; got "
                       f"{self.span_p}, {self.span_max}, {self.ngram_max} and {self.slack}")  # fmt: skip


def make(cfg: Config, vocab: Vocab, length: int) -> Objective:
  byte_length = jnp.asarray(vocab.byte_length)
  plain = jnp.asarray(vocab.plain)
  read = spans.Reader(vocab)
  last_rate = cfg.mask_rate if cfg.final_mask_rate is None else cfg.final_mask_rate
  slots = number_of_slots(cfg, max(cfg.mask_rate, last_rate), length)
  lengths = {"word": (1.0,), "span": spans.geometric(cfg.span_p, cfg.span_max), "ngram": spans.harmonic(cfg.ngram_max)}.get(cfg.unit)

  def rate(step):
    if cfg.final_mask_rate is None:
      return cfg.mask_rate
    return cfg.mask_rate + (last_rate - cfg.mask_rate) * jnp.clip(step / cfg.mask_rate_steps, 0, 1)

  def corrupt(key, row, step) -> Example:
    tokens, segments = row["tokens"], row["segments"]
    key_places, key_fate, key_random = jax.random.split(key, 3)
    words = read(tokens, segments)
    if cfg.count == "exact":
      count = jnp.maximum(1, jnp.round(rate(step) * jnp.sum(words.text)).astype(jnp.int32))
    else:
      count = jnp.sum(words.text & (jax.random.uniform(jax.random.fold_in(key, 3), (length,)) < rate(step)))
    overflow = jnp.maximum(count - slots, 0)
    fate = jax.random.uniform(key_fate, (slots,))
    if cfg.unit == "token":
      places, chosen = choose(key_places, words.text, count, slots)
    else:
      owner = spans.spans(key_places, words, jnp.minimum(count, slots), lengths, cut=cfg.unit == "span")
      places, chosen = spans.listed(owner >= 0, slots)
      if cfg.unit == "span":
        fate = jax.random.uniform(key_fate, (length,))[owner[places]]
    targets = tokens[places]
    other = plain[jax.random.randint(key_random, (slots,), 0, plain.shape[0])]
    shown = jnp.where(fate < cfg.random_rate, other, jnp.where(fate < cfg.random_rate + cfg.keep_rate, targets, vocab.special["mask"]))
    hidden = tokens.at[jnp.where(chosen, places, length)].set(shown, mode="drop")
    inputs = Inputs(hidden, positions=positions_within(segments), segments=segments, kind="full")
    counts = {"asked": count, "overflow": overflow} if cfg.count == "bernoulli" else {}
    return Example(inputs, {"mlm": targets}, {"mlm": chosen.astype(jnp.float32)}, {"mlm": places}, counts)

  def loss(apply, params, example, key, train):
    output = apply(params, example.inputs, read={"mlm": example.positions["mlm"]}, key=key, train=train)
    targets, weights = example.targets["mlm"], example.weights["mlm"]
    total, nll, correct = token_loss(output.heads["mlm"], targets, weights)
    metrics = token_metrics(nll, correct, targets, weights, byte_length)
    del metrics["bits_per_byte"]  # a masked token's loss is no code length of the text
    if cfg.count == "bernoulli":
      rows = jnp.any(weights > 0, axis=-1)
      metrics["overflow"] = Mean(jnp.sum(example.counts["overflow"] * rows * 1.0), jnp.sum(example.counts["asked"] * rows * 1.0))
    return {"mlm": Mean(total, jnp.sum(weights))}, metrics

  def logprob(apply, params, rows, key):
    """Pseudo-log-likelihood, one forward pass over all rows for each place."""
    del key
    tokens, segments = rows["tokens"], rows["segments"]
    words = jax.vmap(read)(tokens, segments)
    inputs = Inputs(tokens, positions=positions_within(segments), segments=segments, kind="full")

    def at(place):
      own = lambda x: jax.lax.dynamic_slice_in_dim(x, place, 1, axis=1)
      hidden = words.text & (words.word == own(words.word)) & (jnp.arange(length) >= place)
      masked = inputs.replace(tokens=jnp.where(hidden, vocab.special["mask"], tokens))
      output = apply(params, masked, read={"mlm": jnp.full((tokens.shape[0], 1), place)})
      return token_loss(output.heads["mlm"], own(tokens), own(words.text).astype(jnp.float32)).nll[:, 0]

    nll = jax.lax.map(at, jnp.arange(length))
    return -jnp.sum(nll.T * words.text, axis=-1)

  def scored(rows):
    return rows["tokens"], jax.vmap(read)(rows["tokens"], rows["segments"]).text.astype(jnp.float32)

  return Objective(
      element_spec={
          "tokens": Field((length,), "int32", ROW_AXES, "the text"),
          "segments": Field((length,), "int32", ROW_AXES, SEGMENTS_MEANING),
      },
      heads={"mlm": HeadConfig(transform=cfg.head_transform, activation=cfg.activation, bias=cfg.head_bias)},
      corrupt=corrupt,
      loss=loss,
      factors={"mlm": 1.0},
      logprob=logprob,
      scored=scored,
      pseudo=True,
  )


def number_of_slots(cfg: Config, rate: float, length: int) -> int:
  """Places of a row that can be predicted: enough for the highest rate of the schedule."""
  expected = rate * length
  if cfg.count == "exact":
    return max(1, round(expected))
  return max(1, min(length, math.ceil(expected + cfg.slack * math.sqrt(expected * (1 - rate)))))
