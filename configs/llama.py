"""Llama (Touvron et al. 2023, Llama 2, section 2.2; Llama 3: Dubey et al. 2024, table 3) and Mistral 7B (Jiang et al. 2023).

  command   python -m research.train --config=configs/llama.py:2_7b --workdir=runs/llama --config.data.sources.text.paths=CORPUS
  sizes     2_7b, 2_13b, 2_70b, 3_8b, 3_70b, mistral_7b; tiny, for a laptop

Steps are those of two trillion tokens (Llama 2); of Mistral and Llama 3 the papers tell no or another schedule, and Llama 2's is taken. All but
tiny scan their blocks and compute in bfloat16.
"""

from research.core.config import use

LLAMA3 = dict(base=500_000.0, vocab_size=128256, length=8192)
SIZES = {  # layers, width, query heads, key/value heads, inner width; and what differs from Llama 2
    "tiny": (4, 128, 4, 2, 352, dict(peak=1e-3, length=128, vocab_size=1024)),
    "2_7b": (32, 4096, 32, 32, 11008, dict(peak=3e-4)),
    "2_13b": (40, 5120, 40, 40, 13824, dict(peak=3e-4)),
    "2_70b": (80, 8192, 64, 8, 28672, dict(peak=1.5e-4)),
    "3_8b": (32, 4096, 32, 8, 14336, dict(peak=3e-4, **LLAMA3)),
    "3_70b": (80, 8192, 64, 8, 28672, dict(peak=1.5e-4, **LLAMA3)),
    "mistral_7b": (32, 4096, 32, 8, 14336, dict(peak=3e-4, window=4096, length=8192)),
}


def get_config(size: str = "tiny"):
  layers, width, heads, kv_heads, hidden, differs = SIZES[size]
  length = differs.get("length", 4096)
  return use(
      "training.experiment",
      steps=500_000 if size != "tiny" else 1000,
      batch_size=4_194_304 // length if size != "tiny" else 32,
      data=use(
          "data.text",
          sources={"text": use("data.sources.files", documents="paragraph")},
          tokenizer=use("data.tokenizer", vocab_size=differs.get("vocab_size", 32000)),
          length=length,
      ),
      model=use(
          "model.transformer",
          layers=layers,
          width=width,
          attention=use("model.attention.grouped", heads=heads, kv_heads=kv_heads, window=differs.get("window")),
          ffn=use("model.ffn.dense", hidden=hidden, activation="silu", gated=True),
          position=use("model.position.rotary", base=differs.get("base", 10000.0)),
          epsilon=1e-5,
          tie_head=False,
          scan=size != "tiny",
          remat="dots" if size != "tiny" else "none",
          dtype="bfloat16" if size != "tiny" else "float32",
      ),
      objective=use("objectives.causal_lm"),
      optimizer=use(
          "optim.optimizer",
          epsilon=1e-5,
          schedule=use("optim.schedule", peak=differs["peak"], warmup=2000 if size != "tiny" else 100, shape="cosine", end=0.1),
      ),
      evaluate=use("training.evaluation", every=1000 if size != "tiny" else 250),
      checkpoint=use("training.checkpoint", every=1000 if size != "tiny" else 500),
  )
