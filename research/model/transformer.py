"""The Transformer: an encoder, a decoder, or both; which one it is, the inputs say.

A single stack is an encoder when its rows see in both directions and a decoder when they see only the past: the weights are the same,
`Inputs.kind` differs. With `encoder_layers` a second stack reads `Inputs.source`, and the first attends to it.

`make` gives the module, `init` its parameters with their logical axes, `bind` the pure function that objectives receive.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from research.core.config import Component
from research.core.config import make as make_component
from research.core.types import Array, PyTree
from research.model import cache as caches
from research.model.attention import grouped
from research.model.block import Block, NormPlace
from research.model.embed import Embed
from research.model.ffn import dense
from research.model.heads import HEADS
from research.model.inputs import HeadConfig, Inputs, Output, Sight, cross_sight, self_sight
from research.model.layers import Dropout, Norm, Normalize, constrain
from research.model.position import rotary


@dataclasses.dataclass(frozen=True)
class Config:
  layers: int = 6  # blocks of the stack that the heads read
  encoder_layers: int = 0  # blocks of a separate encoder, which reads the source; 0: a single stack
  width: int = 384  # of the residual stream
  attention: Component = grouped.Config()
  ffn: Component = dense.Config()
  position: Component = rotary.Config()
  norm: Norm = "rms"
  norm_place: NormPlace = "pre"  # before each sublayer, with one more norm at the end; or after each residual sum
  norm_bias: bool = False  # a bias in layer norms
  epsilon: float = 1e-6  # inside the norms' square root
  embed_norm: bool = False  # a norm right after the embeddings (BERT)
  embed_scale: bool = False  # embeddings times √width (Vaswani et al. 2017, section 3.4)
  token_types: int = 0  # entries of the token-type embedding (BERT: 2); 0: none
  tie_head: bool = True  # token heads read the embedding's table
  dropout: float = 0.0  # on the embeddings and on every sublayer's output
  deviation: float = 0.02  # of the normal that kernels and embeddings are drawn from
  residual_init: Literal["scaled", "same", "zero"] = "scaled"  # kernels that write to the residual stream: deviation/√(2·layers) (GPT-2), the same, zero
  scan: bool = False  # one compiled block run over stacked parameters: fast compilation for deep models, 4–9 % slower on a CPU
  remat: Literal["none", "dots", "full"] = "none"  # what the backward pass recomputes: nothing; all but matmul results; everything inside a block
  dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # of activations and matmuls
  param_dtype: Literal["float32", "bfloat16", "float64"] = "float32"


REMAT = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": jax.checkpoint_policies.nothing_saveable}


class Stack(nn.Module):
  """`layers` blocks, unrolled (parameters block_0, block_1, …) or scanned (blocks, with a leading axis)."""

  cfg: Config
  layers: int
  length: int
  cross: bool

  @nn.compact
  def __call__(self, x: Array, sight: Sight, memory: Array | None = None, memory_sight: Sight | None = None,
               cache: caches.Cache | None = None, train: bool = False) -> tuple[Array, Any]:  # fmt: skip
    cfg = self.cfg
    out = {"scaled": cfg.deviation / math.sqrt(2 * self.layers), "same": cfg.deviation, "zero": 0.0}[cfg.residual_init]
    block = Block if cfg.remat == "none" else nn.remat(Block, policy=REMAT[cfg.remat], static_argnums=(7,), prevent_cse=not cfg.scan)
    kwargs = dict(
        attention=cfg.attention, ffn=cfg.ffn, position=cfg.position, width=cfg.width, length=self.length, cross=self.cross, norm=cfg.norm,
        norm_place=cfg.norm_place, norm_bias=cfg.norm_bias, epsilon=cfg.epsilon, dropout=cfg.dropout, deviation=cfg.deviation,
        out_deviation=out, dtype=cfg.dtype, param_dtype=cfg.param_dtype,
    )  # fmt: skip
    slot = None if cache is None else cache.length
    if not cfg.scan:
      layers = []
      for i in range(self.layers):
        layer_cache = None if cache is None else cache.layers[i]
        x, layer_cache = block(**kwargs, name=f"block_{i}")(x, layer_cache, sight, memory, memory_sight, slot, train)
        layers.append(layer_cache)
      return x, None if cache is None else tuple(layers)
    scanned = nn.scan(
        block, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=self.layers,
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast), metadata_params={nn.PARTITION_NAME: "layers"},
    )  # fmt: skip
    layer_cache = None if cache is None else cache.layers
    return scanned(**kwargs, name="blocks")(x, layer_cache, sight, memory, memory_sight, slot, train)


class Transformer(nn.Module):
  cfg: Config
  vocab_size: int
  heads: Mapping[str, HeadConfig]
  length: int  # of the rows: the size of a learned position table that names none

  def setup(self):
    cfg = self.cfg
    common = dict(dtype=cfg.dtype, param_dtype=cfg.param_dtype)
    norm = dict(kind=cfg.norm, bias=cfg.norm_bias, epsilon=cfg.epsilon, **common)
    self.embed = Embed(self.vocab_size, cfg.width, cfg.deviation, **common)
    self.position = make_component(cfg.position, width=cfg.width, length=self.length, deviation=cfg.deviation, **common)
    if cfg.token_types:
      self.type_embed = Embed(cfg.token_types, cfg.width, cfg.deviation, axes=(None, "embed"), **common)
    if cfg.embed_norm:
      self.embed_norm = Normalize(**norm)
    self.drop = Dropout(cfg.dropout)
    if cfg.encoder_layers:
      self.encoder = Stack(cfg, cfg.encoder_layers, self.length, cross=False)
      if cfg.norm_place == "pre":
        self.encoder_norm = Normalize(**norm)
    self.stack = Stack(cfg, cfg.layers, self.length, cross=cfg.encoder_layers > 0)
    if cfg.norm_place == "pre":
      self.final_norm = Normalize(**norm)
    self.head = {
        name: HEADS[head.kind](head, self.vocab_size, cfg.width, cfg.tie_head, cfg.norm, cfg.epsilon, cfg.deviation, **common)
        for name, head in self.heads.items()
    }

  def embedded(self, inputs: Inputs, train: bool) -> Array:
    """[B, L, D]: tokens, types and positions, before the first block."""
    x = self.embed(inputs.tokens)
    if self.cfg.embed_scale:
      x = x * math.sqrt(self.cfg.width)
    if self.cfg.token_types:
      x = x + self.type_embed(jnp.zeros_like(inputs.tokens) if inputs.types is None else inputs.types)
    x = self.position.embed(x, inputs.place())
    if self.cfg.embed_norm:
      x = self.embed_norm(x)
    return constrain(self.drop(x, train), "batch", "length", "embed")

  def __call__(self, inputs: Inputs, read: Mapping[str, Array | None] | None = None, cache: caches.Cache | None = None,
               memory: Array | None = None, train: bool = False) -> Output:  # fmt: skip
    """Runs the stack and the heads in `read`, each at the given positions int [B, P] (None: everywhere).

    `memory` [B, K, D] is an encoder's output computed before (decoding); by default the encoder reads `inputs.source`.
    """
    memory_sight = None
    if self.cfg.encoder_layers:
      if inputs.source is None:
        raise ValueError("a model with encoder_layers > 0 needs Inputs.source; this objective gives none")
      memory_sight = cross_sight(inputs, inputs.source)
      memory = self.encode(inputs.source, train) if memory is None else memory
    x = self.embedded(inputs, train)
    if cache is None:
      sight = self_sight(inputs)
    else:
      cache, sight = caches.write(cache, inputs)
    x, layers = self.stack(x, sight, memory, memory_sight, cache, train)
    if self.cfg.norm_place == "pre":
      x = self.final_norm(x)
    if cache is not None:
      cache = caches.advance(cache, layers, inputs.tokens.shape[1])
    heads = {}
    for name, positions in (read or {}).items():
      hidden = x if positions is None else jnp.take_along_axis(x, positions[:, :, None], axis=1)
      heads[name] = self.head[name](hidden, self.embed.embedding)
    return Output(heads, x, cache, {}, {})

  def encode(self, source: Inputs, train: bool = False) -> Array:
    """The encoder's output [B, K, D]."""
    x, _ = self.encoder(self.embedded(source, train), self_sight(source), train=train)
    return self.encoder_norm(x) if self.cfg.norm_place == "pre" else x

  def everything(self, inputs: Inputs) -> Output:
    """Calls every part once, so that initialisation makes every parameter."""
    return self(inputs, {name: None for name in self.heads})


