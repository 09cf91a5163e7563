"""Semantic similarity: does the cosine of two texts' vectors rank pairs as people do? Spearman's correlation × 100.

That is how sentence encoders are compared (Reimers and Gurevych 2019, Sentence-BERT, section 4): Pearson's asks for a straight line between
cosine and score, which nothing promises. The interval is a bootstrap over pairs.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from research.core.errors import UserError
from research.core.types import PyTree
from research.data.sources import files
from research.data.tokenizer import Tokenizer
from research.evals import bootstrap, text_vectors
from research.model.inputs import EMBEDDING


class Config(bootstrap.Settings):
  """As there."""


class Pair(NamedTuple):
  first: str
  second: str
  score: float  # how alike people find them; only the order of scores matters


def make(cfg: Config, model: nn.Module, causal: bool, tokenizer: Tokenizer, around: text_vectors.Around, length: int):
  """(params, pairs) -> ({'spearman': {'value', 'low', 'high'}}, settings).

  A text's vector is what the head 'embedding' gives, or the mean of the last hidden states over all of its tokens, those around the text
  included, where the model has no such head.

  Args:
    causal: the model was trained to see the past only.
    around: ids before and after each text (`text_vectors.surroundings`).
    length: tokens that the model can read; longer texts lose their end, and the settings say how many did.

  Raises:
    UserError: a model of several towers or of images, an encoder–decoder; all pairs alike by people's scores or by the model's.
  """
  own = EMBEDDING in model.heads
  embed = text_vectors.make("similarity", model, causal, tokenizer, around, length, cfg.batch_size, own)

  def evaluate(params: PyTree, pairs: Sequence[Pair]) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    vectors, cut = embed(params, [text for pair in pairs for text in (pair.first, pair.second)])
    scores = summarize(cosines(vectors, pairs), np.array([pair.score for pair in pairs]), cfg.resamples)
    settings = {"embedding": f"head '{EMBEDDING}'" if own else "mean of the last hidden states", "longest": length, "cut": cut}
    return scores, settings

  return evaluate


def cosines(vectors: Mapping[str, np.ndarray], pairs: Sequence[Pair]) -> np.ndarray:
  """The cosine of the two vectors of each pair, float64 [pairs].

  Raises:
    UserError: a vector is zero or not finite.
  """
  for text, vector in vectors.items():
    if not 0 < np.linalg.norm(vector) < np.inf:
      raise UserError(f"the vector of the text {text[:60]!r} is zero or not finite: the model's parameters are no good, take another checkpoint.")
  unit = {text: vector / np.linalg.norm(vector) for text, vector in vectors.items()}
  return np.array([unit[pair.first] @ unit[pair.second] for pair in pairs])


def summarize(cosine: np.ndarray, score: np.ndarray, resamples: int) -> dict[str, dict[str, float]]:
  """Cosines and people's scores [pairs] -> Spearman's correlation × 100 with its interval; resamples of equal values, which have none, are left out.

  Raises:
    UserError: all cosines or all scores are equal.
  """
  from scipy import stats

  for what, values in (("cosines", cosine), ("scores", score)):
    if not np.ptp(values):
      raise UserError(f"all {what} of these {len(values)} pairs are equal, so nothing can be ranked: score other pairs or another model.")
  correlation = lambda rows: 100 * stats.spearmanr(cosine[rows], score[rows]).statistic
  several = [rows for rows in bootstrap.draws(len(score), resamples) if np.ptp(cosine[rows]) and np.ptp(score[rows])]
  return {"spearman": bootstrap.entry(correlation(slice(None)), np.array([correlation(rows) for rows in several]))}


# --- the file ----------------------------------------------------------------------------------------------------------------


def read_pairs(path: str) -> list[Pair]:
  """The pairs of a file: two texts and a score on each line, .csv (quoted where needed) or .tsv (never quoted), plain or .gz; no header.

  Raises:
    UserError: no such file, not UTF-8, cut off, or a line that is not two texts and a number.
  """
  full = files.resolved(path)
  ending = os.path.splitext(full.removesuffix(".gz"))[1].lower()
  if ending not in (".csv", ".tsv"):
    raise UserError(f"--data={path}: pairs are read from .csv or .tsv files (also .gz), with two texts and a score on each line.")
  if not os.path.isfile(full):
    raise UserError(f"--data={path}: there is no such file.")
  pairs = []
  try:
    with files.opened(full) as file:
      quoting = {"strict": True} if ending == ".csv" else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
      reader = csv.reader(file, **quoting)
      for fields in reader:
        if fields:
          pairs.append(_pair(fields, f"{path}, line {reader.line_num}"))
  except csv.Error as error:
    raise UserError(f"{path}, line {reader.line_num}: {error}; mend its quotes.") from error
  if len(pairs) < 2:
    raise UserError(f"{path} holds {len(pairs)} pairs: name a file that holds at least two.")
  return pairs


def _pair(fields: Sequence[str], where: str) -> Pair:
  try:
    first, second, number = fields
    score = float(number)
  except ValueError as error:
    raise UserError(f"{where}: two texts and a number are expected, there are {len(fields)} fields ({', '.join(map(repr, fields))[:100]}); mend or "
                    "leave out that line.") from error  # fmt: skip
  if not math.isfinite(score) or not first.strip() or not second.strip():
    raise UserError(f"{where}: {'the score is no finite number' if not math.isfinite(score) else 'a text is empty'}; mend or leave out that line.")
  return Pair(first, second, score)
