"""What a run tells while it runs: `metrics.jsonl`, TensorBoard events, a progress bar or plain lines, and the curve at the end."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from research.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
  every: int = 10  # steps from one line of training metrics to the next
  tensorboard: bool = True  # write TensorBoard events beside metrics.jsonl
  hang_seconds: float = 600.0  # end a process that trains and finishes no step for so long, with all stacks in hang.txt; 0: never

  def __post_init__(self):
    if self.hang_seconds < 0:
      raise ValueError(f"hang_seconds must not be negative; got {self.hang_seconds}")


METRICS = "metrics.jsonl"


def read_metrics(workdir: str) -> list[dict[str, Any]]:
  """The lines of a run's metrics, up to the first that is none: a last one may be cut off by a kill."""
  lines = []
  path = os.path.join(workdir, METRICS)
  if os.path.isfile(path):
    with open(path, encoding="utf-8", errors="replace") as file:
      for line in file:
        try:
          found = json.loads(line)
        except ValueError:
          break
        if not (isinstance(found, dict) and {"split", "step"} <= found.keys()):
          break
        lines.append(found)
  return lines


def truncate_metrics(workdir: str, step: int) -> None:
  """Drops what was logged after `step`, so that a resumed run writes each line once."""
  path = os.path.join(workdir, METRICS)
  kept = [line for line in read_metrics(workdir) if line["step"] <= step]
  with open(path + ".tmp", "w", encoding="utf-8") as file:
    file.writelines(json.dumps(line) + "\n" for line in kept)
  os.replace(path + ".tmp", path)


class Monitor:
  """Writes one object a line: step, split, name → value; and says a short form of it."""

  def __init__(self, workdir: str, cfg: Config, steps: int, start: int, say: Callable[[str], None], bar: bool = True):
    """
    Args:
      bar: on a terminal a progress bar takes the place of lines.
    """
    truncate_metrics(workdir, start)
    self._file = open(os.path.join(workdir, METRICS), "a", encoding="utf-8")  # noqa: SIM115  open for the whole run
    self._board = None
    if cfg.tensorboard:
      try:
        import tensorboardX
      except ModuleNotFoundError as error:
        raise UserError("log.tensorboard needs the package tensorboardX: install it or set --config.log.tensorboard=false.") from error
      logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)  # it warns of each number that is not finite, and the line beside it tells which
      self._board = tensorboardX.SummaryWriter(os.path.join(workdir, "tensorboard"), purge_step=start + 1 if start else None)
    self._steps, self._say, self._bar = steps, say, None
    if bar and sys.stdout.isatty():
      from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

      columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
      self._bar = Progress(*columns, transient=True)
      self._task = self._bar.add_task("", total=steps, completed=start)
      self._bar.start()

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    line = {"step": step, "split": split, **{name: float(value) for name, value in values.items()}}
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()
    if self._board is not None:
      for name, value in values.items():
        self._board.add_scalar(f"{split}/{name}", value, step)
    text = short(values)
    if self._bar is None:
      self._say(f"step {step:>{len(str(self._steps))}}/{self._steps}  {split:<5}  {text}")
    elif split == "train":
      self._bar.update(self._task, completed=step, description=text)
    else:
      self._bar.console.print(f"step {step}/{self._steps}  {split}  {text}")

  def say(self, text: str) -> None:
    if self._bar is None:
      self._say(text)
    else:
      self._bar.console.print(text, highlight=False)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.stop()
    self._file.close()
    if self._board is not None:
      self._board.close()


class Mute:
  """A monitor that tells nothing: of the processes that do not lead a run."""

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None: ...

  def say(self, text: str) -> None: ...

  def close(self) -> None: ...


def short(values: Mapping[str, float]) -> str:
  """The few numbers that a person follows, on one line."""
  formats = {
      "loss": "loss {:.4f}", "perplexity": "perplexity {:.2f}", "accuracy": "accuracy {:.3f}", "bits_per_byte": "bits/byte {:.3f}",
      "gradient_norm": "gradient {:.2f}", "learning_rate": "lr {:.2e}", "tokens_per_second": "{:,.0f} tokens/s", "images_per_second": "{:,.0f} images/s", "mfu": "mfu {:.1%}",
      "skipped": "skipped {:.0f}",
  }  # fmt: skip
  return "  ".join(text.format(values[name]) for name, text in formats.items() if name in values and (name != "skipped" or values[name]))


def draw(workdir: str, path: str, baselines: Mapping[str, float]) -> None:
  """The loss of both splits against the step, `baselines` (name → loss, nats) as dotted lines, as a PNG."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
  draw_losses(axes, workdir, baselines)
  axes.set_xlabel("step")
  axes.set_ylabel("loss, nats per target")
  figure.savefig(path, dpi=120)
  plt.close(figure)


def draw_losses(axes, workdir: str, baselines: Mapping[str, float]) -> None:
  """As `draw`, onto axes of matplotlib."""
  lines = read_metrics(workdir)
  for split, style in (("train", dict(alpha=0.45, linewidth=0.9)), ("valid", dict(linewidth=2))):
    points = [(line["step"], line["loss"]) for line in lines if line["split"] == split and math.isfinite(line["loss"])]
    if points:
      axes.plot(*zip(*points), label=split, marker="o" if split == "valid" and len(points) < 40 else None, markersize=3, **style)
  for name, value in baselines.items():
    axes.axhline(value, color="grey", linestyle=":", label=f"{name} {value:.2f}")
  axes.grid(alpha=0.25)
  axes.legend(frameon=False)
