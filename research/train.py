"""Pretrains or fine-tunes what a config describes.

  python -m research.train --config=configs/shakespeare_char.py --workdir=runs/char [--config.steps=500 …]

Resumes if the workdir holds a run. SIGTERM saves and stops with status 143; the same command then goes on.
With --until=STEP it stops there, evaluated and saved, and the command without it goes on.
With --restarts=N a run that crashes or hangs is started again from its last checkpoint, at most N times.
Leaves config.json, metrics.jsonl, summary.json, loss.png, checkpoints/ and TensorBoard events in the workdir.

On several machines, or in several processes, start the same command in each. Tasks of SLURM and workers of a Cloud TPU find each other;
others are told by --coordinator, --processes and --process, or by RESEARCH_COORDINATOR, RESEARCH_PROCESSES and RESEARCH_PROCESS.
All see the same workdir. When one dies, the others stop with status 75 within a minute.
"""

from __future__ import annotations

from research.core import startup

if __name__ == "__main__":
  startup.prepare()

import os
import signal
import sys

from absl import flags

from research.core.errors import UserError, command
from research.core.flags import parse
from research.core.overrides import load

FLAGS = flags.FlagValues()
flags.DEFINE_string("config", None, "config file, with :argument where it takes one", flag_values=FLAGS)
flags.DEFINE_string("workdir", None, "folder of the run", flag_values=FLAGS)
flags.DEFINE_string("profile", None, "first:last step of a profiler trace, kept under workdir/profile", flag_values=FLAGS)
flags.DEFINE_integer("until", None, "stop after this step, evaluated and saved; without the flag the same command goes on", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("restarts", 0, "times that a run is started again after a crash or a hang", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_string("coordinator", None, "host:port at which process 0 is to be found, for a run of several processes", flag_values=FLAGS)
flags.DEFINE_integer("processes", None, "how many processes make up the run", flag_values=FLAGS)
flags.DEFINE_integer("process", None, "which of them this one is, from 0", flag_values=FLAGS)
flags.DEFINE_enum("distributed", "auto", ["auto", "off"], "auto: as flags, environment or cluster say; off: this process is alone", flag_values=FLAGS)
flags.DEFINE_integer("connect_seconds", 50, "how long processes wait for each other at the start", flag_values=FLAGS)


def main(arguments: list[str]) -> int:
  overrides = parse(arguments, FLAGS, __doc__)
  if FLAGS.restarts:
    from research.training import watch

    return watch.supervise([sys.executable, "-m", "research.train", *arguments, "--restarts=0"], FLAGS.restarts)
  if not FLAGS.workdir:
    raise UserError("--workdir is missing: name a folder for the run.")
  if os.path.exists(FLAGS.workdir) and not os.path.isdir(FLAGS.workdir):
    raise UserError(f"--workdir={FLAGS.workdir} is a file: name a folder for the run.")
  source = FLAGS.config or (FLAGS.workdir if os.path.isfile(os.path.join(FLAGS.workdir, "config.json")) else None)
  if source is None:
    raise UserError("--config is missing: name a config file, such as configs/shakespeare_char.py.")
  config = load(source, overrides)
  startup.compilation_cache(os.path.join(FLAGS.workdir, "compilation_cache"))

  from research.parallel import distributed
  from research.training import loop

  profile = _steps(FLAGS.profile)
  with distributed.joined(FLAGS.coordinator, FLAGS.processes, FLAGS.process, FLAGS.distributed, FLAGS.connect_seconds):
    summary = loop.train(config, FLAGS.workdir, profile=profile, until=FLAGS.until)
    leads = distributed.leads()
  if not leads:
    return 128 + signal.Signals[summary["stopped_by"]].value if summary["stopped_by"] else 0
  if summary["stopped_by"]:
    print(f"stopped by {summary['stopped_by']} at step {summary['step']}, saved: the same command goes on from there", flush=True)
    return 128 + signal.Signals[summary["stopped_by"]].value
  print(_closing(summary, FLAGS.workdir), flush=True)
  return 0


def _steps(text: str | None) -> range:
  if text is None:
    return range(0)
  first, colon, last = text.partition(":")
  if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
    raise UserError(f"--profile={text}: write first:last, such as 20:25.")
  return range(int(first), int(last))


def _closing(summary: dict, workdir: str) -> str:
  """A small table: the last validation beside what the data's baseline (token frequencies) scores."""
  valid, name, best = summary["valid"], summary.get("baseline"), summary["best"]
  base = summary[name] if name else {}
  beside = lambda key: f"{base[key]:.4f}" if key in base else ""
  scores = {"loss": "loss, nats" if "accuracy" in valid else "loss", "accuracy": "accuracy", "bits_per_byte": "bits per byte"}
  rows = [("", "model", name or ""), *((title, f"{valid[key]:.4f}", beside(key)) for key, title in scores.items() if key in valid)]
  lines = [f"{a:<14}{b:>10}{c:>10}".rstrip() for a, b, c in rows]
  lines.append(f"whole validation split, step {summary['step']} (best {best['valid']['loss']:.4f} at step {best['step']}); "
               f"{summary['wall_seconds']:.0f} s; see {os.path.join(workdir, 'loss.png')}")  # fmt: skip
  return "\n".join(lines)


if __name__ == "__main__":
  command(main)
