"""Decoders against numbers of transformers kept in files, so that the comparison runs where neither it nor torch is."""

import jax
import numpy as np
import pytest

from research.hf import files, loading
from research.hf.family import resolved
from tests.hf import common

DECODERS = [path.name for path in sorted(common.GOLDEN.iterdir()) if "logits" in np.load(path / "expected.npz")] if common.GOLDEN.is_dir() else []


def test_there_are_golden_decoders():
  assert {"gpt2", "llama", "mistral"} <= set(DECODERS)


@pytest.mark.parametrize("name", DECODERS)
def test_logits(name):
  folder, expected = common.golden(name)
  common.close(common.our_logits(loading.load_model(folder), expected["tokens"]), expected["logits"])


@pytest.mark.parametrize("name", DECODERS)
def test_export_is_the_inverse(name, tmp_path):
  folder, _ = common.golden(name)
  loaded = loading.load_model(folder)
  loading.export(str(tmp_path), loaded.model, loaded.params, loaded.family.name)
  before, after = files.Folder(folder), files.Folder(str(tmp_path))
  assert after.tensors == before.tensors
  for tensor in before.tensors:
    assert after.read(tensor).tobytes() == before.read(tensor).tobytes()
  again = loading.load_model(str(tmp_path))
  sizes = lambda model: resolved(model.described.cfg, model.described.length)
  assert sizes(again) == sizes(loaded)
  jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)
