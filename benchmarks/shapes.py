"""The models that the benchmarks train and decode with, said once for both sides, and the arithmetic that a step of each takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Shape:
  """A Transformer with learned positions, biases everywhere, layer norm and a tied head.

  decoder: GPT-2's arrangement (pre-norm, tanh gelu), trained to predict the next token.
  masked_lm: BERT's (post-norm, exact gelu, token types, a transform and a bias before the scores), trained to fill in masked tokens.
  """

  kind: Literal["decoder", "masked_lm"]
  vocab: int
  layers: int
  width: int
  heads: int
  length: int
  batch: int
  mask_rate: float = 0.15  # masked_lm: share of the tokens that are predicted

  @property
  def tokens(self) -> int:
    """Tokens of a batch."""
    return self.batch * self.length

  @property
  def places(self) -> int:
    """Predicted tokens of a row."""
    return round(self.mask_rate * self.length) if self.kind == "masked_lm" else self.length

  def flops(self, scored: int) -> float:
    """Model FLOPs of a training step that computes scores at `scored` places of each row.

    Matrix products only, the backward pass twice the forward; attention counted in full, not as its causal half (Chowdhery et al. 2022,
    PaLM, appendix B).
    """
    D, L = self.width, self.length
    block = 2 * (4 * D * D + 8 * D * D) + 4 * L * D  # forward, for each token: projections and FFN of width 4·D; scores and their use
    head = 2 * (self.vocab * D + (D * D if self.kind == "masked_lm" else 0))
    return 3.0 * self.batch * (L * self.layers * block + scored * head)


SHAPES = {
    "decoder_50304": Shape("decoder", 50304, layers=6, width=384, heads=6, length=256, batch=8),
    "decoder_96": Shape("decoder", 96, layers=6, width=384, heads=6, length=256, batch=8),
    "masked_lm": Shape("masked_lm", 30522, layers=4, width=256, heads=4, length=128, batch=32),
}
