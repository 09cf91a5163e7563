"""Every recipe at its real sizes, compiled for the chips it would be trained on: `benchmarks/atlas.json` and the table `benchmarks/atlas.md`.

  python -m benchmarks.atlas                    compiles all and writes both files (needs libtpu; no TPU)
  python -m benchmarks.atlas --only=llama,gpt2  those whose name begins so; the other entries stay as they are
  python -m benchmarks.atlas --check            compiles and compares with the file: exit status 1 where anything differs, or is not in it

Memory, operations and collectives are read from the compiled step. Times are floors (research/plan.py), measured on no chip. What the compiler decides may
differ by 2 % before it counts as another; what the recipe says may not differ at all.
"""

from __future__ import annotations

import concurrent.futures
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from absl import flags

from research.core.errors import UserError, command
from research.core.flags import parse
from research.data import tokenizer

HERE = pathlib.Path(__file__).parent
FILE, PAGE = HERE / "atlas.json", HERE / "atlas.md"
FLAGS = flags.FlagValues()
flags.DEFINE_boolean("check", False, "compare with the file instead of writing it", flag_values=FLAGS)
flags.DEFINE_list("only", [], "beginnings of entries' names, such as 'llama.py:3_8b on v5p'", flag_values=FLAGS)
flags.DEFINE_integer("jobs", 2, "compilations at a time", lower_bound=1, flag_values=FLAGS)

FULL = ("model.remat=full",)
# On v5p `fsdp` is 16, two dimensions of the torus: along all three the compiler gathers parameters by reducing, which sends twice as much.
ENTRIES: dict[tuple[str, str], tuple[str, ...]] = {  # (recipe, topology) -> what is changed of it, as in --config.KEY=VALUE
    ("llama.py:3_8b", "v5p:4x4x4"): ("mesh.fsdp=16", "microbatches=8", *FULL),
    ("llama.py:3_8b", "v5e:16x16"): ("mesh.fsdp=64", "mesh.tensor=4", "microbatches=8", *FULL),
    ("llama.py:3_8b", "v5e:4x4"): ("mesh.fsdp=16", "microbatches=8", *FULL),  # more than these chips hold
    ("llama.py:3_70b", "v5p:4x8x8"): ("mesh.fsdp=64", "mesh.tensor=4", "microbatches=8", *FULL),
    ("llama.py:2_7b", "v5e:16x16"): ("mesh.fsdp=256", "microbatches=4", *FULL),
    ("gpt2.py:124m", "v5e:4x4"): ("microbatches=3", "model.dtype=bfloat16", "model.scan=True", "model.remat=dots"),
    ("gpt2.py:355m", "v5e:4x4"): ("mesh.fsdp=16", "microbatches=3", *FULL),
    ("gpt2.py:774m", "v5e:4x4"): ("mesh.fsdp=16", "microbatches=6", *FULL),
    ("gpt2.py:1558m", "v5e:4x4"): ("mesh.fsdp=16", "microbatches=6", *FULL),
    ("bert.py:base", "v5e:4x4"): ("model.dtype=bfloat16", "model.scan=True", "model.remat=dots"),
    ("bert.py:large", "v5e:4x4"): ("mesh.fsdp=16",),
    ("roberta.py:large", "v5e:8x8"): ("mesh.fsdp=64", "microbatches=4", *FULL),
    ("xlnet.py:base", "v5e:8x8"): ("microbatches=8", "model.dtype=bfloat16", "model.scan=True", *FULL),
    ("xlnet.py:large", "v5e:8x8"): ("mesh.fsdp=64", "microbatches=16", *FULL),
    ("t5.py:small", "v5e:2x2"): ("model.dtype=bfloat16", "model.scan=True", "model.remat=dots"),
    ("t5.py:base", "v5e:4x4"): ("model.dtype=bfloat16", "model.scan=True", "model.remat=dots"),
    ("t5.py:large", "v5e:4x4"): ("mesh.fsdp=16", *FULL),
    ("t5.py:3b", "v5e:8x8"): ("mesh.fsdp=64", *FULL),
    ("t5.py:11b", "v5p:4x4x4"): ("mesh.fsdp=16", *FULL),
    ("transformer.py:base", "v5e:2x2"): ("model.dtype=bfloat16", "model.scan=True", "model.remat=dots"),
    ("transformer.py:big", "v5e:4x4"): ("model.dtype=bfloat16", "model.scan=True", "model.remat=dots"),
    ("vit.py:b16", "v5e:4x4"): ("microbatches=4", "model.dtype=bfloat16", "model.scan=True", "model.remat=dots"),
    ("vit.py:l16", "v5e:8x8"): ("mesh.fsdp=64", *FULL),
    ("clip.py:b16", "v5e:8x8"): ("microbatches=4", *(f"model.towers.{tower}.{key}" for tower in ("text", "image") for key in ("dtype=bfloat16", "scan=True", "remat=full"))),
    ("clip.py:l14", "v5p:4x4x4"): ("mesh.fsdp=16", "microbatches=4", "model.towers.text.remat=full", "model.towers.image.remat=full"),
    ("base.py", "v5e:2x2"): (),
    ("shakespeare.py", "v5e:2x2"): (),
    ("shakespeare_char.py", "v5e:2x2"): (),
    ("shakespeare_mlm.py", "v5e:2x2"): (),
    ("finetune_sst2.py", "v5e:2x2"): (),
    ("finetune_stsb.py", "v5e:2x2"): (),
    ("finetune_wnut17.py", "v5e:2x2"): (),
}
CHARACTERS = tokenizer.FIRST + 65  # of tiny Shakespeare
VOCABULARIES = {  # entries, of recipes that count them in their data or in the encoder that they start from
    "shakespeare.py": CHARACTERS, "shakespeare_char.py": CHARACTERS, "finetune_sst2.py": 30522, "finetune_stsb.py": 30522, "finetune_wnut17.py": 30522,
}  # fmt: skip
KEPT = ("devices", "mesh", "batch_size", "parameters", "flops", "executed_flops", "fits", "over", "capacity", "memory", "traffic", "collectives", "seconds",
        "step_seconds", "mfu", "warnings")  # fmt: skip
