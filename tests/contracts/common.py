"""Small models and packed rows for the contracts that every objective keeps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core import config as configs
from research.core.types import Batch, TrainState, Vocab
from research.model import patches, towers, transformer
from research.model.attention import grouped
from research.model.ffn import moe
from research.model.inputs import Projection
from research.objectives import base
from tests import drawn

LENGTH, SIZE = 16, 40
OUTSIDE = "tests.contracts.outside"  # an objective that is not in the package keeps the same contracts
OBJECTIVES = [*(name for name in configs.members("objectives") if name != "reading"), OUTSIDE]  # reading trains nothing
VARIANTS = {  # other ways of an objective, which keep the contracts too: objective-variant -> its keys
    "causal_lm-prefix": dict(prefix=True),
    "causal_lm-regularized": dict(z_loss=1e-3, label_smoothing=0.1),
    "masked_lm-word": dict(unit="word", mask_rate=0.4),
    "masked_lm-span": dict(unit="span", mask_rate=0.4),
    "masked_lm-ngram": dict(unit="ngram", mask_rate=0.4),
    "masked_lm-bernoulli": dict(count="bernoulli", slack=1.0),
    "masked_lm-schedule": dict(final_mask_rate=0.4, mask_rate_steps=10),
    "permutation_lm-all": dict(predict=1),
    "contrastive-causal": dict(causal=True),
    "permutation_lm-parts": dict(recurrence=2, bidirectional=True, predict=3, span=2),
    "causal_lm-experts": {},
}
MODELS = {  # keys of the Transformer that an objective or a variant needs
    "permutation_lm": dict(queries=True),
    "seq2seq": dict(encoder_layers=2),
    "causal_lm-experts": dict(ffn=moe.Config(experts=4, hidden=16, gated=True)),
}
DETERMINISTIC = {OUTSIDE, "causal_lm", "causal_lm-experts", "causal_lm-regularized", "classification", "tagging", "seq2seq", "similarity", "contrastive", "contrastive-causal"}  # `corrupt` draws nothing
LABELS = {"classification": "label", "image_classification": "label", "similarity": "label", "tagging": "tags"}  # what is predicted is no token of the row but this field
KERNELS = [("causal_lm", "chunked"), ("masked_lm", "chunked"), ("permutation_lm", "chunked"), ("seq2seq", "chunked"), ("causal_lm", "splash"), ("masked_lm", "splash")]  # attention kernels beside the plain one, each with the kinds of rows that it serves
IN_BATCH = "a row is told apart from the other rows of its batch"
ONE_TEXT = "a row is one text, whatever documents it was cut from"
NO_TOKENS = "its targets are no tokens"
EXEMPT = {  # (objective, contract) -> why the contract cannot hold for it
    ("classification", "packing"): "a label is of the whole row, which therefore holds one document",
    ("classification", "hidden targets"): NO_TOKENS,
    ("tagging", "hidden targets"): NO_TOKENS,
    ("image_classification", "packing"): "an image is a whole row",
    ("image_classification", "hidden targets"): NO_TOKENS,
    ("similarity", "packing"): ONE_TEXT,
    ("similarity", "hidden targets"): NO_TOKENS,
    ("contrastive", "packing"): ONE_TEXT,
    ("contrastive", "evaluation batch"): IN_BATCH,
    ("contrastive", "hidden targets"): NO_TOKENS,
    ("image_text", "packing"): ONE_TEXT,
    ("image_text", "evaluation batch"): IN_BATCH,
    ("image_text", "hidden targets"): NO_TOKENS,
}
PIXELS = dict(height=8, width=8, crop=2, flip=True)
KEYS = {  # small, and with scores of a size that does not magnify the rounding of cosines
    "contrastive": dict(temperature=0.5),
    "similarity": dict(high=1.0),
    "image_text": dict(**PIXELS, outputs=8, scale=2.0),
    "image_classification": dict(**PIXELS, classes=3),
}
SPECIAL = {"pad": 0, "unk": 1, "bos": 2, "eos": 3, "cls": 4, "sep": 5, "mask": 6}


def vocab() -> Vocab:
  special = np.zeros(SIZE, np.int32)
  special[list(SPECIAL.values())] = 1
  return Vocab(SIZE, SPECIAL, np.arange(SIZE) % 3 == 0, (1 - special) * (1 + np.arange(SIZE, dtype=np.int32) % 2))


def objective_of(name: str, length: int = LENGTH, **changes):
  """An objective or a variant of it at the keys of the contracts, with `changes`."""
  return configs.make(configs.typed(configs.use(component(name), **{**keys(name), **changes})), vocab(), length)


def component(name: str) -> str:
  """How a config names the objective, or that of which it is a variant."""
  family = name.partition("-")[0]
  return family if "." in family else f"objectives.{family}"


def keys(name: str) -> dict:
  """The objective's keys in the contracts, where they are not its defaults."""
  return {**KEYS.get(name.partition("-")[0], {}), **VARIANTS.get(name, {})}


def build(name: str, dropout: float = 0.0, model_keys: dict = {}, length: int = LENGTH, **changes):  # noqa: B006
  """(objective, model, params, apply) of an objective at its defaults or of a variant of it, with `changes` of its keys."""
  objective, model = parts(name, dropout, model_keys, length, **changes)
  return objective, model, drawn.parameters(model), compiled(model)


def parts(name: str, dropout: float = 0.0, model_keys: dict = {}, length: int = LENGTH, **changes):  # noqa: B006
  """(objective, model) of `build`, without parameters."""
  objective = objective_of(name, length, **changes)
  return objective, configs.make(stack(name, objective, dropout=dropout, **model_keys), SIZE, objective.heads, length)


