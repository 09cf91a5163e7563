"""Linear probing: how much of a text's label can a linear classifier read off the frozen model?

The vector of a text is the mean of the last hidden states, whatever the model was trained for, so that models of unlike objectives are asked alike (Conneau et al. 2018,
What you can cram into a single $&!#* vector). A multinomial logistic regression is fitted to the vectors of four fifths of the records, each number of the vector
scaled to variance 1 there, and scored on the others; equal texts stay together. How much its weights are held back (L2) is chosen within the four fifths.

Accuracy × 100 with a bootstrap over the scored records; the settings tell what the most frequent class would have.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from research.core.errors import UserError
from research.core.types import PyTree
from research.data import tables
from research.data.tokenizer import Tokenizer
from research.evals import bootstrap, text_vectors

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # of the squared weights, beside the mean loss
LEAST = 10  # texts, of which two are scored
STEPS = 500  # of L-BFGS, at most


@dataclasses.dataclass(frozen=True)
class Config(bootstrap.Settings):
  seed: int = 0  # of the division of the records


class Labelled(NamedTuple):
  text: str
  label: str


def make(cfg: Config, model: nn.Module, causal: bool, tokenizer: Tokenizer, around: text_vectors.Around, length: int):
  """(params, records) -> ({'accuracy': {'value', 'low', 'high'}}, settings). Arguments and errors as of `text_vectors.make`."""
  embed = text_vectors.make("probing", model, causal, tokenizer, around, length, cfg.batch_size, own=False)

  def evaluate(params: PyTree, records: Sequence[Labelled]) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    found, cut = embed(params, [record.text for record in records])
    vectors = np.array([found[record.text] for record in records])
    if not np.isfinite(vectors).all():
      raise UserError("the vectors of the texts are not finite: the model's parameters are no good, take another checkpoint.")
    names = sorted({record.label for record in records})
    labels = np.array([names.index(record.label) for record in records])
    texts = {text: i for i, text in enumerate(found)}
    right, settings = probe(vectors, labels, np.array([texts[record.text] for record in records]), cfg.seed)
    mean = lambda rows: 100 * float(right[rows].mean())
    resampled = np.array([mean(rows) for rows in bootstrap.draws(len(right), cfg.resamples)])
    return {"accuracy": bootstrap.entry(mean(slice(None)), resampled)}, {**settings, "longest": length, "cut": cut}

  return evaluate


def probe(vectors: np.ndarray, labels: np.ndarray, texts: np.ndarray, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
  """Vectors [N, D], labels and the number of each record's text [N] -> for each scored record 1 or 0, and what there is to say. Equal texts stay in one part."""
  classes, several = int(labels.max()) + 1, int(texts.max()) + 1
  order = np.random.default_rng(seed).permutation(several)
  test, held, fitted = (np.flatnonzero(np.isin(texts, part)) for part in np.split(order, [several // 5, several // 5 + (several - several // 5) // 5]))
  train = np.concatenate([held, fitted])
  hits = lambda rows, weights, scale: (_scaled(vectors[rows], scale) @ weights).argmax(1) == labels[rows]

  def fit(rows, penalty):
    scale = vectors[rows].mean(0), np.maximum(vectors[rows].std(0), 1e-12)
    return logistic(_scaled(vectors[rows], scale), labels[rows], classes, penalty), scale

  penalty = max(PENALTIES, key=lambda penalty: (hits(held, *fit(fitted, penalty)).mean(), penalty))
  right = hits(test, *fit(train, penalty)).astype(np.float64)
  frequent = Counter(labels[train].tolist()).most_common(1)[0][0]
  return right, {"classes": classes, "trained_on": len(train), "scored": len(test), "majority": round(100 * float((labels[test] == frequent).mean()), 2), "l2": penalty}


def _scaled(vectors: np.ndarray, scale: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
  """With a 1 at the end of each, whose weight is the bias."""
  return np.c_[(vectors - scale[0]) / scale[1], np.ones(len(vectors))]


def logistic(x: np.ndarray, labels: np.ndarray, classes: int, penalty: float) -> np.ndarray:
  """The weights [D, classes] of a multinomial logistic regression: least mean cross-entropy and `penalty` / 2 times the squared weights but the last row's, the bias."""
  from scipy import optimize, special

  target = np.eye(classes)[labels]
  held = np.full((x.shape[1], 1), penalty)
  held[-1] = 0.0

  def loss(flat):
    weights = flat.reshape(-1, classes)
    log_p = special.log_softmax(x @ weights, axis=1)
    value = -(target * log_p).sum() / len(x) + (held * weights**2).sum() / 2
    return value, (x.T @ (np.exp(log_p) - target) / len(x) + held * weights).ravel()

  return optimize.minimize(loss, np.zeros(x.shape[1] * classes), jac=True, method="L-BFGS-B", options={"maxiter": STEPS}).x.reshape(-1, classes)


def read_records(path: str) -> list[Labelled]:
  """The records of a file: a text and its label in the first two columns of a .tsv or .csv file, or 'text' and 'label' of JSON lines, plain or .gz; no header.

  Raises:
    UserError: no such file, damaged, or too few texts or labels in it.
  """
  keys = {"first": "text", "label": "label"} if ".json" in path else {"first": 0, "label": 1}
  records = [Labelled(record["first"], record["label"]) for record in tables.read((path,), tables.Form("auto", False, keys))]
  texts, labels = (len({getattr(record, name) for record in records}) for name in Labelled._fields)
  if texts < LEAST or labels < 2:
    raise UserError(f"--data={path} holds {texts} different texts of {labels} labels: probing needs at least {LEAST} of two.")
  return records
