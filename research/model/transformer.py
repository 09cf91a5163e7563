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
import numpy as np
from flax.core import FrozenDict

from research.core.config import Component
from research.core.config import make as make_component
from research.core.errors import UserError
from research.core.types import Array, PyTree
from research.model import cache as caches
from research.model.attention import grouped
from research.model.block import Block, Layer, NormPlace
from research.model.embed import Embed
from research.model.ffn import dense
from research.model.heads import HEADS
from research.model.inputs import Aux, HeadConfig, Inputs, Output, Past, Sight, cross_sight, self_sight
from research.model.layers import Dropout, Linear, Norm, Normalize, constrain
from research.model.position import rotary
from research.model.position.base import Sizes


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
  embed_width: int | None = None  # of the embeddings, projected to width where it differs (ELECTRA); None: width
  embed_norm: bool = False  # a norm right after the embeddings (BERT)
  embed_scale: bool = False  # embeddings times √width (Vaswani et al. 2017, section 3.4)
  token_types: int = 0  # entries of the token-type embedding (BERT: 2); 0: none
  patches: Component | None = None  # rows are images, cut into patches (ViT); None: tokens
  queries: bool = False  # a second stream of queries can be asked (XLNet): it starts from one learned vector
  tie_head: bool = True  # token heads read the embedding's table
  head_scale: bool = False  # hidden states times 1/√width before token heads (T5 where it ties them)
  dropout: float = 0.0  # on the embeddings and on every sublayer's output
  deviation: float = 0.02  # of the normal that kernels and embeddings are drawn from
  residual_init: Literal["scaled", "same", "zero"] = "scaled"  # kernels that write to the residual stream: deviation/√(2·layers) (GPT-2), the same, zero
  scan: bool = False  # one compiled block run over stacked parameters: fast compilation for deep models, 4–9 % slower on a CPU
  remat: Literal["none", "dots", "full"] = "none"  # what the backward pass recomputes: nothing; all but matmul results; everything inside a block
  dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # of activations and matmuls
  param_dtype: Literal["float32", "bfloat16", "float64"] = "float32"


REMAT = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": jax.checkpoint_policies.nothing_saveable}


class Stack(nn.Module):
  """Blocks one after the other: unrolled (block_0, block_1, …) or scanned (blocks, with a leading axis)."""

  cfg: Config
  layers: int
  length: int
  cross: bool

  @nn.compact
  def __call__(self, x: Array, sight: Sight, memory: Array | None = None, memory_sight: Sight | None = None, bias: Array | None = None,
               cache: caches.Cache | None = None, past: Past | None = None, train: bool = False,
               places: Array | None = None) -> tuple[Array, Any, Any, dict[str, Aux]]:  # fmt: skip
    """x [B, L, D] -> what leaves the last block, the layers' caches, their next past (a tuple, or stacked where scanned), their own losses' sums.

    With `places` int [B, P] only these leave it, [B, P, D], and an unrolled last block computes no others.
    """
    cfg = self.cfg
    out = {"scaled": cfg.deviation / math.sqrt(2 * self.layers), "same": cfg.deviation, "zero": 0.0}[cfg.residual_init]
    block = Block if cfg.remat == "none" else nn.remat(Block, policy=REMAT[cfg.remat], static_argnums=(8,), prevent_cse=not cfg.scan)
    kwargs = dict(
        attention=cfg.attention, ffn=cfg.ffn, position=cfg.position, width=cfg.width, length=self.length, cross=self.cross, norm=cfg.norm,
        norm_place=cfg.norm_place, norm_bias=cfg.norm_bias, epsilon=cfg.epsilon, dropout=cfg.dropout, deviation=cfg.deviation,
        out_deviation=out, dtype=cfg.dtype, param_dtype=cfg.param_dtype,
    )  # fmt: skip
    slot = None if cache is None else cache.length
    cached, hidden = None if cache is None else cache.layers, None if past is None else past.hidden
    if past is not None and hidden is None:  # the first rows of a text: nothing is seen, but what enters the layers is kept
      nothing = jnp.zeros_like(x[:, :0])
      hidden = jnp.broadcast_to(nothing, (self.layers, *nothing.shape)) if cfg.scan else (nothing,) * self.layers
    if not cfg.scan:
      after, aux = [], []
      for i in range(self.layers):
        layer = Layer(None if cached is None else cached[i], None if hidden is None else hidden[i])
        last = places if i == self.layers - 1 else None
        x, (layer, own) = block(**kwargs, name=f"block_{i}")(x, layer, sight, memory, memory_sight, slot, bias, train, last)
        after.append(layer)
        aux.append(own)
      total = jax.tree.map(lambda *each: sum(each), *aux)
      return x, None if cache is None else tuple(a.cache for a in after), None if past is None else tuple(a.past for a in after), total
    scanned = nn.scan(
        block, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=self.layers,
        in_axes=(0, *[nn.broadcast] * 6), metadata_params={nn.PARTITION_NAME: "layers"},
    )  # fmt: skip
    x, (after, aux) = scanned(**kwargs, name="blocks")(x, Layer(cached, hidden), sight, memory, memory_sight, slot, bias, train)
    if places is not None:
      x = jnp.take_along_axis(x, places[:, :, None], axis=1)
    return x, after.cache, after.past, jax.tree.map(lambda each: jnp.sum(each, axis=0), aux)


