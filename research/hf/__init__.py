"""Hugging Face checkpoints in and out: `research.hf.load(folder)` gives (model, params, tokenizer), `export` writes a folder."""

from research.hf.loading import export, load

__all__ = ["export", "load"]
