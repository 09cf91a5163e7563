"""The checks of an encoder and a decoder against transformers: what `common` does for a single stack."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.hf import files, loading
from research.model import transformer
from research.model.inputs import Inputs, positions_within
from tests.hf import common
from tests.hf.common import Case, Pair

SOURCE, TARGET = 12, 9  # places of a row
STEP = 3  # places of a piece where the target is read in pieces

# Compiling takes most of the time here, and optimising most of that.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def make_pair(case: Case, folder: pathlib.Path, seed: int, change: Callable[[Any], None] = lambda theirs: None) -> Pair:
  """As common.make_pair, with `change` made to their model before it is saved."""
  torch, _ = common.reference()
  theirs = common.make_theirs(case, seed)
  with torch.no_grad():
    change(theirs)
  theirs.save_pretrained(folder)
  return Pair(case, theirs, loading.load_model(str(folder)), str(folder))


def rows(pair: Pair, count: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Source and target without the last id of the vocabulary, which is the padding: torch gives its embedding no gradient."""
  vocab = pair.loaded.described.vocab_size - 1
  return common.rows(vocab, count, SOURCE, seed), common.rows(vocab, count, TARGET, seed + 1)


def masks() -> tuple[np.ndarray, np.ndarray]:
  """Of two pairs, the first with a shorter source, the second with a shorter target."""
  source, target = np.ones((2, SOURCE), np.int32), np.ones((2, TARGET), np.int32)
  source[0, 7:], target[1, 5:] = 0, 0
  return source, target


def theirs(pair: Pair, source: np.ndarray, target: np.ndarray, source_mask: np.ndarray | None = None, target_mask: np.ndarray | None = None):
  """Logits of transformers, a torch tensor [B, L, V]."""
  torch, _ = common.reference()
  long = lambda array: None if array is None else torch.tensor(array, dtype=torch.long)
  return pair.theirs(
      input_ids=long(source), decoder_input_ids=long(target), attention_mask=long(source_mask), decoder_attention_mask=long(target_mask)
  ).logits  # fmt: skip


def inputs(source, target, source_segments=None, target_segments=None) -> Inputs:
  """Ours of the same rows; where there are segments, positions start anew with each."""
  array = lambda x: None if x is None else jnp.asarray(x)
  place = lambda segments: None if segments is None else positions_within(jnp.asarray(segments))
  source = Inputs(array(source), segments=array(source_segments), positions=place(source_segments), kind="full")
  return Inputs(array(target), segments=array(target_segments), positions=place(target_segments), source=source)


@functools.cache
def _run(model):
  """The logits, compiled once for all checks of a model."""
  return jit(lambda params, rows: transformer.bind(model)(params, rows, read={"lm": None}).heads["lm"].logits())


def ours(pair: Pair, rows: Inputs):
  return _run(pair.loaded.model)(pair.loaded.params, rows)


def check_logits(pair: Pair) -> None:
  source, target = rows(pair)
  common.close(np.asarray(ours(pair, inputs(source, target))), theirs(pair, source, target).detach().numpy())


def check_padding(pair: Pair) -> None:
  (source, target), (source_mask, target_mask) = rows(pair), masks()
  expected = theirs(pair, source, target, source_mask, target_mask).detach().numpy()
  found = np.asarray(ours(pair, inputs(source, target, source_mask, target_mask)))
  common.close(found[target_mask == 1], expected[target_mask == 1])


def check_packed(pair: Pair) -> None:
  """Two pairs in a row, padding at its end, against each by itself."""
  source, target = rows(pair)
  source_segments, target_segments = np.array([[1] * 4 + [2] * 6 + [0] * 2] * 2), np.array([[1] * 5 + [2] * 3 + [0]] * 2)
  packed = np.asarray(ours(pair, inputs(source, target, source_segments, target_segments)))
  for (a, b), (c, d) in (((0, 4), (0, 5)), ((4, 10), (5, 8))):
    common.close(packed[:, c:d], theirs(pair, source[:, a:b], target[:, c:d]).detach().numpy())


def check_cache(pair: Pair) -> None:
  """The source encoded once and the target in pieces, with a cache, against the whole; one source is padded."""
  (source, target), (source_mask, _) = rows(pair), masks()
  whole = inputs(source, target, source_mask, np.ones_like(target))
  memory = jit(lambda params, source: pair.loaded.model.apply({"params": params}, source, method="encode"))(pair.loaded.params, whole.source)
  call = jit(lambda params, piece, memory, cache: pair.apply(params, piece, read={"lm": None}, cache=cache, memory=memory))
  cache, parts = transformer.empty_cache(pair.loaded.model, *target.shape), []
  for start in range(0, TARGET, STEP):
    piece = {key: getattr(whole, key)[:, start : start + STEP] for key in ("tokens", "segments", "positions")}
    output = call(pair.loaded.params, whole.replace(**piece), memory, cache)
    cache = output.cache
    parts.append(np.asarray(output.heads["lm"].logits()))
  common.close(np.concatenate(parts, 1), theirs(pair, source, target, source_mask).detach().numpy())