class Transformer(nn.Module):
  cfg: Config
  vocab_size: int
  heads: Mapping[str, HeadConfig]
  length: int  # of the rows: the size of a learned position table that names none

  def setup(self):
    cfg = self.cfg
    common = dict(dtype=cfg.dtype, param_dtype=cfg.param_dtype)
    norm = dict(kind=cfg.norm, bias=cfg.norm_bias, epsilon=cfg.epsilon, **common)
    width = cfg.embed_width or cfg.width
    if cfg.patches is None:
      self.embed = Embed(self.vocab_size, width, cfg.deviation, **common)
    else:
      self.patches = make_component(cfg.patches, width=width, deviation=cfg.deviation, **common)
    if cfg.token_types:
      self.type_embed = Embed(cfg.token_types, width, cfg.deviation, axes=(None, "embed"), **common)
    if cfg.embed_norm:
      self.embed_norm = Normalize(**norm)
    if width != cfg.width:
      self.embed_out = Linear((width,), (cfg.width,), ("embed", None), bias=True, deviation=cfg.deviation, **common)
    if cfg.queries:
      init = nn.with_logical_partitioning(nn.initializers.normal(cfg.deviation), ("embed",))
      self.query_embedding = self.param("query_embedding", init, (width,), cfg.param_dtype)
    length = self.length if cfg.patches is None else self.patches.places
    sizes = Sizes(width, length, cfg.attention.heads, grouped.head_dim(cfg.attention, cfg.width), cfg.deviation, cfg.dtype, cfg.param_dtype)
    self.position = make_component(cfg.position, sizes)
    self.drop = Dropout(cfg.dropout)
    if cfg.encoder_layers:
      self.encoder_position = make_component(cfg.position, sizes)
      self.encoder = Stack(cfg, cfg.encoder_layers, length, cross=False)
      if cfg.embed_norm:
        self.encoder_embed_norm = Normalize(**norm)
      if cfg.norm_place == "pre":
        self.encoder_norm = Normalize(**norm)
    self.stack = Stack(cfg, cfg.layers, length, cross=cfg.encoder_layers > 0)
    if cfg.norm_place == "pre":
      self.final_norm = Normalize(**norm)
    self.head = {
        name: HEADS[head.kind](head, self.vocab_size, cfg.width, width, cfg.tie_head, cfg.norm, cfg.epsilon, cfg.deviation, **common)
        for name, head in self.heads.items()
    }

  def embedded(self, inputs: Inputs, train: bool, encoder: bool = False) -> Array:
    """[B, L, D]: tokens or patches, types and positions, before the first block; then the queries of a second stream, [B, L + P, D]."""
    x = self.embed(inputs.tokens) if self.cfg.patches is None else self.patches(inputs.images)
    place, types = inputs.place(), inputs.types
    if inputs.queries is not None:
      if not self.cfg.queries:
        raise UserError("the objective asks through a second stream of queries, which this model lacks: set model.queries to true.")
      start = jnp.broadcast_to(self.query_embedding.astype(x.dtype), (*inputs.queries.shape, x.shape[-1]))
      x = jnp.concatenate([x, start], axis=1)
      asked = lambda of: None if of is None else jnp.concatenate([of, jnp.take_along_axis(of, inputs.queries, axis=1)], axis=1)
      place, types = asked(place), asked(types)
    if self.cfg.embed_scale:
      x = x * math.sqrt(self.cfg.width)
    if self.cfg.token_types:
      x = x + self.type_embed(jnp.zeros_like(place) if types is None else types)
    x = (self.encoder_position if encoder else self.position).embed(x, place)
    if self.cfg.embed_norm:
      x = (self.encoder_embed_norm if encoder else self.embed_norm)(x)
    x = self.drop(x, train)
    if x.shape[-1] != self.cfg.width:
      x = self.embed_out(x)
    return constrain(x, "batch", "length", "embed")

  def __call__(self, inputs: Inputs, read: Mapping[str, Array | None] | None = None, cache: caches.Cache | None = None,
               memory: Array | None = None, past: Past | None = None, train: bool = False) -> Output:  # fmt: skip
    """Runs the stack and the heads in `read`, each at the given places int [B, P] (None: as the head's `pool` says; token: everywhere).

    `memory` [B, K, D] is an encoder's output computed before; by default the encoder reads `inputs.source`. With a cache the source is
    read with the first tokens, and what is given of it later is not looked at. With `past`, the hidden states of earlier rows are seen
    too, and `Output.past` holds those of these rows. The queries of a second stream are the places L, L + 1, ….
    """
    if self.cfg.patches is not None:
      inputs = inputs.replace(positions=jnp.broadcast_to(jnp.arange(self.patches.places), (inputs.images.shape[0], self.patches.places)))
    memory_sight, encoder_own, count = None, {}, self.cfg.layers
    if self.cfg.encoder_layers and cache is not None and cache.source is not None:
      memory, memory_sight = None, caches.source_sight(cache, inputs)
    elif self.cfg.encoder_layers:
      if inputs.source is None:
        raise ValueError("a model with encoder_layers > 0 needs Inputs.source; this objective gives none")
      memory_sight = cross_sight(inputs, inputs.source)
      if memory is None:
        memory, encoder_own = self._encode(inputs.source, train)
        count += self.cfg.encoder_layers
      if cache is not None:
        own = inputs.source.segments
        cache = cache._replace(source=jnp.ones(memory.shape[:2], jnp.int32) if own is None else own)
    x = self.embedded(inputs, train)
    if cache is None:
      sight = self_sight(inputs, past)
    else:
      cache, sight = caches.write(cache, inputs)
    read = {name: self._places(name, places, len(x)) for name, places in (read or {}).items()}
    asked = self._asked(read, x.shape[1]) if cache is None else None
    x, layers, hidden, own = self.stack(x, sight, memory, memory_sight, self.position.stack_bias(sight), cache, past, train, asked)
    if self.cfg.norm_place == "pre":
      x = self.final_norm(x)
    if cache is not None:
      cache = caches.advance(cache, layers, inputs.tokens.shape[1])
    if asked is not None:  # the last block has brought them together
      ends = np.cumsum([0 if places is None else places.shape[1] for places in read.values()])
      heads = {name: self._head(name, part) for name, part in zip(read, jnp.split(x, ends[:-1], axis=1))}
    else:
      heads = {name: self._head(name, self._at(name, x, sight.q_segments, places)) for name, places in read.items()}
    aux = jax.tree.map(lambda *sums: sum(sums) / count, own, *([encoder_own] if encoder_own else []))
    return Output(heads, x if asked is None else None, cache, hidden, aux, {})

  def _places(self, name: str, places: Array | None, batch: int) -> Array | None:
    """Where the head `name` reads: a head of whole documents that is not told where takes the first place."""
    head = self.heads[name]
    if head.kind == "vector" and head.pool != "each" and places is None:
      return jnp.zeros((batch, 1), jnp.int32)
    return None if head.kind == "scale" else places

  def _asked(self, read: Mapping[str, Array | None], length: int) -> Array | None:
    """The places [B, P] of all heads, one after the other; None where some head reads every place, or they are no fewer than all."""
    reading = [name for name in read if self.heads[name].kind != "scale"]
    if not reading or any(read[name] is None or self.heads[name].pool == "mean" for name in reading):
      return None
    asked = jnp.concatenate([read[name] for name in reading], axis=1)
    return asked if asked.shape[1] < length else None

  def _at(self, name: str, x: Array, segments: Array | None, places: Array | None) -> Array:
    """What the head `name` reads of x [B, L, D] at `places` int [B, P]."""
    if places is None:
      return x
    if self.heads[name].pool != "mean":
      return jnp.take_along_axis(x, places[:, :, None], axis=1)
    same = jnp.ones((*places.shape, x.shape[1]), x.dtype)
    if segments is not None:  # the mean over the document in which the place lies
      same = (jnp.take_along_axis(segments, places, axis=1)[:, :, None] == segments[:, None, :]).astype(x.dtype)
    return jnp.einsum("BPL,BLD->BPD", same, x) / jnp.maximum(jnp.sum(same, axis=-1, keepdims=True), 1e-9)

  def _head(self, name: str, hidden: Array):
    """What the head `name` gives for hidden [B, P, D]."""
    if self.heads[name].kind == "token" and self.cfg.head_scale:
      hidden = hidden / math.sqrt(self.cfg.width)
    return self.head[name](hidden, None if self.cfg.patches is not None else self.embed.embedding)

  def encode(self, source: Inputs, train: bool = False) -> Array:
    """The encoder's output [B, K, D]."""
    return self._encode(source, train)[0]

  def _encode(self, source: Inputs, train: bool) -> tuple[Array, dict[str, Aux]]:
    sight = self_sight(source)
    x, _, _, aux = self.encoder(self.embedded(source, train, encoder=True), sight, bias=self.encoder_position.stack_bias(sight), train=train)
    return (self.encoder_norm(x) if self.cfg.norm_place == "pre" else x), aux

  def everything(self, batch: int) -> Output:
    """Calls every part once on `batch` rows, so that initialisation makes every parameter."""
    if self.cfg.patches is not None:
      inputs = Inputs(images=jnp.zeros((batch, *self.patches.image), self.cfg.dtype), kind="full")
    else:
      tokens = jnp.zeros((batch, self.length), jnp.int32)
      inputs = Inputs(tokens)
      if self.cfg.queries:
        inputs = Inputs(tokens, order=tokens, queries=tokens[:, :1], kind="ordered")
      inputs = inputs.replace(types=tokens, source=Inputs(tokens, kind="full") if self.cfg.encoder_layers else None)
    return self(inputs, {name: None for name in self.heads})


