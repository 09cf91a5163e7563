"""A research framework for Transformer pretraining in which the objective is the variable."""

__version__ = "0.1.0"
