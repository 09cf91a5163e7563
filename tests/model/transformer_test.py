"""Properties of the whole model, each of which a wrong line would break."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.trees import named_leaves, size
from research.model import patches, towers, transformer
from research.model.attention import grouped
from research.model.ffn import dense
from research.model.inputs import HeadConfig, Inputs, Past, positions_within
from research.model.position import bias, learned, nope, relative, rotary, sinusoidal
from tests import drawn
from tests.contracts.common import compiled

SCHEMES = {"sinusoidal": sinusoidal.Config(), "learned": learned.Config(), "rotary": rotary.Config(), "nope": nope.Config(),
           "buckets": bias.Config(buckets=8, max_distance=10), "alibi": bias.Config(kind="alibi"), "relative": relative.Config()}  # fmt: skip
V, L = 23, 12


def build(length=L, heads=None, **changes):
  changes.setdefault("attention", grouped.Config(heads=4, kv_heads=2, qk_norm=True))
  cfg = transformer.Config(**{"layers": 2, "width": 16, "deviation": 0.3, **changes})
  model = transformer.make(cfg, V, heads or {"lm": HeadConfig()}, length)
  return model, drawn.parameters(model), compiled(model)


def tokens(rows=2, length=L, seed=0):
  return jnp.asarray(np.random.default_rng(seed).integers(0, V, (rows, length)), jnp.int32)


def logits(apply, params, inputs, **kwargs):
  return apply(params, inputs, read={"lm": None}, **kwargs).heads["lm"].logits()


@pytest.mark.parametrize("scheme,norm_place", [*((scheme, "pre") for scheme in SCHEMES), ("rotary", "post")])
def test_causal_by_gradient(scheme, norm_place):
  model, params, apply = build(position=SCHEMES[scheme], norm_place=norm_place, norm="layer", norm_bias=True)
  x = tokens()
  table = params["embed"]["embedding"]
  wide = transformer.make(model.cfg, V + L, model.heads, L)

  def hidden(probe):  # a probe per place, added to the embeddings through an untied path
    shifted = {**params, "embed": {"embedding": jnp.concatenate([table, table[x[0]] + probe])}}
    return transformer.bind(wide)(shifted, Inputs(V + jnp.arange(L, dtype=jnp.int32)[None]), read={}).hidden[0].sum(-1)

  reads = jnp.abs(jax.jit(jax.jacrev(hidden))(jnp.zeros((L, 16)))).sum(-1)  # [place that reads, place that is read]
  for at in (0, 5, L - 1):
    seen = reads[at]
    assert (seen[at + 1 :] == 0).all() and (seen[: at + 1] > 0).all()


@pytest.mark.parametrize(
    "scheme,scan,window", [*((scheme, False, None) for scheme in SCHEMES), ("rotary", True, None), ("learned", False, 4), ("buckets", True, 4)]
)
def test_with_cache_equals_without(scheme, scan, window):
  attention = grouped.Config(heads=4, kv_heads=2, qk_norm=True, window=window)
  model, params, apply = build(position=SCHEMES[scheme], scan=scan, attention=attention)
  x = tokens()
  whole = logits(apply, params, Inputs(x))
  cache, parts = transformer.empty_cache(model, 2, L + 3), []
  for start, stop in ((0, 5), (5, 6), (6, 10), (10, L)):
    place = jnp.broadcast_to(jnp.arange(start, stop), (2, stop - start))
    out = apply(params, Inputs(x[:, start:stop], positions=place), read={"lm": None}, cache=cache)
    cache = out.cache
    parts.append(out.heads["lm"].logits())
  np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=2e-5)


def test_ragged_prompts_in_a_cache():
  model, params, apply = build()
  x = tokens()
  lengths = jnp.array([4, 7])
  segments = (jnp.arange(7) < lengths[:, None]).astype(jnp.int32)
  out = apply(params, Inputs(x[:, :7], segments=segments), read={"lm": lengths[:, None] - 1}, cache=transformer.empty_cache(model, 2, L))
  step = apply(params, Inputs(x[:, 7:8], positions=lengths[:, None]), read={"lm": None}, cache=out.cache)
  for row, n in enumerate((4, 7)):
    alone = jnp.concatenate([x[row, :n], x[row, 7:8]])[None]
    want = logits(apply, params, Inputs(alone))
    np.testing.assert_allclose(out.heads["lm"].logits()[row, 0], want[0, -2], atol=2e-5)
    np.testing.assert_allclose(step.heads["lm"].logits()[row, 0], want[0, -1], atol=2e-5)


@pytest.mark.parametrize("scheme,kind", [*((scheme, "full") for scheme in SCHEMES), ("rotary", "causal"), ("relative", "causal")])
def test_packed_documents_equal_documents_apart(kind, scheme):
  _, params, apply = build(position=SCHEMES[scheme])
  x = tokens(1)
  segments = jnp.array([[1] * 5 + [2] * 4 + [0] * 3])
  packed = logits(apply, params, Inputs(x, positions=positions_within(segments), segments=segments, kind=kind))
  for start, stop in ((0, 5), (5, 9)):
    alone = logits(apply, params, Inputs(x[:, start:stop], kind=kind))
    np.testing.assert_allclose(packed[:, start:stop], alone, atol=2e-5)


def test_positions_within():
  segments = jnp.array([[1, 1, 1, 2, 2, 0, 0], [3, 1, 1, 1, 1, 1, 1]])
  np.testing.assert_array_equal(positions_within(segments), [[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4, 5]])


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_scan_and_remat_change_no_number(remat):
  model, params, apply = build()
  x = tokens()
  scanned = transformer.make(dataclasses.replace(model.cfg, scan=True, remat=remat), V, model.heads, L)
  blocks = [params["stack"][f"block_{i}"] for i in range(2)]
  stacked = {**params, "stack": {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}}
  f = lambda apply: jax.value_and_grad(lambda p: (logits(apply, p, Inputs(x)) ** 2).mean())
  value, grads = jax.jit(f(apply))(params)
  value_scanned, grads_scanned = jax.jit(f(transformer.bind(scanned)))(stacked)
  np.testing.assert_allclose(value, value_scanned, rtol=1e-5)
  for i in range(2):
    for a, b in zip(jax.tree.leaves(grads["stack"][f"block_{i}"]), jax.tree.leaves(grads_scanned["stack"]["blocks"])):
      np.testing.assert_allclose(a, b[i], rtol=1e-3, atol=1e-5)
  plain, apart = transformer.unrolled(scanned, stacked)
  np.testing.assert_allclose(logits(compiled(plain), apart, Inputs(x)), logits(apply, params, Inputs(x)), atol=1e-5)


def test_rotary_scores_depend_on_distance_alone():
  _, params, apply = build(position=rotary.Config())
  x = tokens()
  place = jnp.broadcast_to(jnp.arange(L), x.shape)
  a, b = (logits(apply, params, Inputs(x, positions=place + shift)) for shift in (0, 17))
  np.testing.assert_allclose(a, b, atol=5e-5)
  assert jnp.abs(a - logits(apply, params, Inputs(x, positions=2 * place))).max() > 1e-2


def test_sinusoidal_table():
  at = sinusoidal.Sinusoidal(10000.0).apply({}, jnp.zeros((1, 3, 6)), jnp.array([[0, 1, 50]]), method="embed")[0]
  angles = np.array([0, 1, 50])[:, None] / 10000 ** (np.arange(3) / 3)
  np.testing.assert_allclose(at, np.concatenate([np.sin(angles), np.cos(angles)], -1), atol=1e-5)


def test_learned_positions_past_the_table_are_seen():
  _, params, apply = build(position=learned.Config(length=4))
  assert jnp.isnan(logits(apply, params, Inputs(tokens(1, 6)))[0, 5]).all()


@pytest.mark.parametrize("scheme,kind", [*((scheme, "full") for scheme in SCHEMES), ("rotary", "causal"), ("relative", "ordered")])
@pytest.mark.parametrize("scan", [False, True])
def test_places_that_heads_read_are_as_in_the_whole(scheme, kind, scan):
  """Two heads at places of their own, of packed rows with types, a window and an encoder: outputs and gradients."""
  if scan and scheme != "rotary":
    pytest.skip("scanned layers compute every place and pick; one scheme shows it")
  heads = {"lm": HeadConfig(), "classes": HeadConfig("vector", outputs=3, pool="first", transform=True), "scale": HeadConfig("scale")}
  attention = grouped.Config(heads=4, kv_heads=2, window=5)
  _, params, apply = build(position=SCHEMES[scheme], scan=scan, attention=attention, heads=heads, token_types=2, encoder_layers=1,
                           norm_place="post" if scheme == "alibi" else "pre")  # fmt: skip
  x, source = tokens(), tokens(2, 9, seed=1)
  segments = jnp.asarray([[1] * 5 + [2] * 5 + [0] * 2, [1] * 8 + [2] * 4])
  order = jnp.asarray(np.random.default_rng(3).permuted(np.tile(np.arange(L), (2, 1)), axis=1)) if kind == "ordered" else None
  inputs = Inputs(x, positions=positions_within(segments), segments=segments, order=order, types=(x > 11).astype(jnp.int32), kind=kind,
                  source=Inputs(source, segments=jnp.ones_like(source).at[:, 4:].set(2), kind="full"))  # fmt: skip
  at, first = jnp.array([[3, 1], [4, 11]]), jnp.array([[5], [0]])

  def some(params):
    out = apply(params, inputs, read={"lm": at, "scale": None, "classes": first})
    assert scan or out.hidden is None
    return out.heads["lm"].logits(), out.heads["classes"], out.heads["scale"]

  def whole(params):
    wide = jnp.broadcast_to(jnp.arange(L), x.shape)
    out = apply(params, inputs, read={"lm": None, "scale": None, "classes": wide})
    pick = lambda y, at: jnp.take_along_axis(y, at[:, :, None], axis=1)
    return pick(out.heads["lm"].logits(), at), pick(out.heads["classes"], first), out.heads["scale"]

  loss = lambda found: (sum(jnp.sum(jnp.sin(y)) for y in found), found)
  ours, theirs = (jax.jit(jax.grad(lambda params, f=f: loss(f(params)), has_aux=True))(params) for f in (some, whole))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours[1], theirs[1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4), ours[0], theirs[0])


def test_the_last_block_computes_only_what_is_read():
  _, params, apply = build(layers=1)
  flops = lambda read: jax.jit(lambda p: apply(p, Inputs(tokens(), kind="full"), read=read).heads["lm"].hidden).lower(params).compile()
  few, all_ = (flops(read).cost_analysis()["flops"] for read in ({"lm": jnp.array([[3], [0]])}, {"lm": None}))
  assert few < 0.5 * all_


def test_encoder_decoder_sees_the_whole_source_and_only_it():
  model, params, apply = build(encoder_layers=2)
  x, source = tokens(), tokens(2, 9, seed=1)
  inputs = lambda source, segments=None, own=None: Inputs(x, segments=own, source=Inputs(source, kind="full", segments=segments))
  base = logits(apply, params, inputs(source))
  changed = logits(apply, params, inputs(source.at[:, 8].set((source[:, 8] + 1) % V)))
  assert (jnp.abs(base - changed).max(-1) > 0).all()
  own, mask = jnp.ones_like(x), jnp.ones_like(source).at[:, 8].set(0)
  a, b = (logits(apply, params, inputs(s, mask, own)) for s in (source, source.at[:, 8].set((source[:, 8] + 1) % V)))
  np.testing.assert_array_equal(a, b)  # a padded place of the source is not seen
  memory = model.apply({"params": params}, Inputs(source, kind="full"), method="encode")
  np.testing.assert_allclose(apply(params, inputs(source), read={"lm": None}, memory=memory).heads["lm"].logits(), base, atol=1e-6)


def test_dropout_only_in_training_and_keyed():
  _, params, apply = build(dropout=0.5, attention=grouped.Config(heads=4, dropout=0.5))
  x = tokens()
  run = lambda **kwargs: logits(apply, params, Inputs(x), **kwargs)
  key = jax.random.key(1)
  np.testing.assert_array_equal(run(), run(key=key))
  np.testing.assert_array_equal(run(key=key, train=True), run(key=key, train=True))
  assert jnp.abs(run(key=key, train=True) - run(key=jax.random.key(2), train=True)).max() > 0.1


def test_every_option_has_its_parameters_and_an_effect():
  base = dict(width=16, layers=1)
  shapes = {}
  options = [
      {}, dict(tie_head=False), dict(token_types=2), dict(embed_norm=True), dict(norm="layer", norm_bias=True), dict(norm_place="post"),
      dict(attention=grouped.Config(heads=4, bias=True)), dict(ffn=dense.Config(gated=True)), dict(ffn=dense.Config(hidden=24, bias=True)),
      dict(encoder_layers=1), dict(heads={"lm": HeadConfig(transform=True, bias=True)}),
  ]  # fmt: skip
  for changes in options:
    _, params, _ = build(**{**base, **changes})
    shapes[str(changes)] = frozenset((name, leaf.shape) for name, leaf in named_leaves(params))
  for (a, b), (c, d) in itertools.combinations(shapes.items(), 2):
    assert b != d, f"{a} and {c} make the same parameters"
  model, params, _ = build(width=16, layers=1, attention=grouped.Config(heads=4))
  assert size(params) == V * 16 + 4 * 16 * 16 + 8 * 16 * 16 + 3 * 16  # embedding, attention, feed-forward, three norm scales


def test_initial_deviations():
  cfg = transformer.Config(layers=8, width=64, attention=grouped.Config(heads=4))
  params = nn.unbox(transformer.init(transformer.make(cfg, 500, {"lm": HeadConfig()}, 8), jax.random.key(0)))
  block = params["stack"]["block_3"]
  assert float(params["embed"]["embedding"].std()) == pytest.approx(0.02, rel=0.05)
  assert float(block["feed_forward"]["up"]["kernel"].std()) == pytest.approx(0.02, rel=0.05)
  assert float(block["feed_forward"]["down"]["kernel"].std()) == pytest.approx(0.02 / 4, rel=0.05)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_activations_follow_dtype_and_scores_stay_wide(dtype):
  _, params, apply = build(dtype=dtype)
  out = apply(params, Inputs(tokens()), read={"lm": None})
  assert out.hidden.dtype == dtype and out.heads["lm"].logits().dtype == jnp.float32


def test_a_second_stream_sees_what_its_order_allows_and_not_itself():
  _, params, apply = build(position=relative.Config(), queries=True, attention=grouped.Config(heads=4))
  x = tokens()
  order = jnp.asarray([[4, 2, 0, 1, 3, 5, 6, 7, 8, 9, 10, 11], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]], jnp.int32)
  queries = jnp.asarray([[0, 3, 1], [2, 5, 0]], jnp.int32)
  run = lambda x, queries: apply(params, Inputs(x, order=order, queries=queries, kind="ordered"), read={}).hidden
  base = run(x, queries)
  assert base.shape[1] == L + 3
  np.testing.assert_allclose(base[:, :L], apply(params, Inputs(x, order=order, kind="ordered"), read={}).hidden, atol=2e-6)
  for place in range(L):  # which queries notice that the token at `place` changed
    moved = jnp.abs(run(x.at[:, place].set((x[:, place] + 1) % V), queries) - base)[:, L:].max(-1) > 0
    np.testing.assert_array_equal(moved, order[:, place, None] < jnp.take_along_axis(order, queries, 1))
  alone = jnp.stack([run(x, queries[:, i : i + 1])[:, L] for i in range(3)], axis=1)
  np.testing.assert_allclose(base[:, L:], alone, atol=2e-6)


@pytest.mark.parametrize(
    "scheme,scan,norm_place", [("relative", False, "post"), ("relative", True, "pre"), ("rotary", False, "pre"), ("buckets", False, "post")]
)
def test_rows_after_their_past_equal_the_end_of_the_whole(scheme, scan, norm_place):
  """With causal rows the hidden states of the first half do not depend on the second, so its past is all that the second needs."""
  model, params, apply = build(position=SCHEMES[scheme], scan=scan, norm_place=norm_place, attention=grouped.Config(heads=4))
  x, half = tokens(), L // 2
  whole = apply(params, Inputs(x), read={}).hidden
  empty = jnp.zeros((2, 0, 16))
  past = Past(jnp.stack([empty] * 2) if scan else (empty,) * 2, jnp.zeros((2, 0), jnp.int32))
  first = apply(params, Inputs(x[:, :half]), read={}, past=past)
  before = jnp.broadcast_to(jnp.arange(-half, 0), (2, half))
  second = apply(params, Inputs(x[:, half:]), read={}, past=Past(first.past, before))
  np.testing.assert_allclose(jnp.concatenate([first.hidden, second.hidden], 1), whole, atol=3e-5)
  grads = jax.jit(jax.grad(lambda past: apply(params, Inputs(x[:, half:]), read={}, past=Past(past, before)).hidden.sum()))(first.past)
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_images_as_rows_of_patches():
  heads = {"classes": HeadConfig(kind="vector", pool="first", outputs=3, bias=True)}
  cfg = transformer.Config(layers=1, width=16, attention=grouped.Config(heads=4), position=learned.Config(),
                           patches=patches.Config(height=8, width=12, patch=4, channels=2))  # fmt: skip
  model = transformer.make(cfg, 0, heads, 0)
  params = drawn.parameters(model)
  images = jax.random.normal(jax.random.key(1), (2, 8, 12, 2))
  apply = compiled(model)
  out = apply(params, Inputs(images=images, kind="full"), read={"classes": None})
  whole = apply(params, Inputs(images=images, kind="full"), read={}).hidden
  assert whole.shape == (2, 7, 16) and out.heads["classes"].shape == (2, 1, 3)
  pixels = params["patches"]["pixels"]
  embedded = model.apply({"params": params}, images, method=lambda m, x: m.patches(x))
  np.testing.assert_allclose(embedded[1, 1 + 4], images[1, 4:8, 4:8].reshape(32) @ pixels["kernel"].reshape(32, 16) + pixels["bias"], atol=1e-5)  # row 1, column 1


def test_towers_are_apart_and_share_a_scale():
  small = lambda **changes: transformer.Config(**{"layers": 1, "width": 16, "attention": grouped.Config(heads=4), **changes})
  image = small(position=learned.Config(), patches=patches.Config(height=4, width=4, patch=2))
  heads = {"text": HeadConfig(kind="vector", pool="mean", outputs=8, normalize=True, tower="text"),
           "image": HeadConfig(kind="vector", pool="first", outputs=8, normalize=True, tower="image"),
           "scale": HeadConfig(kind="scale", initial=10.0)}  # fmt: skip
  model = towers.make(towers.Config({"text": small(), "image": image}), V, heads, L)
  params = nn.unbox(jax.jit(transformer.init, static_argnums=0)(model, jax.random.key(0)))
  apply = compiled(model)
  text = apply(params, Inputs(tokens(), kind="full"), read={"text": None, "scale": None}, tower="text").heads
  other = apply(params, Inputs(images=jnp.ones((2, 4, 4, 3)), kind="full"), read={"image": None}, tower="image").heads
  assert text["text"].shape == other["image"].shape == (2, 1, 8) and float(text["scale"]) == pytest.approx(10)
  np.testing.assert_allclose(jnp.linalg.norm(text["text"], axis=-1), 1, rtol=1e-5)
  with pytest.raises(ValueError, match="no tower 'sound'.*text, image"):
    apply(params, Inputs(tokens()), read={}, tower="sound")


def test_a_mean_is_of_the_document_alone():
  _, params, apply = build(heads={"mean": HeadConfig(kind="vector", pool="mean")})
  x = tokens(1)
  segments = jnp.array([[1] * 5 + [2] * 4 + [0] * 3])
  packed = apply(params, Inputs(x, positions=positions_within(segments), segments=segments, kind="full"), read={"mean": jnp.array([[0, 7]])})
  for i, (start, stop) in enumerate(((0, 5), (5, 9))):
    alone = apply(params, Inputs(x[:, start:stop], kind="full"), read={"mean": None}).heads["mean"]
    np.testing.assert_allclose(packed.heads["mean"][0, i], alone[0, 0], atol=2e-5)


def test_relative_positions_belong_to_the_layers_and_serve_shared_keys():
  _, params, apply = build(position=relative.Config(), layers=1, attention=grouped.Config(heads=4, kv_heads=2))
  assert not [name for name, _ in named_leaves(params) if name.startswith("position")]
  _, wide, apply_wide = build(position=relative.Config(), layers=1, attention=grouped.Config(heads=4))
  copied = jax.tree.map(lambda wide, leaf: leaf if wide.shape == leaf.shape else jnp.repeat(leaf, 2, axis=1), wide, params)
  inputs = Inputs(tokens(), types=(tokens() % 2), kind="full")
  np.testing.assert_allclose(apply(params, inputs, read={}).hidden, apply_wide(copied, inputs, read={}).hidden, atol=2e-6)
