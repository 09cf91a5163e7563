"""Memory that importing a checkpoint takes, over the size of its tensors.

  python -m benchmarks.import_memory [gigabytes]

Writes a random Llama folder to a temporary place and imports it in fresh processes: onto one device, onto a mesh of eight simulated ones, and
by the command `convert import`, which saves it as a run too.
On a CPU the parameters themselves lie in the process, so 1.0 is the least.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile

VOCAB, WIDTH, HIDDEN = 32000, 2048, 5632  # of TinyLlama


def write(folder: str, gigabytes: float) -> int:
  """A folder of float32 tensors with as many layers as fit; returns their bytes."""
  import numpy as np

  from research.hf import files

  layer = {"input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,), "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (256, WIDTH),
           "self_attn.v_proj": (256, WIDTH), "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (HIDDEN, WIDTH), "mlp.up_proj": (HIDDEN, WIDTH),
           "mlp.down_proj": (WIDTH, HIDDEN)}  # fmt: skip
  shapes = {"model.embed_tokens.weight": (VOCAB, WIDTH), "lm_head.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,)}
  size = lambda shapes: 4 * sum(int(np.prod(shape)) for shape in shapes.values())
  layers = max(1, int((gigabytes * 1e9 - size(shapes)) / size(layer)))
  shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in layer.items()}
  rng = np.random.default_rng(0)
  make = lambda shape: lambda: rng.standard_normal(shape, np.float32)
  tensors = [files.Written(name, shape, "float32", make(shape)) for name, shape in shapes.items()]
  config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": HIDDEN,
            "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 4}  # fmt: skip
  files.write(folder, config, tensors, shard_bytes=700_000_000)
  _write_tokenizer(os.path.join(folder, "tokenizer.json"))
  return size(shapes)


def _write_tokenizer(path: str) -> None:
  """The 256 bytes."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers

  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
  vocabulary.pre_tokenizer, vocabulary.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
  vocabulary.save(path)


def measure(folder: str, fsdp: int, workdir: str = "") -> None:
  """In a process of its own: imports, and prints the peak of resident memory."""
  import jax

  from research import convert
  from research.hf import loading
  from research.parallel import mesh as meshes

  before, found = _peak(), fsdp
  if workdir:
    convert.import_folder(folder, workdir, say=lambda line: None)
  else:
    mesh = None if fsdp == 1 else meshes.make(meshes.Config(data=1, fsdp=fsdp))
    params = jax.block_until_ready(loading.load_model(folder, mesh).params)
    found = len(jax.tree.leaves(params)[0].sharding.device_set)
  print(json.dumps({"devices": found, "before": before, "peak": _peak()}))


def _peak() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(arguments: list[str]) -> None:
  if arguments[:1] == ["--measure"]:
    return measure(arguments[1], int(arguments[2]), *arguments[3:])
  with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
    child = "from benchmarks.import_memory import write; import sys; print(write(sys.argv[1], float(sys.argv[2])))"
    size = int(subprocess.run([sys.executable, "-c", child, folder, arguments[0] if arguments else "2"], check=True, capture_output=True, text=True).stdout)
    print(f"{size / 1e9:.2f} GB of tensors\n{'':<16}{'devices':>8}{'before import':>16}{'peak':>12}{'peak / tensors':>17}")
    for name, fsdp, more in (("load", 1, []), ("load", 8, []), ("convert import", 1, [os.path.join(other, "run")])):
      environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={fsdp}"}
      done = subprocess.run([sys.executable, "-m", "benchmarks.import_memory", "--measure", folder, str(fsdp), *more], env=environment, check=True,
                            capture_output=True, text=True)  # fmt: skip
      found = json.loads(done.stdout.splitlines()[-1])
      row = f"{name:<16}{found['devices']:>8}{found['before'] / 1e6:>13,.0f} MB{found['peak'] / 1e6:>9,.0f} MB{found['peak'] / size:>17.2f}"
      print(row, flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])