def stack(name: str, objective, **keys):
  """The config of the model that trains an objective: two blocks of four heads, unless `keys` says otherwise; a tower of one block for images, one for texts."""
  spec = objective.element_spec
  small = dict(layers=2, width=32, attention=grouped.Config(heads=4), deviation=0.2, token_types=2 * ("types" in spec))
  found = transformer.Config(**{**small, **_needed(name), **keys})
  if "images" not in spec:
    return found
  text, cut = dataclasses.replace(found, layers=1), patches.Config(height=8, width=8, patch=4)
  both = towers.Config({"text": text, "image": dataclasses.replace(text, patches=cut)})
  return both if "tokens" in spec else dataclasses.replace(found, patches=cut)


def _needed(name: str) -> dict:
  return {**MODELS.get(name.partition("-")[0], {}), **MODELS.get(name, {})}


def shallow(name: str) -> dict[str, int]:
  """Keys of the model for contracts that one layer of each stack shows as well as two: half as much to compile."""
  return {key: 1 for key in ("layers", *(key for key in _needed(name) if key == "encoder_layers"))}


def compiled(model):
  """`apply` of a model, compiled as a whole: called op by op, each operation would be compiled by itself."""
  return jax.jit(transformer.bind(model), static_argnames=("train", "tower"))


_corrupting = {}  # id of an objective -> it, so that the id stays its own, and its corruption


def corrupted(objective, key, batch, step):
  """`objectives.base.corrupted`, compiled as a whole: called op by op, each operation would be compiled by itself."""
  _, compiled = _corrupting.setdefault(id(objective), (objective, jax.jit(lambda key, batch, step: base.corrupted(objective, key, batch, step))))
  return compiled(key, batch, step)


def objectives(contract: str, variants: bool = True):
  """Every objective, with its variants if wanted; those that `EXEMPT` names marked with the reason."""
  reason = lambda name: EXEMPT.get((name.partition("-")[0], contract))
  names = [*OBJECTIVES, *(VARIANTS if variants else ())]
  return pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.skip(reason=reason(name))] if reason(name) else []) for name in names])


def asked(example, term: str):
  """Where a head must be read for the targets of `term`: None, or int32 [B, P]; the queries of a second stream follow the row's tokens."""
  if example.inputs.queries is not None:
    B, P = example.inputs.queries.shape
    return jnp.broadcast_to(example.inputs.tokens.shape[1] + jnp.arange(P), (B, P))
  return example.positions.get(term)


def all_segments(inputs):
  """The documents of a row's tokens and, after them, of its queries."""
  segments = inputs.segments
  if inputs.queries is None:
    return segments
  return jnp.concatenate([segments, jnp.take_along_axis(segments, inputs.queries, axis=1)], axis=1)


def rows(objective, count: int, seed: int = 0, packed: bool = True) -> dict[str, np.ndarray]:
  """Random rows of an objective's element_spec: two documents of unequal length and some padding in each, or one where a row has one label."""
  rng = np.random.default_rng(seed)
  found = {}
  for field, spec in objective.element_spec.items():
    shape = (count, *spec.shape)
    if field in ("tokens", "source"):
      found[field] = rng.integers(len(SPECIAL), SIZE, shape).astype(np.int32)
    elif field in ("segments", "source_segments"):
      found[field] = np.ones(shape, np.int32)
      if packed:
        for row in found[field].reshape(-1, shape[-1]):
          first, last = rng.integers(5, 8), rng.integers(12, len(row))
          row[first:], row[last:] = 1 if "label" in objective.element_spec else 2, 0
    elif field == "types":
      found[field] = (np.arange(shape[1]) > rng.integers(2, 6, (count, 1))).astype(np.int32)
    elif field == "images":
      found[field] = rng.integers(0, 256, shape).astype(np.uint8)
    elif field == "is_next":
      found[field] = rng.integers(0, 2, shape).astype(np.int32)
    elif field == "label":
      found[field] = rng.integers(0, objective.classes, count).astype(np.int32) if objective.classes else rng.normal(size=count).astype(np.float32)
    elif field == "tags":
      found[field] = np.where(rng.random(shape) < 0.6, rng.integers(0, objective.classes, shape), -1).astype(np.int32)
    else:
      raise AssertionError(f"the contracts know no rows of '{field}' ({spec.meaning}); teach them in tests/contracts/common.py")
  for field, segments in (("tokens", "segments"), ("source", "source_segments")):
    if field in found:
      found[field] = np.where(found[segments] > 0, found[field], 0).astype(np.int32)
  if "tags" in found:
    found["tags"] = np.where(found["segments"] > 0, found["tags"], -1).astype(np.int32)
  return found


def scores(output, head: str) -> jnp.ndarray:
  """What a head gives, [B, P, ·]."""
  found = output.heads[head]
  return found.logits() if isinstance(found, Projection) else found


def document(inputs, segment: int):
  """Rows of which only the document `segment` is left, in the source too."""
  alone = lambda segments: jnp.where(segments == segment, 1, 0)
  source = inputs.source if inputs.source is None else inputs.source.replace(segments=alone(inputs.source.segments))
  return inputs.replace(segments=alone(inputs.segments), source=source)


def batch(objective, count: int, seed: int = 0, start: int = 0, packed: bool = True) -> Batch:
  index = np.stack([np.zeros(count), start + np.arange(count)], axis=1).astype(np.uint32)
  return Batch(rows(objective, count, seed, packed), index, np.ones(count, bool))


def state(params, optimizer, seed: int = 0) -> TrainState:
  return TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params), jax.random.key(seed))
