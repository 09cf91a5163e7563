"""Every key of an experiment at its default: tiny Shakespeare, a byte-pair vocabulary, a small decoder, causal language modelling.

Recipes derive from it by changing lines, so that the relation stays visible.
"""

from research.core.config import use


def get_config():
  return use("training.experiment")