def check_cross(pair: Pair) -> None:
  """The target's scores follow the source of their own pair, and only that: a padded or another pair's token moves none of them."""
  (source, target), (source_mask, target_mask) = rows(pair), masks()
  score = lambda source: np.asarray(ours(pair, inputs(source, target, source_mask, target_mask)))
  other = source.copy()
  other[0, 8] += 1 if source[0, 8] == 0 else -1  # padding
  np.testing.assert_array_equal(score(other), score(source))
  other = source.copy()
  other[0, 6] += 1 if source[0, 6] == 0 else -1
  moved = np.abs(score(other) - score(source)).max(axis=(1, 2))
  assert moved[0] > 1e-3 and moved[1] == 0.0, moved


def check_gradients(pair: Pair) -> None:
  """Of the next-token loss of the target, padding left out, every tensor through the same rules as the weights."""
  torch, _ = common.reference()
  (source, target), (source_mask, target_mask) = rows(pair), masks()
  bias = getattr(pair.theirs, "final_logits_bias", None)  # a constant of theirs, but its gradient can be asked for
  if bias is not None:
    bias.requires_grad_(True)
    bias.grad = None
  labels = np.where(target_mask[:, 1:] == 1, target[:, 1:], -100)
  logits = theirs(pair, source, target, source_mask, target_mask)[:, :-1]
  their_loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(labels, dtype=torch.long).flatten())

  def loss(params):
    output = pair.apply(params, inputs(source, target, source_mask, target_mask), read={"lm": None})
    scores = jax.nn.log_softmax(output.heads["lm"].logits()[:, :-1])
    scores = jnp.take_along_axis(scores, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(labels >= 0, scores, 0)) / np.sum(labels >= 0)

  value, grads = jit(jax.value_and_grad(loss))(pair.loaded.params)
  assert abs(float(value) - their_loss.item()) < 1e-5
  expected = common.their_gradients(pair, their_loss)
  if bias is not None:
    expected["final_logits_bias"] = bias.grad.numpy()
    bias.requires_grad_(False)
  common.compare_gradients(pair, grads, expected)


def check_round_trip(pair: Pair, folder: pathlib.Path) -> None:
  torch, _ = common.reference()
  source, target = (torch.tensor(array, dtype=torch.long) for array in rows(pair))
  common.check_round_trip(pair, folder, inputs=lambda model: model(input_ids=source, decoder_input_ids=target).logits)


def golden_arrays(theirs: Any, case: Case) -> dict[str, np.ndarray]:
  """Two pairs, one source and one target padded, and the scores of the target's tokens."""
  torch, _ = common.reference()
  source, target = common.rows(case.config["vocab_size"] - 1, 2, 8, 0), common.rows(case.config["vocab_size"] - 1, 2, 6, 1)
  source_mask, target_mask = np.ones_like(source), np.ones_like(target)
  source_mask[0, 5:], target_mask[1, 4:] = 0, 0
  long = lambda array: torch.tensor(array, dtype=torch.long)
  with torch.no_grad():
    scores = theirs(
        input_ids=long(source), decoder_input_ids=long(target), attention_mask=long(source_mask), decoder_attention_mask=long(target_mask)
    ).logits.numpy()  # fmt: skip
  return {"source": source, "target": target, "source_mask": source_mask, "target_mask": target_mask, "scores": scores}


def check_golden(name: str, folder: pathlib.Path) -> None:
  """The numbers of transformers kept in files, and an export that is the inverse of the import."""
  golden, expected = common.golden(name)
  loaded = loading.load_model(golden)
  keys = ("source", "target", "source_mask", "target_mask")
  found = _run(loaded.model)(loaded.params, inputs(*(expected[key] for key in keys)))
  seen = expected["target_mask"] == 1
  common.close(np.asarray(found)[seen], expected["scores"][seen])
  loading.export(str(folder), loaded.model, loaded.params, loaded.family.name)
  before, after = files.Folder(golden), files.Folder(str(folder))
  assert after.tensors == before.tensors
  for tensor in before.tensors:
    assert after.read(tensor).tobytes() == before.read(tensor).tobytes(), tensor
