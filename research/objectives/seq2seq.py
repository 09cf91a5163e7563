"""Sequence to sequence: an encoder reads the source, a decoder predicts each token of the target from those before it and the source
(Sutskever et al. 2014; Vaswani et al. 2017, section 3.1).

The decoder reads the start token and then the target without its last token (teacher forcing). A row holds one pair, or several whose documents
have the same segment in source and target.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from research.core.errors import UserError, nearest
from research.core.types import Field, Vocab
from research.model.inputs import Inputs, positions_within
from research.objectives import next_token
from research.objectives.base import ROW_AXES, SEGMENTS_MEANING, Example, Objective


@dataclasses.dataclass(frozen=True)
class Config(next_token.NextToken):
  start: str = "bos"  # the special token that the decoder reads first: pad for T5 and Marian, eos for BART
  source_length: int | None = None  # tokens of a source; None: as many as of a target, data.length

  def __post_init__(self):
    super().__post_init__()
    if self.source_length is not None and self.source_length < 2:
      raise ValueError(f"source_length must be at least 2; got {self.source_length}")


def make(cfg: Config, vocab: Vocab, length: int) -> Objective:
  if cfg.start not in vocab.special:
    raise UserError(f"objective.start is '{cfg.start}', which is no special token of the vocabulary.{nearest(cfg.start, vocab.special)}")
  start, byte_length = int(vocab.special[cfg.start]), jnp.asarray(vocab.byte_length)
  source_length = cfg.source_length or length

  def corrupt(key, row, step) -> Example:
    del key, step
    tokens, segments = row["tokens"], row["segments"]
    follows = jnp.concatenate([jnp.zeros((1,), bool), segments[1:] == segments[:-1]])  # the others begin a document
    before = jnp.concatenate([tokens[:1], tokens[:-1]])
    source = Inputs(row["source"], positions=positions_within(row["source_segments"]), segments=row["source_segments"], kind="full")
    inputs = Inputs(jnp.where(follows, before, start), positions=positions_within(segments), segments=segments, source=source, kind="causal")
    return Example(inputs, {"lm": tokens}, {"lm": (segments > 0).astype(jnp.float32)}, {})

  def loss(apply, params, example, key, train):
    return cfg.loss(apply, params, example, key, train, byte_length)

  def logprob(apply, params, rows, key):
    del key
    return next_token.logprob(apply, params, jax.vmap(lambda row: corrupt(None, row, 0))(rows))

  return Objective(
      element_spec={
          "tokens": Field((length,), "int32", ROW_AXES, "the target, with its end-of-text token"),
          "segments": Field((length,), "int32", ROW_AXES, SEGMENTS_MEANING),
          "source": Field((source_length,), "int32", ROW_AXES, "the source"),
          "source_segments": Field((source_length,), "int32", ROW_AXES, "the source's segments: a target sees the source of its own"),
      },
      heads=cfg.heads,
      corrupt=corrupt,
      loss=loss,
      factors={"lm": 1.0},
      logprob=logprob,
      causal=True,
      start=start,
  )
