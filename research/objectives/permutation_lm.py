"""Permutation language modelling: predict tokens in a random order, each from those before it in that order (Yang et al. 2019, XLNet).

Two streams: the content stream reads the tokens, a query of the second stream knows a place and what comes before it in the order, not its
token; the head reads queries alone. Only the last 1/K of the order are predicted (section 2.3). As in XLNet's code the tokens before these,
the context, all see each other: they have the lowest order, and nobody asks in which order they came. Special tokens are always context.

Targets are spans of 1 to `span` neighbouring tokens, as XLNet's data code draws them, and each is predicted at a place of its own in the order.
With `recurrence` a row is cut into parts that run in turn, each seeing the hidden states of the part before (Transformer-XL, section 3.2),
and with `bidirectional` half of the rows begin with their last part: XLNet's two directions of reading. A token keeps its position, so
that without recurrence a row read backwards is the same row.

Ours differs from XLNet's in that a row has no token types and that a memory is never carried from one row to the next.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from research.core.errors import UserError
from research.core.types import Array, Field, Mean, Vocab
from research.model.inputs import HeadConfig, Inputs, Past, positions_within
from research.objectives import spans
from research.objectives.base import ROW_AXES, SEGMENTS_MEANING, Example, Objective, choose, token_metrics
from research.objectives.cross_entropy import TokenLoss, token_loss


@dataclasses.dataclass(frozen=True)
class Config:
  predict: int = 6  # K: 1/K of a row's tokens are predicted (XLNet: 6 or 7); 1: all of them
  span: int = 5  # tokens of the longest span of targets, n of them with probability ∝ 1/n; 1: tokens drawn one by one
  recurrence: int = 1  # parts that a row is cut into, each seeing the hidden states of the one before; 1: none; for relative positions
  bidirectional: bool = False  # half of the rows, drawn anew each time, are read from their end
  score_order: Literal["left_to_right", "drawn"] = "left_to_right"  # the order in which a text's log-probability is taken
  score_orders: int = 1  # drawn orders over which it is averaged
  head_bias: bool = True  # a bias for each vocabulary entry

  def __post_init__(self):
    for key in ("predict", "span", "recurrence", "score_orders"):
      if getattr(self, key) < 1:
        raise ValueError(f"{key} must be at least 1; got {getattr(self, key)}")
    if self.score_order == "left_to_right" and self.score_orders > 1:
      raise ValueError(f"score_orders={self.score_orders} asks for drawn orders: set score_order to 'drawn'")


def make(cfg: Config, vocab: Vocab, length: int) -> Objective:
  if length % cfg.recurrence:
    raise UserError(f"a row of {length} tokens cannot be cut into objective.recurrence={cfg.recurrence} equal parts: take a divisor of data.length.")
  byte_length = jnp.asarray(vocab.byte_length)
  read = spans.Reader(vocab)
  parts, part = cfg.recurrence, length // cfg.recurrence
  few = max(1, round(part / cfg.predict))  # targets of a part, at most

  def drawn_targets(key, words: spans.Text) -> Array:
    """Which places of a part are predicted, bool [part]: exactly max(1, round(tokens / K)) where there are tokens."""
    key_spans, key_rest = jax.random.split(key)
    count = jnp.clip(jnp.round(jnp.sum(words.text) / cfg.predict).astype(jnp.int32), 1, few)
    found = jnp.zeros_like(words.text)
    if cfg.span > 1:
      found = spans.spaced(key_spans, words, count, cfg.span, cfg.predict)
    places, chosen = choose(key_rest, words.text & ~found, count - jnp.sum(found), few)
    return found.at[jnp.where(chosen, places, part)].set(True, mode="drop")

  def arranged(tokens, segments, targets, rank, slots: int, backwards) -> Example:
    """The row with these targets, bool [parts, part], in ascending order of `rank` [parts, part] within each part."""
    place_in_order = jnp.argsort(jnp.argsort(jnp.where(targets, rank, jnp.inf), axis=-1), axis=-1).astype(jnp.int32)
    order = jnp.where(targets, 1 + place_in_order, 0)
    queries, chosen = jax.vmap(lambda targets: spans.listed(targets, slots))(targets)
    queries = queries + part * jnp.arange(parts)[:, None]
    positions = positions_within(segments)
    if parts > 1:  # distances between two documents stay below the number of keys, as relative positions need
      positions = jnp.arange(length, dtype=jnp.int32)
    turned = lambda x: jnp.where(backwards, jnp.flip(x), x)
    tokens, segments, positions, order, chosen = map(turned, (tokens, segments, positions, order, chosen))
    queries = jnp.where(backwards, length - 1 - jnp.flip(queries), queries)
    # A part sees all of the part before it, so its orders follow that one's.
    order = order + (part + 1) * jnp.arange(parts, dtype=jnp.int32)[:, None]
    queries, chosen = queries.reshape(-1), chosen.reshape(-1)
    inputs = Inputs(tokens, positions=positions, segments=segments, order=order.reshape(-1), queries=queries, kind="ordered")
    return Example(inputs, {"lm": tokens[queries]}, {"lm": chosen.astype(jnp.float32)}, {"lm": queries})

  def in_parts(x):
    return jax.tree.map(lambda x: x.reshape(parts, part), x)

  def corrupt(key, row, step) -> Example:
    del step
    key_targets, key_order, key_direction = jax.random.split(key, 3)
    words = jax.vmap(read)(*in_parts((row["tokens"], row["segments"])))
    targets = jax.vmap(drawn_targets)(jax.random.split(key_targets, parts), words)
    rank = jax.random.uniform(key_order, (parts, part))
    backwards = cfg.bidirectional & jax.random.bernoulli(key_direction)
    return arranged(row["tokens"], row["segments"], targets, rank, few, backwards)

  def ordered(key, row) -> Example:
    """The row with all of its text as targets, in the order of scoring."""
    targets = jax.vmap(read)(*in_parts((row["tokens"], row["segments"]))).text
    rank = jnp.broadcast_to(jnp.arange(part, dtype=jnp.float32), (parts, part))
    if cfg.score_order == "drawn":
      rank = jax.random.uniform(key, (parts, part))
    return arranged(row["tokens"], row["segments"], targets, rank, part, False)

  def scores(apply, params, example: Example, key, train) -> TokenLoss:
    """The loss of the queries, part after part."""
    inputs, targets, weights = example.inputs, example.targets["lm"], example.weights["lm"]
    B, P = inputs.tokens.shape[0], targets.shape[1] // parts
    asked = jnp.broadcast_to(part + jnp.arange(P, dtype=jnp.int32), (B, P))  # queries follow the tokens
    past, found = None, []
    if parts > 1:
      past = Past(None, jnp.zeros((B, 0), jnp.int32), jnp.zeros((B, 0), jnp.int32))
    for i in range(parts):
      here, slots = slice(i * part, (i + 1) * part), slice(i * P, (i + 1) * P)
      of = lambda x: x[:, here]
      piece = inputs.replace(tokens=of(inputs.tokens), positions=of(inputs.positions), segments=of(inputs.segments), order=of(inputs.order),
                             queries=inputs.queries[:, slots] - i * part)  # fmt: skip
      own = key if key is None or parts == 1 else jax.random.fold_in(key, i)
      output = apply(params, piece, read={"lm": asked}, past=past, key=own, train=train)
      found.append(token_loss(output.heads["lm"], targets[:, slots], weights[:, slots]))
      past = None if parts == 1 else Past(output.past, piece.positions, piece.segments)
    joined = lambda arrays: jnp.concatenate(arrays, axis=1)
    return TokenLoss(sum(loss.total for loss in found), joined([loss.nll for loss in found]), joined([loss.correct for loss in found]))

  def loss(apply, params, example, key, train):
    targets, weights = example.targets["lm"], example.weights["lm"]
    total, nll, correct = scores(apply, params, example, key, train)
    metrics = token_metrics(nll, correct, targets, weights, byte_length)
    del metrics["bits_per_byte"]  # the context is given, so it is no code length of the text
    return {"lm": Mean(total, jnp.sum(weights))}, metrics

  def logprob(apply, params, rows, key):
    """Of all tokens but special ones: exact in the order of scoring; the mean over `score_orders` orders, which all rows share."""

    def once(key):
      example = jax.vmap(lambda row: ordered(key, row))(rows)
      return -jnp.sum(scores(apply, params, example, None, False).nll * example.weights["lm"], axis=-1)

    return jnp.mean(jax.lax.map(once, jax.random.split(key, cfg.score_orders)), axis=0)

  def scored(rows):
    return rows["tokens"], jax.vmap(read)(rows["tokens"], rows["segments"]).text.astype(jnp.float32)

  return Objective(
      element_spec={
          "tokens": Field((length,), "int32", ROW_AXES, "the text"),
          "segments": Field((length,), "int32", ROW_AXES, SEGMENTS_MEANING),
      },
      heads={"lm": HeadConfig(bias=cfg.head_bias)},
      corrupt=corrupt,
      loss=loss,
      factors={"lm": 1.0},
      logprob=logprob,
      scored=scored,
  )