Apply = Callable[..., Output]


def make(cfg: Config, vocab_size: int, heads: Mapping[str, HeadConfig], length: int) -> Transformer:
  return Transformer(cfg, vocab_size, FrozenDict(heads), length)  # frozen: a model is a static argument of compiled functions


def init(model: nn.Module, key: Array, batch: int = 1) -> PyTree:
  """Parameters of a Transformer or of towers, each boxed with its logical axis names (flax.linen.LogicallyPartitioned)."""
  return model.init(key, batch, method="everything")["params"]


def bind(model: nn.Module) -> Apply:
  """The pure function that objectives receive.

  apply(params, inputs, *, read={head: places or None}, tower=None, cache=None, memory=None, past=None, key=None, train=False) -> Output
  """
  towers = getattr(model, "towers", ())

  def apply(params: PyTree, inputs: Inputs, *, read: Mapping[str, Array | None], tower: str | None = None, cache=None, memory=None,
            past: Past | None = None, key: Array | None = None, train: bool = False) -> Output:  # fmt: skip
    if tower is not None and tower not in towers:
      raise ValueError(f"this model has no tower '{tower}': " + (f"it has {', '.join(towers)}" if towers else "it is a single Transformer"))
    rngs = {"dropout": key} if train and key is not None else None
    kwargs = dict(cache=cache, memory=memory, past=past, train=train, rngs=rngs)
    return model.apply({"params": params}, inputs, read, **kwargs, **({"tower": tower} if towers else {}))

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