Apply = Callable[..., Output]


def make(cfg: Config, vocab_size: int, heads: Mapping[str, HeadConfig], length: int) -> Transformer:
  return Transformer(cfg, vocab_size, FrozenDict(heads), length)  # frozen: a model is a static argument of compiled functions


def init(model: Transformer, key: Array, batch: int = 1) -> PyTree:
  """Parameters, each boxed with its logical axis names (flax.linen.LogicallyPartitioned)."""
  inputs = Inputs(jnp.zeros((batch, model.length), jnp.int32))
  if model.cfg.encoder_layers:
    inputs = inputs.replace(source=Inputs(inputs.tokens, kind="full"))
  return model.init(key, inputs, method="everything")["params"]


def bind(model: Transformer) -> Apply:
  """The pure function that objectives receive.

  apply(params, inputs, *, read={head: positions or None}, tower=None, cache=None, key=None, train=False) -> Output
  """

  def apply(params: PyTree, inputs: Inputs, *, read: Mapping[str, Array | None], tower: str | None = None, cache=None, memory=None,
            key: Array | None = None, train: bool = False) -> Output:  # fmt: skip
    if tower is not None:
      raise ValueError(f"this model has no tower '{tower}': it is a single Transformer")
    rngs = {"dropout": key} if train and key is not None else None
    return model.apply({"params": params}, inputs, read, cache, memory, train, rngs=rngs)

  return apply


def empty_cache(model: Transformer, batch: int, slots: int) -> caches.Cache:
  """A cache of `slots` tokens for each of `batch` rows, in the model's dtype."""
  shape = grouped.cache_shape(model.cfg.attention, model.cfg.width, batch, slots)
  if model.cfg.scan:
    stacked = jnp.zeros((model.cfg.layers, *shape), model.cfg.dtype)
    return caches.empty(caches.LayerCache(stacked, stacked), batch, slots)
  layers = tuple(caches.LayerCache(jnp.zeros(shape, model.cfg.dtype), jnp.zeros(shape, model.cfg.dtype)) for _ in range(model.cfg.layers))
  return caches.empty(layers, batch, slots)


def unrolled(model: Transformer, params: PyTree) -> tuple[Transformer, PyTree]:
  """The same model with its layers apart: decoding one token at a time is a third faster that way."""
  if not model.cfg.scan:
    return model, params
  params = dict(params)
  for name, layers in (("stack", model.cfg.layers), ("encoder", model.cfg.encoder_layers)):
    if layers:
      blocks = params[name]["blocks"]
      params[name] = {f"block_{i}": jax.tree.map(lambda leaf: leaf[i], blocks) for i in range(layers)}
  return model.clone(cfg=dataclasses.replace(model.cfg, scan=False)), params
