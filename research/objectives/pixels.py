"""How the bytes of an image become what a model of patches reads: cropped, mirrored, brought to a common scale.

Crop and flip are drawn inside the step for each row; in evaluation they are the same each time.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from research.core.types import Array, Field


@dataclasses.dataclass(frozen=True)
class Pixels:
  """Keys of an objective that reads images."""

  height: int = 48  # pixels of an image as the model sees it, those of its patches
  width: int = 48
  channels: int = 3
  crop: int = 0  # rows and columns that a random crop takes off; the data delivers images that much larger
  flip: bool = False  # half of the images are mirrored left to right
  mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # of each channel, for pixels in [0, 1]
  deviation: tuple[float, ...] = (0.5, 0.5, 0.5)

  def __post_init__(self):
    if len(self.mean) != self.channels or len(self.deviation) != self.channels:
      raise ValueError(f"mean and deviation need a number for each of the {self.channels} channels; got {self.mean} and {self.deviation}")
    if self.crop < 0:
      raise ValueError(f"crop must be at least 0; got {self.crop}")

  def field(self) -> Field:
    """What the data delivers."""
    return Field((self.height + self.crop, self.width + self.crop, self.channels), "uint8", (None, None, None), "the image")

  def seen(self, key: Array, pixels: Array) -> Array:
    """One image, uint8 [height + crop, width + crop, channels] -> float32 [height, width, channels]."""
    key_crop, key_flip = jax.random.split(key)
    if self.crop:
      top, left = jax.random.randint(key_crop, (2,), 0, self.crop + 1)
      pixels = jax.lax.dynamic_slice(pixels, (top, left, 0), (self.height, self.width, self.channels))
    if self.flip:
      pixels = jnp.where(jax.random.bernoulli(key_flip), pixels[:, ::-1], pixels)
    return (pixels.astype(jnp.float32) / 255 - jnp.array(self.mean, jnp.float32)) / jnp.array(self.deviation, jnp.float32)
