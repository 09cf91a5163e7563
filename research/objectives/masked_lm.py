"""Masked language modelling: hide some tokens, predict them from both sides (Devlin et al. 2019, BERT, section 3.1).

Exactly round(mask_rate · tokens) places of a row are chosen; each becomes the mask token, a random token, or stays as it is. Only these
places reach the head. Unlike BERT's files, the places are drawn anew each time a row comes round (RoBERTa's dynamic masking).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from research.core.types import Field, Mean, Vocab
from research.model.inputs import HeadConfig, Inputs, positions_within
from research.objectives.base import ROW_AXES, SEGMENTS_MEANING, Example, Objective, choose, token_metrics
from research.objectives.cross_entropy import token_loss


@dataclasses.dataclass(frozen=True)
class Config:
  mask_rate: float = 0.15  # share of a row's tokens that are predicted
  random_rate: float = 0.1  # share of these that become a random token
  keep_rate: float = 0.1  # share of these that stay; the rest becomes the mask token
  head_transform: bool = True  # dense, gelu and norm before the scores, as in BERT
  head_bias: bool = True  # a bias for each vocabulary entry

  def __post_init__(self):
    if not 0 < self.mask_rate <= 1:
      raise ValueError(f"mask_rate must lie in (0, 1]; got {self.mask_rate}")
    if self.random_rate < 0 or self.keep_rate < 0 or self.random_rate + self.keep_rate > 1:
      raise ValueError(f"random_rate and keep_rate must be shares with a sum of at most 1; got {self.random_rate} and {self.keep_rate}")


def make(cfg: Config, vocab: Vocab, length: int) -> Objective:
  byte_length = jnp.asarray(vocab.byte_length)
  plain = jnp.asarray(vocab.plain)
  special = jnp.zeros((vocab.size,), bool).at[jnp.array(sorted(vocab.special.values()))].set(True)
  slots = max(1, round(cfg.mask_rate * length))

  def corrupt(key, row, step) -> Example:
    del step
    tokens, segments = row["tokens"], row["segments"]
    key_places, key_fate, key_random = jax.random.split(key, 3)
    candidates = (segments > 0) & ~special[tokens]
    count = jnp.maximum(1, jnp.round(cfg.mask_rate * jnp.sum(candidates)).astype(jnp.int32))
    places, chosen = choose(key_places, candidates, count, slots)
    targets = tokens[places]
    fate = jax.random.uniform(key_fate, (slots,))
    other = plain[jax.random.randint(key_random, (slots,), 0, plain.shape[0])]
    shown = jnp.where(fate < cfg.random_rate, other, jnp.where(fate < cfg.random_rate + cfg.keep_rate, targets, vocab.special["mask"]))
    hidden = tokens.at[jnp.where(chosen, places, length)].set(shown, mode="drop")
    inputs = Inputs(hidden, positions=positions_within(segments), segments=segments, kind="full")
    return Example(inputs, {"mlm": targets}, {"mlm": chosen.astype(jnp.float32)}, {"mlm": places})

  def loss(apply, params, example, key, train):
    output = apply(params, example.inputs, read={"mlm": example.positions["mlm"]}, key=key, train=train)
    targets, weights = example.targets["mlm"], example.weights["mlm"]
    total, nll, correct = token_loss(output.heads["mlm"], targets, weights)
    metrics = token_metrics(nll, correct, targets, weights, byte_length)
    del metrics["bits_per_byte"]  # a masked token's loss is no code length of the text
    return {"mlm": Mean(total, jnp.sum(weights))}, metrics

  return Objective(
      element_spec={
          "tokens": Field((length,), "int32", ROW_AXES, "the text"),
          "segments": Field((length,), "int32", ROW_AXES, SEGMENTS_MEANING),
      },
      heads={"mlm": HeadConfig(transform=cfg.head_transform, bias=cfg.head_bias)},
      corrupt=corrupt,
      loss=loss,
      factors={"mlm": 1.0},
  )
