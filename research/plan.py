"""Compiles the real training step for chips that one does not have, and says what a step costs there.

  python -m research.plan --config=configs/llama.py:3_8b --topology=v5p:4x4x4 --config.mesh.fsdp=64 [--config.batch_size=64 …] [--json]
  python -m research.plan --config=configs/gpt2.py --topology=v5e:4x4 --search --batches=64,128

Topologies are v5e:16x16, v5p:4x4x8, v6e:…, v4:…, tpu7x:… (libtpu is the compiler, no TPU is needed), gpu:1, GPUs of this machine, and cpu:8, simulated
devices. No data is read. A step's time is the largest of three floors: operations at the chip's peak, bytes through its memory, bytes over its links; for
simulated devices, which do all of it on the same cores, their sum. A real step is slower.
"""

from __future__ import annotations

import json
import os

from absl import flags

from research.core import startup
from research.core.errors import UserError, command
from research.core.flags import parse
from research.core.overrides import load

FLAGS = flags.FlagValues()
flags.DEFINE_string("config", None, "config file, with :argument where it takes one", flag_values=FLAGS)
flags.DEFINE_string("topology", None, "chip and shape, such as v5e:16x16 or cpu:8", flag_values=FLAGS)
flags.DEFINE_integer("vocab_size", None, "entries of the vocabulary, where the config of the tokenizer does not tell", flag_values=FLAGS)
flags.DEFINE_boolean("json", False, "print JSON", flag_values=FLAGS)
flags.DEFINE_boolean("search", False, "rank meshes, rematerialisation and batch sizes by predicted step time", flag_values=FLAGS)
flags.DEFINE_list("axes", ["data", "fsdp", "tensor"], "mesh axes that --search tries", flag_values=FLAGS)
flags.DEFINE_list("remat", [], "rematerialisations that --search tries (none, dots, full); default: the config's", flag_values=FLAGS)
flags.DEFINE_list("batches", [], "batch sizes that --search tries; default: the config's", flag_values=FLAGS)


def main(arguments: list[str]) -> int:
  overrides = parse(arguments, FLAGS, __doc__)
  for name in ("config", "topology"):
    if not getattr(FLAGS, name):
      raise UserError(f"--{name} is missing: " + {"config": "name a config file, such as configs/gpt2.py:124m.", "topology": "name chips, such as v5e:4x4 or cpu:8."}[name])
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # the partitioner's warnings are read
  startup.quiet()
  from research.parallel import topology

  topology.prepare(FLAGS.topology)
  from research.core import config as configs
  from research.training import planning, search

  target = topology.make(FLAGS.topology)
  if FLAGS.search:
    tried = search.run(FLAGS.config, overrides, target, FLAGS.vocab_size, FLAGS.axes, FLAGS.remat, [_number(text) for text in FLAGS.batches],
                       (lambda line: None) if FLAGS.json else print)  # fmt: skip
    print(json.dumps([t.record() for t in tried], indent=2) if FLAGS.json else search.table(tried))
    return 0
  plan = planning.make(configs.typed(load(FLAGS.config, overrides)), target, FLAGS.vocab_size)
  print(json.dumps(plan.record(), indent=2) if FLAGS.json else plan.page())
  return 0


def _number(text: str) -> int:
  if not text.isdigit() or int(text) < 1:
    raise UserError(f"--batches={text}: write numbers of rows, such as 64,128.")
  return int(text)


if __name__ == "__main__":
  command(main)
