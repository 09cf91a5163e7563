"""Every attention kernel against the plain one, and which kernel a call gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from research.core.errors import UserError
from research.model.attention.core import KERNELS, attend, choose
from research.model.attention.kernels import base, chunked, splash
from research.model.attention.kernels.base import Call, Drop
from research.model.inputs import Sight

CASES = {  # kind, (heads, key heads), segments, window, bias with the batch's rows, queries, keys
    "causal": ("causal", (4, 4), False, None, None, 24, 24),
    "causal, packed, grouped": ("causal", (4, 2), True, None, None, 24, 24),
    "causal, packed, window, bias": ("causal", (4, 1), True, 3, 1, 21, 21),
    "full": ("full", (2, 2), False, None, None, 24, 24),
    "full, packed, window, bias of rows": ("full", (4, 2), True, 4, 2, 24, 24),
    "cross, packed, blind": ("full", (4, 2), True, None, None, 10, 19),
    "ordered, blind, bias": ("ordered", (4, 2), False, None, 1, 24, 19),
    "ordered, packed, window, blind": ("ordered", (2, 2), True, 3, None, 24, 19),
}


def example(name, width=8, seed=0):
  kind, (H, G), packed, window, biased, L, K = CASES[name]
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  q, k, v = draw(2, L, H, width), draw(2, K, G, width), draw(2, K, G, width)
  row = lambda n: jnp.asarray(np.sort(rng.integers(0, 4, (2, n)), axis=1))
  segments = row(max(L, K)) if packed else None
  q_segments, k_segments = (None, None) if segments is None else (segments[:, :L], segments[:, :K])
  if "cross" in name:
    q_segments = jnp.where(q_segments == 0, 9, q_segments)  # a document that the source lacks
  place = lambda n: jnp.tile(jnp.arange(n), (2, 1))
  order = jnp.asarray(rng.permuted(np.tile(np.arange(K), (2, 1)), axis=1))
  q_order = jnp.concatenate([order, order[:, : L - K]], axis=1) - 1 if kind == "ordered" else None
  sight = Sight(place(L), place(K), q_segments, k_segments, q_order, order if kind == "ordered" else None, kind=kind, blind="blind" in name)
  return (q, k, v, None if biased is None else draw(biased, H, L, K)), sight, window


def outcome(kernel, arrays, sight, window):
  """Output and gradients of all arrays."""

  def run(q, k, v, bias):
    return attend(q, k, v, sight, scale=0.3, bias=bias, window=window, kernel=kernel)

  loss = lambda *arrays: jnp.sum(jnp.sin(run(*arrays)))
  argnums = tuple(i for i, x in enumerate(arrays) if x is not None)
  return jax.jit(lambda *arrays: (run(*arrays), jax.grad(loss, argnums)(*arrays)))(*arrays)


def same(kernel, name, **sizes):
  arrays, sight, window = example(name, **sizes)
  want, got = outcome("xla", arrays, sight, window), outcome(kernel, arrays, sight, window)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), want, got)
  if sight.blind:
    assert bool((got[0] == 0).all(-1).any())


@pytest.mark.parametrize("name", CASES)
def test_chunks_of_keys_equal_the_whole(name, monkeypatch):
  monkeypatch.setattr(chunked, "CHUNK", 7)
  monkeypatch.setattr(base, "BLOCK", 6)
  same("chunked", name)


def test_one_chunk_equals_the_whole():
  same("chunked", "causal, packed, window, bias")


SPLASH = [name for name, (kind, _, _, window, biased, *_) in CASES.items() if kind != "ordered" and window is None and biased is None]


@pytest.mark.parametrize("name", SPLASH)
def test_splash_equals_the_plain_kernel(name, monkeypatch):
  monkeypatch.setattr(splash, "INTERPRET", True)
  kind, heads, packed, window, biased, L, K = CASES[name]
  monkeypatch.setitem(CASES, name, (kind, heads, packed, window, biased, 150 if kind == "causal" else L, 150 if kind == "causal" else K))
  same("splash", name)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[4] is None and case[5] % 2 == case[6] % 2 == 0])
def test_cudnn_equals_the_plain_kernel(name):
  """In bfloat16, held against float32: the rounding of a result is of the size of its largest entries."""
  arrays, sight, window = example(name, width=64)
  half = tuple(None if x is None else x.astype(jnp.bfloat16) for x in arrays)
  with jax.default_matmul_precision("highest"):
    want = outcome("xla", tuple(None if x is None else x.astype(jnp.float32) for x in half), sight, window)
  got = outcome("cudnn", half, sight, window)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(b.astype("float32"), a, atol=2e-2 * float(jnp.max(jnp.abs(a)))), want, got)


def test_dropout_in_chunks(monkeypatch):
  """The backward pass draws what the forward pass drew; a share of the probabilities is dropped and the others make up for it."""
  monkeypatch.setattr(chunked, "CHUNK", 16)
  (q, k, v, _), sight, _ = example("causal, packed, grouped")
  drop = Drop(0.5, None, lambda: jax.random.key(1))
  run = jax.jit(lambda q, k, v: attend(q, k, v, sight, scale=0.3, drop=drop, kernel="chunked"))
  check_grads(run, (q, k, v), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)
  ones = run(0 * q, k, jnp.ones_like(v))  # places that see one key give 0 or 2, others between
  assert set(np.unique(ones[:, 0])) == {0.0, 2.0} and abs(float(ones.mean()) - 1) < 0.1 and float(ones.std()) > 0.1


def test_memory_of_chunks_grows_with_the_length():
  def temporary(kernel, length):
    q = jax.ShapeDtypeStruct((1, length, 1, 8), "float32")
    place = np.arange(length)[None]
    loss = lambda q: attend(q, q, q, Sight(place, place, kind="full"), scale=1.0, kernel=kernel).sum()
    return jax.jit(jax.grad(loss)).lower(q).compile().memory_analysis().temp_size_in_bytes

  assert temporary("xla", 8192) > 3.5 * temporary("xla", 4096)
  assert temporary("chunked", 8192) < 2.5 * temporary("chunked", 4096) < temporary("xla", 4096)


PLAIN = dict(platform="cpu", dtype="float32", queries=128, keys=128, head_dim=64, kind="causal", segments=True, window=False, bias=False, dropout=False, split=False)


@pytest.mark.parametrize(
    "changes, kernel",
    [
        ({}, "xla"),
        (dict(split=True), "chunked"),
        (dict(split=True, dropout=True), "xla"),
        (dict(platform="gpu"), "xla"),
        (dict(platform="gpu", dtype="bfloat16"), "cudnn"),
        (dict(platform="gpu", dtype="bfloat16", window=True, kind="ordered"), "cudnn"),
        (dict(platform="gpu", dtype="bfloat16", queries=127), "xla"),
        (dict(platform="gpu", dtype="bfloat16", stacked=True), "xla"),
        (dict(platform="gpu", dtype="bfloat16", stacked=True, segments=False), "cudnn"),
        (dict(platform="gpu", dtype="bfloat16", bias=True), "xla"),
        (dict(platform="gpu", dtype="bfloat16", split=True), "chunked"),
        (dict(platform="tpu"), "splash"),
        (dict(platform="tpu", dtype="bfloat16", split=True, queries=100), "splash"),
        (dict(platform="tpu", kind="ordered"), "xla"),
        (dict(platform="tpu", window=True), "xla"),
        (dict(platform="tpu", dropout=True), "xla"),
    ],
)  # fmt: skip
def test_auto_goes_by_platform_and_call(changes, kernel):
  assert choose("auto", Call(**{**PLAIN, **changes})) == kernel


@pytest.mark.parametrize(
    "kernel, changes, part",
    [
        ("cudnn", {}, "NVIDIA GPU"),
        ("cudnn", dict(platform="gpu"), "float32"),
        ("cudnn", dict(platform="gpu", dtype="bfloat16", head_dim=160), "160"),
        ("cudnn", dict(platform="gpu", dtype="bfloat16", bias=True), "model.position"),
        ("cudnn", dict(platform="gpu", dtype="bfloat16", dropout=True), "model.attention.dropout"),
        ("cudnn", dict(platform="gpu", dtype="bfloat16", split=True), "mesh.sequence"),
        ("cudnn", dict(platform="gpu", dtype="bfloat16", keys=5), "5 keys"),
        ("cudnn", dict(platform="gpu", dtype="bfloat16", stacked=True), "side by side"),
        ("splash", {}, "TPU"),
        ("splash", dict(platform="tpu", kind="ordered"), "orders"),
        ("splash", dict(platform="tpu", window=True), "model.attention.window"),
        ("splash", dict(platform="tpu", bias=True), "model.position"),
        ("splash", dict(platform="tpu", dropout=True), "model.attention.dropout"),
        ("splash", dict(platform="tpu", dtype="float64"), "float64"),
    ],
)  # fmt: skip
def test_a_kernel_that_cannot_is_one_sentence_in_training_and_another_elsewhere(kernel, changes, part):
  call = Call(**{**PLAIN, **changes})
  with pytest.raises(UserError) as info:
    choose(kernel, call)
  text = str(info.value)
  assert f"model.attention.kernel '{kernel}'" in text and part in text and f"'{choose('auto', call)}'" in text and "\n" not in text
  assert choose(kernel, call, binding=False) == choose("auto", call)


def test_the_plain_kernels_refuse_nothing():
  everything = Call("cpu", "float64", 5, 7, 3, "ordered", True, True, True, True, True, True)
  assert [name for name, kernel in KERNELS.items() if kernel.refuses(everything) is None] == ["xla", "chunked"]
