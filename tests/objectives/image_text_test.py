"""Images and captions: CLIP's loss as transformers computes it, SigLIP's against a double loop, crops and flips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core import config as configs
from research.core.config import use
from research.model import transformer
from research.model.inputs import Output
from tests.contracts import common
from tests.contracts.common import corrupted
from tests.hf.common import Case, make_pair, quick, reference

KEY = jax.random.key(4)
STACK = dict(hidden_size=24, intermediate_size=20, num_hidden_layers=1, num_attention_heads=3, hidden_act="quick_gelu")
CLIP = dict(
    projection_dim=9, logit_scale_init_value=2.0, text_config=dict(**STACK, vocab_size=40, max_position_embeddings=16, eos_token_id=39, pad_token_id=0, bos_token_id=1),
    vision_config=dict(**STACK, image_size=8, patch_size=4, num_channels=3),
)  # fmt: skip


def test_the_loss_is_that_of_clip(tmp_path):
  torch, _ = reference()
  pair = make_pair(Case("clip", "CLIPModel", "CLIPConfig", CLIP), tmp_path)
  objective = configs.make(configs.typed(use("objectives.image_text", height=8, width=8, outputs=9, scale=float(np.exp(2.0)))), common.vocab(), 16)
  assert dict(pair.loaded.described.heads) == dict(objective.heads)  # so that its checkpoints import into this objective's model
  batch = common.batch(objective, 5)
  tokens, segments = batch.rows["tokens"] % 39, (batch.rows["segments"] > 0).astype(np.int32)
  ends = segments.sum(1) - 1
  tokens[np.arange(5), ends] = 39  # where transformers reads a text
  batch = batch._replace(rows={**batch.rows, "tokens": tokens})
  example = corrupted(objective, KEY, batch, 0)
  terms, metrics = quick(lambda params: objective.loss(transformer.bind(pair.loaded.model), params, example, None, False))(pair.loaded.params)
  pixels = (batch.rows["images"].astype(np.float32) / 255 - 0.5) / 0.5
  with torch.no_grad():
    theirs = pair.theirs(
        input_ids=torch.tensor(tokens, dtype=torch.long), attention_mask=torch.tensor(segments, dtype=torch.long),
        pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)), return_loss=True,
    )  # fmt: skip
  assert float(terms["image_text"].value()) == pytest.approx(float(theirs.loss), abs=1e-4) and float(theirs.loss) > 0.1
  assert float(metrics["scale"].value()) == pytest.approx(float(pair.theirs.logit_scale.detach().exp()), rel=1e-5)


def test_the_sigmoid_loss_is_that_of_a_double_loop():
  objective = common.objective_of("image_text", form="sigmoid", scale=10.0)
  rng = np.random.default_rng(0)
  vectors = {name: rng.standard_normal((5, 8)) / 3 for name in ("image", "text")}
  learned = {"scale": jnp.float32(10.0), "bias": jnp.float32(10.0)}

  def apply(params, inputs, *, read, **_):
    (name, *_) = read
    return Output(learned if name in learned else {name: jnp.asarray(vectors[name])[:, None]}, None, None, None, {}, {})

  example = corrupted(objective, KEY, common.batch(objective, 5)._replace(valid=np.arange(5) < 4), 0)
  terms, _ = objective.loss(apply, None, example, None, False)
  expected = 0.0
  for i in range(4):
    for j in range(4):
      z = 10.0 * float(vectors["image"][i] @ vectors["text"][j]) - 10.0
      expected += np.log1p(np.exp(-z if i == j else z))
  assert float(terms["image_text"].total) == pytest.approx(expected, rel=1e-5) and float(terms["image_text"].weight) == 4


def test_a_crop_is_a_window_of_the_image_and_may_be_mirrored():
  objective = common.objective_of("image_text", mean=(0.0,) * 3, deviation=(1.0,) * 3)
  batch = common.batch(objective, 64)
  seen = np.asarray(corrupted(objective, KEY, batch, 0).inputs.images) * 255
  places = []
  for image, whole in zip(seen, batch.rows["images"]):
    fits = [(top, left, flip) for top in range(3) for left in range(3) for flip in (1, -1)
            if np.abs(image[:, ::flip] - whole[top : top + 8, left : left + 8]).max() < 1e-3]  # fmt: skip
    assert len(fits) == 1
    places += fits
  assert len(set(places)) > 14  # of eighteen, drawn 64 times
  plain = common.objective_of("image_text", crop=0, flip=False)
  rows = {**batch.rows, "images": batch.rows["images"][:, :8, :8]}
  np.testing.assert_allclose(corrupted(plain, KEY, batch._replace(rows=rows), 0).inputs.images, rows["images"] / 127.5 - 1, atol=1e-6)


def test_a_text_is_read_where_it_ends():
  objective = common.objective_of("image_text")
  batch = common.batch(objective, 6)
  np.testing.assert_array_equal(corrupted(objective, KEY, batch, 0).positions["image_text"][:, 0], (batch.rows["segments"] > 0).sum(1) - 1)
