"""Writes the golden folders: for each family a tiny model of transformers and what it computes, a few kB each.

  python -m tests.hf.make_golden [name …]        needs torch and transformers

A family adds an entry to ENTRIES: a Case, and a function of (model, case) that gives the arrays to keep: `tokens` and `logits` for a decoder
(tests/hf/golden_test.py compares these), others as its own test reads them.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.hf import bart_test, bert_test, common, seq2seq, t5_test, vision_test, xlnet_test
from tests.hf.common import Case


def decoder(model: Any, case: Case) -> dict[str, np.ndarray]:
  """Two rows of tokens and their logits."""
  import torch

  tokens = common.rows(case.config["vocab_size"], length=8)
  with torch.no_grad():
    return {"tokens": tokens, "logits": model(input_ids=torch.tensor(tokens, dtype=torch.long)).logits.numpy()}


TINY = dict(vocab_size=19, bos_token_id=0, eos_token_id=0)
LLAMA = TINY | dict(hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64)
LLAMA3 = dict(rope_theta=500.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=24)

ENTRIES: dict[str, tuple[Case, Callable[[Any, Case], dict[str, np.ndarray]]]] = {
    case.name: (case, arrays)
    for case, arrays in [
        (Case("gpt2", "GPT2LMHeadModel", "GPT2Config", TINY | dict(n_embd=9, n_head=3, n_layer=2, n_positions=16)), decoder),
        (Case("llama", "LlamaForCausalLM", "LlamaConfig", LLAMA | dict(rope_parameters=LLAMA3)), decoder),
        (Case("mistral", "MistralForCausalLM", "MistralConfig", LLAMA | dict(sliding_window=3, tie_word_embeddings=True)), decoder),
        *((case, bert_test.golden_arrays) for case in bert_test.GOLDEN),
        *((case, seq2seq.golden_arrays) for case in t5_test.GOLDEN),
        *((case, bart_test.golden_arrays) for case in bart_test.GOLDEN),
        (xlnet_test.GOLDEN, xlnet_test.golden_arrays),
        (vision_test.GOLDEN_VIT, vision_test.golden_vit),
        (vision_test.GOLDEN_CLIP, vision_test.golden_clip),
    ]
}


def main(names: list[str]) -> None:
  for name in names or ENTRIES:
    case, arrays = ENTRIES[name]
    shutil.rmtree(common.GOLDEN / name, ignore_errors=True)
    model = common.make_theirs(case)
    common.write_golden(name, model, arrays(model, case))
    print(f"{name}: {sum(file.stat().st_size for file in (common.GOLDEN / name).iterdir()):,} bytes")


if __name__ == "__main__":
  main(sys.argv[1:])