STATED = ("changed", "devices", "mesh", "batch_size", "parameters", "capacity")  # what recipe and chip say, not the compiler


def main(arguments: list[str]) -> int:
  if parse(arguments, FLAGS, __doc__):
    raise UserError("the atlas is of the recipes as they are: it takes no --config.KEY=VALUE.")
  before = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
  chosen = [key for key in ENTRIES if not FLAGS.only or " on ".join(key).startswith(tuple(FLAGS.only))]
  if not chosen:
    raise UserError(f"--only={','.join(FLAGS.only)}: no entry begins so.")
  after, differ, failed, started = {}, [], [], time.perf_counter()
  with concurrent.futures.ThreadPoolExecutor(FLAGS.jobs) as pool:
    futures = {pool.submit(measured, *key, ENTRIES[key]): " on ".join(key) for key in chosen}
    for future in concurrent.futures.as_completed(futures):
      name = futures[future]
      try:
        after[name], seconds = future.result()
      except UserError as error:
        failed.append(str(error))
        print(f"{name}: {error}", flush=True)
        continue
      told = changes(before[name], after[name]) if name in before else [("not in the file", False)]
      differ += [name] if told else []
      said = "; ".join(f"{'WORSE: ' if bad else ''}{text}" for text, bad in told) or "unchanged"
      print(f"{name} ({seconds:.0f} s): {said}", flush=True)
      if not FLAGS.check:  # after each, so that nothing is lost where one fails
        merged = before | after
        ordered = {key: merged[key] for key in (f"{r} on {t}" for r, t in ENTRIES) if key in merged}
        FILE.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(ordered), encoding="utf-8")
  if failed:
    raise UserError(f"{len(failed)} of {len(chosen)} entries do not compile; the first: {failed[0]}")
  print(f"{len(chosen)} entries, {len(differ)} of them other than in the file, in {(time.perf_counter() - started) / 60:.1f} minutes")
  return 1 if FLAGS.check and differ else 0


