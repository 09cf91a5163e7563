"""The peer's side: Hugging Face transformers on PyTorch, as its users run it on a CPU (sdpa attention, fused AdamW).

  python -m benchmarks.workers.hf train SHAPE [compile]
  python -m benchmarks.workers.hf decode SHAPE [static]

Needs torch and transformers, and nothing of this package but `benchmarks`.
"""

from __future__ import annotations

from benchmarks.workers import channel

if __name__ == "__main__":
  channel.own_stdout()

import math
import os
import sys
import time

import numpy as np
import torch
import transformers

from benchmarks.shapes import SHAPES, Shape

IGNORED = -100  # the label of a place that is not predicted
MASK = 1


def model_of(shape: Shape) -> transformers.PreTrainedModel:
  if shape.kind == "decoder":
    cfg = transformers.GPT2Config(
        vocab_size=shape.vocab, n_positions=shape.length, n_embd=shape.width, n_layer=shape.layers, n_head=shape.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa", bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(cfg)
  cfg = transformers.BertConfig(
      vocab_size=shape.vocab, hidden_size=shape.width, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
      intermediate_size=4 * shape.width, max_position_embeddings=shape.length, hidden_dropout_prob=0.0,
      attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
  )  # fmt: skip
  return transformers.BertForMaskedLM(cfg)


def batch_of(shape: Shape, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
  """Tokens and labels. A masked LM's are masked here, before the clock starts."""
  tokens = rng.integers(2, shape.vocab, (shape.batch, shape.length))
  labels = tokens
  if shape.kind == "masked_lm":
    order = np.argsort(rng.random(tokens.shape), axis=1)
    predicted = order < shape.places
    fate = rng.random(tokens.shape)
    shown = np.where(fate < 0.8, MASK, np.where(fate < 0.9, rng.integers(2, shape.vocab, tokens.shape), tokens))
    tokens, labels = np.where(predicted, shown, tokens), np.where(predicted, tokens, IGNORED)
  return torch.from_numpy(tokens), torch.from_numpy(labels)


def train(shape: Shape, compiled: bool) -> None:
  model = model_of(shape).train()
  parameters = sum(p.numel() for p in model.parameters())
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
  kwargs = {"use_cache": False} if shape.kind == "decoder" else {}
  forward = torch.compile(model) if compiled else model
  rng = np.random.default_rng(0)

  def run(count: int) -> list[float]:
    times = []
    for _ in range(count):
      tokens, labels = batch_of(shape, rng)
      start = time.perf_counter()
      loss = forward(input_ids=tokens, labels=labels, **kwargs).loss
      loss.backward()
      optimizer.step()
      optimizer.zero_grad(set_to_none=True)
      if not math.isfinite(loss.item()):
        raise FloatingPointError("the loss is not finite")
      times.append(time.perf_counter() - start)
    return times

  started = {"parameters": parameters, "first_step": run(1)[0]}
  channel.serve(started, lambda steps: {"seconds": run(1 + steps)[1:]})  # the first after the sleep is slower


def decode(shape: Shape, static: bool) -> None:
  model = model_of(shape).eval()
  kwargs = {"cache_implementation": "static"} if static else {}
  rng = np.random.default_rng(0)

  def turn(calls: int, batch: int, prompt: int, limit: int):
    times = []
    for _ in range(calls):
      prompts = torch.from_numpy(rng.integers(2, shape.vocab, (batch, prompt)))
      start = time.perf_counter()
      tokens = model.generate(
          prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=limit, min_new_tokens=limit, pad_token_id=0, **kwargs
      )
      times.append(time.perf_counter() - start)
    return {"seconds": times, "tokens": [tokens.shape[0], tokens.shape[1] - prompt]}

  channel.serve({"parameters": sum(p.numel() for p in model.parameters())}, turn)


if __name__ == "__main__":
  torch.set_num_threads(os.cpu_count())
  {"train": train, "decode": decode}[sys.argv[1]](SHAPES[sys.argv[2]], len(sys.argv) > 3)
