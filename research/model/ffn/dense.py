"""The position-wise feed-forward network (Vaswani et al. 2017, section 3.3), plain or gated (Shazeer 2020, GLU variants)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn

from research.core.types import Array
from research.model.inputs import Aux
from research.model.layers import ACTIVATIONS, Activation, Linear, constrain


@dataclasses.dataclass(frozen=True)
class Config:
  hidden: int | None = None  # inner width F; None: 4 · width, or 8/3 · width rounded up to a multiple of 8 where gated
  activation: Activation = "gelu_tanh"
  gated: bool = False  # activation(x W_gate) · (x W_up): with silu this is SwiGLU, with gelu GEGLU
  bias: bool = False  # biases on the projections


class Dense(nn.Module):
  cfg: Config
  width: int
  deviation: float
  out_deviation: float  # of the kernel that writes to the residual stream
  dtype: str
  param_dtype: str

  @nn.compact
  def __call__(self, x: Array, counts: Array | None) -> tuple[Array, dict[str, Aux]]:
    """[B, L, D] -> [B, L, D]; it has no losses of its own, so what a place counts in them is not looked at."""
    cfg = self.cfg
    hidden = cfg.hidden or (-(-self.width * 8 // 24) * 8 if cfg.gated else 4 * self.width)
    common = dict(bias=cfg.bias, dtype=self.dtype, param_dtype=self.param_dtype)
    act = ACTIVATIONS[cfg.activation]
    up = Linear((self.width,), (hidden,), ("embed", "mlp"), deviation=self.deviation, name="up", **common)(x)
    if cfg.gated:
      h = act(Linear((self.width,), (hidden,), ("embed", "mlp"), deviation=self.deviation, name="gate", **common)(x)) * up
    else:
      h = act(up)
    h = constrain(h, "batch", "length", "mlp")
    return Linear((hidden,), (self.width,), ("mlp", "embed"), deviation=self.out_deviation, name="down", **common)(h), {}


def make(cfg: Config, **kwargs) -> Dense:
  return Dense(cfg, **kwargs)