def measured(recipe: str, topology: str, changed: tuple[str, ...]) -> tuple[dict[str, Any], float]:
  """One entry and the seconds it took, compiled in a process of its own: libtpu keeps what it has compiled in memory."""
  began = time.perf_counter()
  arguments = [f"--config=configs/{recipe}", f"--topology={topology}", "--json", *(f"--config.{change}" for change in changed)]
  if recipe in VOCABULARIES:
    arguments.append(f"--vocab_size={VOCABULARIES[recipe]}")
  done = subprocess.run([sys.executable, "-m", "research.plan", *arguments], capture_output=True, text=True, cwd=HERE.parent, env={**os.environ})
  if done.returncode:
    raise UserError(f"{recipe} on {topology}: {(done.stderr.strip().splitlines() or ['no message'])[-1].removeprefix('error: ')}")
  plan = json.loads(done.stdout)
  compiler = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("jax", "libtpu"))
  return {"changed": list(changed), "compiler": compiler} | {key: plan[key] for key in KEPT}, time.perf_counter() - began


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, bool]]:
  """What differs, and whether it is for the worse: it fits no longer, sends more, or is replicated.

  What the recipe says and how many collectives of a kind there are is compared exactly; bytes, operations and seconds count as another from 2 % on. Which
  compiler made them is not compared.
  """
  told = [(f"{key} {new[key]}, not {old[key]}", False) for key in STATED if new[key] != old[key]]
  if old["fits"] != new["fits"]:
    told.append(("fits now", False) if new["fits"] else (f"fits no longer, over by {_gib(new['over'])}", True))
  counts = [{(c["kind"], *c["axes"]): (c["count"], c["bytes"]) for c in _merged(plan["collectives"])} for plan in (old, new)]
  for key in sorted(counts[0].keys() | counts[1].keys()):
    (n, size), (m, bigger) = counts[0].get(key, (0, 0)), counts[1].get(key, (0, 0))
    if n != m:
      told.append((f"{key[0]} over {' × '.join(key[1:])}: {m}, not {n}", m > n))
    elif abs(bigger - size) > 0.02 * size:
      told.append((f"{key[0]} over {' × '.join(key[1:])}: {_mib(bigger)}, not {_mib(size)}", bigger > size))
  told += [(f"warns: {text}", True) for text in new["warnings"] if text not in old["warnings"]]
  told += [(f"warns no longer: {text}", False) for text in old["warnings"] if text not in new["warnings"]]
  measures = {"operations": lambda plan: plan["flops"]}
  if old["fits"] and new["fits"]:
    measures |= {"memory": lambda plan: plan["memory"]["peak"], "traffic": lambda plan: plan["traffic"], "time": lambda plan: plan["step_seconds"]}
  if not old["fits"] and not new["fits"]:
    measures["bytes over"] = lambda plan: plan["over"] or 0
  for label, of in measures.items():
    if abs(of(new) - of(old)) > 0.02 * of(old):
      told.append((f"{label} {of(new) / of(old) - 1:+.1%}" if of(old) else f"{label} {of(new)}, not 0", False))
  return told


def _merged(collectives: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Those of one kind and axes together, however many dimensions of the torus they span."""
  merged: dict[tuple, dict[str, Any]] = {}
  for c in collectives:
    into = merged.setdefault((c["kind"], *c["axes"]), {**c, "count": 0, "bytes": 0, "sent": 0})
    for key in ("count", "bytes", "sent"):
      into[key] += c[key]
  return list(merged.values())


def page(entries: dict[str, dict[str, Any]]) -> str:
  """The table for readers."""
  compilers = sorted({plan["compiler"] for plan in entries.values()})
  lines = [
      "# The recipes on chips that were not there",
      "",
      f"Compiled, never run: `python -m benchmarks.atlas` ({'; '.join(compilers)}). TFLOPs: the model's operations in a step of all devices together, as MFU counts them.",
      "Memory: of one device, with its capacity beside it; a recipe that does not fit tells by how much. Sent: bytes that one device sends in a step. Times are floors",
      "from the chips' published numbers, so MFU is the most that the program allows, not what a run reached. Thousands of collective-permutes are gathers of parameters",
      "in parts, of which each is sent while the one before is multiplied.",
      "",
      "| recipe | topology | mesh | batch | changed | TFLOPs | memory | of | collectives | sent | step, at least | bound by | MFU, at most |",
      "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  for name, plan in entries.items():
    recipe, topology = name.split(" on ")
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
    memory = _gib(plan["memory"]["peak"]) if plan["memory"] else "more"
    memory = memory if plan["fits"] else f"**over by {_gib(plan['over'])}**"
    kinds: dict[str, int] = {}
    for c in plan["collectives"]:
      kinds[c["kind"]] = kinds.get(c["kind"], 0) + c["count"]
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    changed = " ".join(change for change in plan["changed"] if not change.startswith("mesh."))
    bound = max(plan["seconds"], key=plan["seconds"].get)
    cells = [recipe, topology, mesh, f"{plan['batch_size']:,}", changed, _short(plan["flops"] / 1e12), memory, _gib(plan["capacity"]), counts,
             _mib(sum(c["sent"] for c in plan["collectives"])), f"{_short(1000 * plan['step_seconds'])} ms", bound, f"{100 * plan['mfu']:.0f} %"]  # fmt: skip
    lines.append("| " + " | ".join(cells if plan["memory"] else [*cells[:8], "—", "—", "—", "—", "—"]) + " |")
  warned = [f"- {name}: {text}" for name, plan in entries.items() for text in plan["warnings"]]
  lines += ["", "## Warnings", "", *(warned or ["Nothing."])]
  return "\n".join(lines) + "\n"


def _short(number: float) -> str:
  return f"{number:,.1f}" if number >= 10 else f"{number:.2g}"


def _gib(count: float | None) -> str:
  return "an unknown amount" if count is None else f"{count / 2**30:.2f} GiB"


def _mib(count: float) -> str:
  return f"{count / 2**20:,.1f} MiB"


if __name__ == "__main__":
  command(main)
