"""What every imported family must show: the same numbers as transformers, live where it is installed and from golden files everywhere.

A family's test file makes cases (`Case`: a name, a class of transformers, its config, drawn from a seed) and hands them to the checks here.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.trees import named_leaves
from research.hf import files, loading
from research.hf.config import HARMLESS
from research.hf.rules import Rule
from research.model import transformer
from research.model.inputs import Inputs, positions_within

GOLDEN = pathlib.Path(__file__).parent / "golden"
LOGITS = 1e-4  # largest difference, float32
GRADIENTS = 1e-3  # largest difference of a tensor's gradient, relative to its largest entry


def reference():
  """(torch, transformers), or a skip."""
  torch = pytest.importorskip("torch", reason="comparing with transformers needs torch")
  transformers = pytest.importorskip("transformers", reason="comparing with transformers needs it installed")
  torch.set_num_threads(1)
  return torch, transformers


class Case(NamedTuple):
  """A tiny model of transformers."""

  name: str
  model_class: str  # of transformers, such as 'GPT2LMHeadModel'
  config_class: str
  config: dict[str, Any]

  def __str__(self) -> str:
    return self.name


class Pair(NamedTuple):
  """The same weights in both."""

  case: Case
  theirs: Any  # torch module in eval mode
  loaded: loading.Loaded
  folder: str

  @property
  def apply(self):
    return transformer.bind(self.loaded.model)

  @property
  def rules(self) -> list[Rule]:
    return self.loaded.family.rules(self.loaded.described)


def drawn(seed: int, **choices) -> dict[str, Any]:
  """One value of each list of `choices`, drawn from a seed."""
  rng = np.random.default_rng(seed)
  return {key: values[int(rng.integers(len(values)))] for key, values in choices.items()}


def spread(count: int, seed: int, **choices) -> list[dict[str, Any]]:
  """`count` configs drawn from a seed such that every value of a key's list comes about as often: few cases then leave none out."""
  rng = np.random.default_rng(seed)
  columns = {key: [values[i % len(values)] for i in rng.permutation(max(count, len(values)))] for key, values in choices.items()}
  return [{key: column[i] for key, column in columns.items()} for i in range(count)]


def quick(function: Callable) -> Callable:
  """jax.jit for a function that runs once: compiled in half the time, and no faster to run than it must be."""
  return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def make_theirs(case: Case, seed: int = 0):
  """The tiny model with weights that hide nothing: no zero bias, no unit scale, all drawn wide enough to matter."""
  torch, transformers = reference()
  torch.manual_seed(seed)
  model = getattr(transformers, case.model_class)(getattr(transformers, case.config_class)(**case.config))
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.randn(parameter.shape) * (0.3 / np.sqrt(parameter.shape[-1]) if parameter.ndim > 1 else 0.2)
      parameter.copy_(noise * 2 if parameter.ndim > 1 else parameter * 0.5 + noise + ("norm" in name or "ln" in name) * 0.5)
  return model.eval()


def make_pair(case: Case, folder: pathlib.Path, seed: int = 0) -> Pair:
  theirs = make_theirs(case, seed)
  theirs.save_pretrained(folder)
  return Pair(case, theirs, loading.load_model(str(folder)), str(folder))


def rows(vocab_size: int, count: int = 2, length: int = 11, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, vocab_size, (count, length)).astype(np.int32)


def their_logits(pair: Pair, tokens: np.ndarray, **kwargs) -> np.ndarray:
  torch, _ = reference()
  with torch.no_grad():
    return pair.theirs(input_ids=torch.tensor(tokens, dtype=torch.long), **kwargs).logits.numpy()


@functools.partial(jax.jit, static_argnums=(0, 1))
def forward(model, head: str, params, inputs: Inputs, cache=None):
  """Logits of a head, and the cache: compiled, for op by op is slower still."""
  output = transformer.bind(model)(params, inputs, read={head: None}, cache=cache)
  return output.heads[head].logits(), output.cache


def our_logits(pair_or_loaded, tokens, head: str = "lm", **fields) -> np.ndarray:
  loaded = getattr(pair_or_loaded, "loaded", pair_or_loaded)
  return np.asarray(forward(loaded.model, head, loaded.params, Inputs(jnp.asarray(tokens), **fields))[0])


def close(ours, theirs, tolerance: float = LOGITS) -> None:
  """Largest absolute difference, on numbers that differ enough among themselves to be a test."""
  assert np.std(theirs) > 100 * tolerance, f"the reference hardly varies ({np.std(theirs)}): this comparison shows nothing"
  np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=0)


# --- checks of decoders ------------------------------------------------------------------------------------------------------


def check_logits(pair: Pair, length: int = 11) -> None:
  tokens = rows(pair.loaded.described.vocab_size, length=length)
  close(our_logits(pair, tokens), their_logits(pair, tokens))


def check_rows(pair: Pair) -> None:
  """A whole row, one padded on the right and one that packs two documents, in one batch; their attention_mask is our segments."""
  torch, _ = reference()
  tokens = rows(pair.loaded.described.vocab_size, count=3)
  segments = np.array([[1] * 11, [1] * 7 + [0] * 4, [1] * 5 + [2] * 4 + [0] * 2])
  ours = our_logits(pair, tokens, segments=jnp.asarray(segments), positions=positions_within(jnp.asarray(segments)))
  mask = (segments[:2] > 0).astype(np.int64)
  close(ours[:2][mask == 1], their_logits(pair, tokens[:2], attention_mask=torch.tensor(mask))[mask == 1])
  for start, stop in ((0, 5), (5, 9)):
    close(ours[2:, start:stop], their_logits(pair, tokens[2:, start:stop]))


