"""Names of leaves."""

import numpy as np

from research.core.trees import map_named, match, named_leaves, size

TREE = {"stack": {"block_0": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}}, "head": (np.zeros(()), np.zeros(4))}


def test_names_and_sizes():
  assert dict(named_leaves(TREE)).keys() == {"stack/block_0/kernel", "stack/block_0/bias", "head/0", "head/1"}
  assert size(TREE) == 6 + 3 + 1 + 4
  assert size({"big": np.broadcast_to(np.zeros(1), (1 << 20, 1 << 20))}) == 1 << 40


def test_match_searches_the_whole_name():
  chosen = match(r"block_\d+/kernel$", TREE)
  assert chosen["stack"]["block_0"] == {"kernel": True, "bias": False} and chosen["head"] == (False, False)


def test_map_named_keeps_the_structure():
  named = map_named(lambda name, leaf: (name, leaf.shape), TREE)
  assert named["head"][1] == ("head/1", (4,)) and named["stack"]["block_0"]["bias"] == ("stack/block_0/bias", (3,))
