"""nanoGPT's recipe with three seeds, in full: the mean loss over the whole validation tenth beside the published number.

  python -m tests.three_seeds [configs/shakespeare_char.py]
"""

import json
import os
import subprocess
import sys
import tempfile

import numpy as np


def main(config: str = "configs/shakespeare_char.py", seeds: tuple[int, ...] = (0, 1, 2)) -> None:
  losses = []
  with tempfile.TemporaryDirectory() as folder:
    for seed in seeds:
      workdir = os.path.join(folder, str(seed))
      overrides = [f"--config.seed={seed}", f"--config.data.seed={seed}", f"--config.data.directory={folder}/data", "--config.log.every=500"]
      subprocess.run([sys.executable, "-m", "research.train", f"--config={config}", f"--workdir={workdir}", *overrides], check=True)
      with open(os.path.join(workdir, "summary.json"), encoding="utf-8") as file:
        summary = json.load(file)
      losses.append(summary["valid"]["loss"])
      print(f"seed {seed}: {losses[-1]:.4f} nats per character, {summary['wall_seconds']:.0f} s", flush=True)
  print(f"mean {np.mean(losses):.4f}, deviation {np.std(losses, ddof=1):.4f} (published: 1.88 on 20 random batches)")


if __name__ == "__main__":
  main(*sys.argv[1:])
