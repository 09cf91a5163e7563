"""What a published model of images subtracts from pixels and divides them by: preprocessor_config.json.

How an image comes to the model's size is `data.images`' own: scaled to cover it, cut at the sides that stand out, as CLIP does it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from research.hf import files
from research.hf.config import HfConfig

PROCESSOR = "preprocessor_config.json"


def applied(folder: str, keys: Mapping[str, Any]) -> dict[str, Any]:
  """An objective's keys with the folder's mean and deviation, where it tells them and the objective reads images; else as they are.

  Raises:
    UserError: the file is broken, or scales pixels otherwise than to [0, 1].
  """
  if "pixels" in keys:
    return {**keys, "pixels": applied(folder, keys["pixels"])}
  path = os.path.join(folder, PROCESSOR)
  if "deviation" not in keys or not os.path.isfile(path):
    return dict(keys)
  hf = HfConfig(files.read_json(path, "fetch it again, or delete it to take the values that the family has by default"), f"'{path}'")
  hf.only("do_rescale", True)
  factor = hf("rescale_factor", 1 / 255)
  if abs(factor * 255 - 1) > 1e-4:
    raise hf.unsupported("rescale_factor", factor, "it must be 1/255, which brings pixels to [0, 1]")
  if not hf("do_normalize", True):
    return {**keys, "mean": (0.0,) * keys["channels"], "deviation": (1.0,) * keys["channels"]}
  named = {"mean": "image_mean", "deviation": "image_std"}
  return {**keys, **{ours: tuple(map(float, hf(theirs, list(keys[ours])))) for ours, theirs in named.items()}}
