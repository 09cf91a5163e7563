"""Scaled dot-product attention behind one function, and which kernel computes it.

| kernel | where | what it does not honour |
| --- | --- | --- |
| xla | anywhere | nothing: the plain reference; scores of a layer are in memory |
| chunked | anywhere | nothing; memory grows with the length, not with its square |
| cudnn | NVIDIA GPUs | float32; a bias of the scores; dropout of the probabilities; places spread over devices; masks of runs side by side |
| splash | TPUs | a bias; dropout; a window; orders |

`auto` takes the platform's own kernel where it honours the call; else chunked where the places of a row are spread over devices and no dropout is
drawn (its draws are other than xla's, and a loss must not depend on the mesh); else xla.
"""

from __future__ import annotations

from typing import Literal

from research.core.errors import UserError
from research.core.types import Array
from research.model.attention.kernels import chunked, cudnn, splash, xla
from research.model.attention.kernels.base import Call, Drop
from research.model.inputs import Sight
from research.model.layers import constrain, parts, platform, side_by_side

Kernel = Literal["auto", "xla", "chunked", "cudnn", "splash"]
KERNELS = {"xla": xla, "chunked": chunked, "cudnn": cudnn, "splash": splash}
FUSED = {"gpu": "cudnn", "tpu": "splash"}


def attend(q: Array, k: Array, v: Array, sight: Sight, *, scale: float, bias: Array | None = None, window: int | None = None,
           drop: Drop | None = None, kernel: Kernel = "auto", binding: bool = True) -> Array:  # fmt: skip
  """softmax(scale · q kᵀ + bias) v over the keys that each query sees (Vaswani et al. 2017, section 3.2.1).

  Where the places of a row are spread over devices, queries stay where they are and keys and values are gathered (Llama Team 2024, "The Llama 3
  herd of models", section 3.3.2).

  Args:
    q: [B, L, H, d].
    k, v: [B, K, G, d] with H a multiple of G: query head h reads key head h // (H/G).
    sight: the visibility rule's vectors.
    scale: factor of the scores, usually 1/√d.
    bias: [B or 1, H, L, K], added to the scaled scores.
    window: a query sees keys less than this many positions away.
    drop: of the probabilities.
    kernel: which one computes it.
    binding: a kernel that cannot honour the call is an error; otherwise `auto` chooses.

  Returns:
    [B, L, H, d]; zero for a query that sees nothing. The softmax is taken in at least float32.

  Raises:
    UserError: the kernel that is asked for cannot honour the call.
  """
  split = parts("length") > 1 and q.shape[1] % parts("length") == 0
  call = Call(platform(), q.dtype.name, q.shape[1], k.shape[1], q.shape[3], sight.kind, sight.q_segments is not None, window is not None,
              bias is not None, drop is not None, split, side_by_side())  # fmt: skip
  if split:
    # Projected where they are, then gathered: without the first constraint every device would project the whole row.
    spread = lambda x, length: constrain(x, "batch", length, "kv_heads", "head_dim")
    k, v = (spread(spread(x, "length"), "kv_length") for x in (k, v))
  chosen = KERNELS[choose(kernel, call, binding)]
  return chosen.attend(q, k, v, sight, scale=scale, bias=bias, window=window, drop=drop, split=split)


def choose(kernel: Kernel, call: Call, binding: bool = True) -> str:
  """The name of the kernel that computes the call."""
  if kernel != "auto":
    lacking = KERNELS[kernel].refuses(call)
    if lacking is None:
      return kernel
    if binding:
      raise UserError(f"model.attention.kernel '{kernel}' {lacking}: set it to 'auto', which takes '{choose('auto', call)}' for this.")
  fused = FUSED.get(call.platform)
  if fused is not None and KERNELS[fused].refuses(call) is None:
    return fused
  return "chunked" if call.split and not call.dropout else "xla"
