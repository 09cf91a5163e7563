"""Recall@k against a loop over every row, and through the command."""

import numpy as np
import pytest

from research import evaluate
from research.core.errors import UserError
from research.core.overrides import load
from research.evals import retrieval
from research.training import loop
from tests.contracts import common


def test_recall_is_that_of_a_loop():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(40, 5)), rng.normal(size=(40, 5))
  b[:20] += a[:20]
  b[7] = b[3]  # a tie counts as found after the other
  scores = retrieval.recalls({"text": b, "image": a}, 200)
  for name, queries, keys in (("image_to_text", a, b), ("text_to_image", b, a)):
    for k in retrieval.KS:
      hits = []
      for i in range(40):
        own = queries[i] @ keys[i]
        hits.append(sum(queries[i] @ keys[j] >= own for j in range(40) if j != i) < k)
      found = scores[f"{name}@{k}"]
      assert found["value"] == pytest.approx(100 * np.mean(hits)) and found["low"] <= found["value"] <= found["high"]
  assert 0 < scores["image_to_text@1"]["value"] < scores["image_to_text@10"]["value"]


@pytest.mark.parametrize("name, fits", [("image_text", True), ("contrastive", False), ("causal_lm", False), ("classification", False)])
def test_objectives_that_give_two_vectors(name, fits):
  objective = common.objective_of(name)
  assert retrieval.fits(objective) == fits
  if not fits:
    with pytest.raises(UserError, match="two vectors"):
      retrieval.make(retrieval.Config(), objective)
  assert retrieval.fits(common.objective_of("contrastive", texts=2))


@pytest.mark.usefixtures("one_device")
def test_command(run, tmp_path):
  for name in ("a", "b"):
    (tmp_path / f"{name}.txt").write_text("".join(f"{name} {i} of twelve\n" for i in range(12)))
  (tmp_path / "tiny.py").write_text(f"""
from research.core.config import use
def get_config():
  files = ({str(tmp_path / "a.txt")!r}, {str(tmp_path / "b.txt")!r})
  return use("training.experiment", steps=2, batch_size=4, data=use("data.groups", train=files, valid=files, tokenizer=use("data.tokenizer", kind="byte"), length=16),
             model=use("model.transformer", layers=1, width=16, attention=use("model.attention.grouped", heads=2)), objective=use("objectives.contrastive", texts=2),
             optimizer=use("optim.optimizer", schedule=use("optim.schedule", warmup=1)), log=use("training.monitor", tensorboard=False))
""")
  loop.train(load(str(tmp_path / "tiny.py")), str(tmp_path / "run"), lambda line: None)
  status, out, err = run(evaluate, f"--workdir={tmp_path / 'run'}")
  assert status == 0 and "anchor_to_positive@1" in out and "chance @1 8.33, @5 41.67, @10 83.33" in out, (out, err)
