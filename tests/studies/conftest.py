"""What a step of a model costs is counted once for all tests."""

import pytest

from research.studies import runs


@pytest.fixture(scope="session", autouse=True)
def each_model_is_traced_once():
  made, kept = runs.step_cost, {}

  def once(cfg, known):
    key = repr((cfg, known.vocab.size))
    if key not in kept:
      kept[key] = made(cfg, known)
    return kept[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(runs, "step_cost", once)
    yield
