"""Next-sentence prediction beside masked language modelling (Devlin et al. 2019, BERT, section 3.1): does the second text follow the first?

A row is a pair, joined as `[CLS] A [SEP] B [SEP]` by `data.pairs`, which also draws the pairs: the second text is the true next one or one of
another document; or, for sentence-order prediction (Lan et al. 2020, ALBERT, section 3.1), both are neighbours and may be swapped. One forward
pass serves both losses.

The class 0 is "follows", as in BERT's own files.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from research.core.config import Component, find
from research.core.config import make as make_component
from research.core.types import Field, Mean, Vocab
from research.model.inputs import HeadConfig, Inputs
from research.objectives.base import ROW_AXES, SEGMENTS_MEANING, Example, Objective, class_loss, join


@dataclasses.dataclass(frozen=True)
class Config:
  masked: Component = dataclasses.field(default_factory=lambda: find("objectives.masked_lm").Config())  # what hides tokens of the pair
  masked_factor: float = 1.0  # of the masked-LM loss in the sum
  factor: float = 1.0  # of the next-sentence loss


def make(cfg: Config, vocab: Vocab, length: int) -> Objective:
  def corrupt(key, row, step) -> Example:
    del key, step
    inputs = Inputs(row["tokens"], segments=row["segments"], types=row["types"], kind="full")
    there = (row["segments"][:1] > 0).astype(jnp.float32)
    return Example(inputs, {"nsp": 1 - row["is_next"][None]}, {"nsp": there}, {"nsp": jnp.zeros((1,), jnp.int32)})

  def loss(apply, params, example, key, train):
    output = apply(params, example.inputs, read={"nsp": example.positions["nsp"]}, key=key, train=train)
    weights = example.weights["nsp"]
    total, _, correct = class_loss(output.heads["nsp"], example.targets["nsp"], weights)
    return {"nsp": Mean(total, jnp.sum(weights))}, {"next_sentence_accuracy": Mean.of(correct, weights)}

  whole_row = lambda meaning: Field((length,), "int32", ROW_AXES, meaning)
  pair = Objective(
      element_spec={
          "tokens": whole_row("the two texts and the special tokens around them"),
          "segments": whole_row(SEGMENTS_MEANING),
          "types": whole_row("0 for the first text, 1 for the second"),
          "is_next": Field((), "int32", (), "1 where the second text follows the first"),
      },
      heads={"nsp": HeadConfig(kind="vector", pool="first", transform=True, activation="tanh", outputs=2, bias=True)},  # BERT's pooler and classes
      corrupt=corrupt,
      loss=loss,
      factors={"nsp": cfg.factor},
  )
  masked = make_component(cfg.masked, vocab, length)
  return join(masked, pair, factors={**dict.fromkeys(masked.factors, cfg.masked_factor), "nsp": cfg.factor})
