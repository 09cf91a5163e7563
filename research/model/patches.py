"""Images as rows: square patches, each mapped to the width of the model (Dosovitskiy et al. 2021, ViT, section 3.1)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from research.core.types import Array
from research.model.layers import Linear


@dataclasses.dataclass(frozen=True)
class Config:
  height: int = 224  # pixels of an image
  width: int = 224
  patch: int = 16  # pixels of a side of a patch
  channels: int = 3
  class_token: bool = True  # a learned vector before the patches, place 0 of the row
  bias: bool = True  # of the map from pixels to the model's width

  def __post_init__(self):
    if self.height % self.patch or self.width % self.patch:
      raise ValueError(f"height {self.height} and width {self.width} must be multiples of patch {self.patch}")


class Patches(nn.Module):
  cfg: Config
  width: int
  deviation: float
  dtype: str
  param_dtype: str

  @property
  def image(self) -> tuple[int, int, int]:
    """Shape of an image: height, width, channels."""
    return self.cfg.height, self.cfg.width, self.cfg.channels

  @property
  def places(self) -> int:
    """Places of a row."""
    return (self.cfg.height // self.cfg.patch) * (self.cfg.width // self.cfg.patch) + self.cfg.class_token

  @nn.compact
  def __call__(self, images: Array) -> Array:
    """[B, height, width, channels] -> [B, L, D]: the class token, then the patches row by row."""
    p, (height, width, channels) = self.cfg.patch, self.image
    if images.shape[1:] != self.image:
      raise ValueError(f"images of shape {tuple(images.shape[1:])} do not fit model.patches, which takes {self.image}")
    x = images.reshape(-1, height // p, p, width // p, p, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(x.shape[0], -1, p, p, channels)
    x = Linear((p, p, channels), (self.width,), (None, None, None, "embed"), bias=self.cfg.bias, deviation=self.deviation,
               dtype=self.dtype, param_dtype=self.param_dtype, name="pixels")(x)  # fmt: skip
    if self.cfg.class_token:
      init = nn.with_logical_partitioning(nn.initializers.normal(self.deviation), ("embed",))
      first = self.param("class_token", init, (self.width,), self.param_dtype)
      x = jnp.concatenate([jnp.broadcast_to(first.astype(x.dtype), (x.shape[0], 1, self.width)), x], axis=1)
    return x


def make(cfg: Config, **kwargs) -> Patches:
  return Patches(cfg, **kwargs)