def check_cache(pair: Pair) -> None:
  """Token by token and in pieces, with a cache, against their whole row."""
  tokens = rows(pair.loaded.described.vocab_size)
  cache, parts = transformer.empty_cache(pair.loaded.model, *tokens.shape), []
  for start, stop in ((0, 5), (5, 6), (6, 11)):
    place = jnp.broadcast_to(jnp.arange(start, stop), (2, stop - start))
    inputs = Inputs(jnp.asarray(tokens[:, start:stop]), positions=place)
    logits, cache = forward(pair.loaded.model, "lm", pair.loaded.params, inputs, cache)
    parts.append(np.asarray(logits))
  close(np.concatenate(parts, 1), their_logits(pair, tokens))


def lm_loss(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """Mean negative log-likelihood of each token but the first, in nats."""
  scores = jax.nn.log_softmax(logits[:, :-1])
  return -jnp.mean(jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1))


def their_gradients(pair: Pair, loss) -> dict[str, np.ndarray]:
  """Gradient of every named parameter; a tied one is named once, and its gradient is the sum over its uses."""
  pair.theirs.zero_grad()
  loss.backward()
  return {name: parameter.grad.numpy() for name, parameter in pair.theirs.named_parameters() if parameter.grad is not None}


def check_gradients(pair: Pair) -> None:
  """The logits of plain rows, the language-modelling loss and its gradient, tensor by tensor, through the same rules as the weights."""
  torch, _ = reference()
  tokens = rows(pair.loaded.described.vocab_size)
  ids = torch.tensor(tokens, dtype=torch.long)
  theirs = pair.theirs(input_ids=ids, labels=ids)

  def loss(params):
    logits = pair.apply(params, Inputs(jnp.asarray(tokens)), read={"lm": None}).heads["lm"].logits()
    return lm_loss(logits, jnp.asarray(tokens)), logits

  (ours, logits), grads = quick(jax.value_and_grad(loss, has_aux=True))(pair.loaded.params)
  close(logits, theirs.logits.detach().numpy())
  assert abs(float(ours) - float(theirs.loss.detach())) < 1e-5
  compare_gradients(pair, grads, their_gradients(pair, theirs.loss))


def compare_gradients(pair: Pair, grads, theirs: dict[str, np.ndarray]) -> None:
  """Every tensor's gradient within GRADIENTS of its largest entry."""
  leaves = dict(named_leaves(grads))
  seen = set()
  largest = max(np.abs(gradient).max() for gradient in theirs.values())  # a key's bias moves no softmax: its gradient is rounding alone
  for rule in pair.rules:
    name = next((name for name in (rule.theirs, *rule.copies, rule.theirs.removeprefix(pair.loaded.family.names(pair.loaded.described).prefix))
                 if name in theirs), None)  # fmt: skip
    ours = np.asarray(rule.how.join([np.asarray(leaves[leaf]) for leaf in rule.leaves]))
    if name is None:
      assert not ours.any(), f"{rule.theirs}: torch has no gradient of it, we do"
      continue
    seen.add(name)
    scale = np.abs(theirs[name]).max()
    np.testing.assert_allclose(ours, theirs[name], atol=GRADIENTS * max(scale, 1e-4 * largest), rtol=0, err_msg=name)
  assert not set(theirs) - seen, f"no rule for the gradients of {set(theirs) - seen}"


def check_round_trip(pair: Pair, folder: pathlib.Path, length: int = 11, inputs: Callable[[Any], Any] | None = None) -> None:
  """Exported again: the same tensors bit for bit, and transformers loads them and computes the same."""
  torch, transformers = reference()
  loading.export(str(folder), pair.loaded.model, pair.loaded.params, family=pair.loaded.family.name)
  before, after = files.Folder(pair.folder), files.Folder(str(folder))
  assert after.tensors.keys() == before.tensors.keys()
  for name in before.tensors:
    a, b = before.read(name), after.read(name)
    assert a.dtype == b.dtype and a.tobytes() == b.tobytes(), name
  again, info = getattr(transformers, pair.case.model_class).from_pretrained(folder, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
  for key, value in pair.theirs.config.to_dict().items():
    if key in pair.case.config and key not in HARMLESS | {"rope_parameters"}:  # which has more than one form
      assert again.config.to_dict()[key] == value, key
  again = again.eval()
  if inputs is None:
    ids = torch.tensor(rows(pair.loaded.described.vocab_size, length=length), dtype=torch.long)
    inputs = lambda model: model(input_ids=ids).logits
  with torch.no_grad():
    np.testing.assert_array_equal(inputs(again).numpy(), inputs(pair.theirs).numpy())


# --- golden files ------------------------------------------------------------------------------------------------------------


def golden(name: str) -> tuple[str, dict[str, np.ndarray]]:
  """The folder of a tiny model written by `python -m tests.hf.make_golden`, and the arrays that transformers computed with it."""
  folder = GOLDEN / name
  with np.load(folder / "expected.npz") as arrays:
    return str(folder), dict(arrays)


def write_golden(name: str, theirs, arrays: dict[str, np.ndarray]) -> None:
  folder = GOLDEN / name
  folder.mkdir(parents=True, exist_ok=True)
  theirs.save_pretrained(folder)
  for extra in folder.glob("generation_config.json"):
    extra.unlink()
  np.savez_compressed(folder / "expected.npz", **arrays)
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
