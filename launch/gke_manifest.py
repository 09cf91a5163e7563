"""The manifest of a run on Google Kubernetes Engine: a JobSet, in JSON (which is YAML). launch/gke.sh tells the flags.

One pod for each host or node; the JobSet's headless service gives each a name. On GPUs pod 0 is the coordinator; on TPUs the slice's own
environment says who is who. What fails is started again as a whole, since all processes of a run stop when one does.
Every argument of research.train is a JSON string of the container's command: no shell reads it.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from typing import Any

PORT = 1234
# kind: node label, XPK's name
TPUS = {
  "v4": ("tpu-v4-podslice", "v4"),
  "v5e": ("tpu-v5-lite-podslice", "v5litepod"),
  "v5p": ("tpu-v5p-slice", "v5p"),
  "v6e": ("tpu-v6e-slice", "v6e"),
  "tpu7x": ("tpu7x", "tpu7x"),
}
FLAGS = ("name", "image", "tpu", "gpus-per-node", "nodes", "accelerator", "volume", "max-restarts", "grace", "namespace", "queue", "xpk")


class Mistake(Exception):
  """What the user did wrong, in one sentence."""


def parse(given: list[str]) -> tuple[dict[str, str], dict[str, str], list[str]]:
  """Flags, environment and the arguments of research.train."""
  if "--" not in given:
    raise Mistake("the arguments of research.train are missing: write them after --, as in '-- --config=configs/x.py --workdir=/runs/x'.")
  cut = given.index("--")
  flags, environment = {"nodes": "1", "max-restarts": "10", "grace": "120"}, {}
  for flag in given[:cut]:
    name, equals, value = flag.removeprefix("--").partition("=")
    if flag == "--dry-run":
      continue
    if not flag.startswith("--") or not equals:
      raise Mistake(f"'{flag}': flags are written --name=value, and the arguments of research.train follow after --.")
    if name == "env":
      key, equals, value = value.partition("=")
      if not equals or not re.fullmatch(r"[A-Za-z_]\w*", key):
        raise Mistake(f"{flag}: write --env=NAME=VALUE.")
      environment[key] = value
    elif name in FLAGS:
      flags[name] = value
    else:
      raise Mistake(f"no flag --{name}; known are --dry-run --env {' '.join(f'--{known}' for known in FLAGS)}")
  for name in ("nodes", "gpus-per-node", "max-restarts", "grace"):
    if name in flags and not re.fullmatch(r"[1-9]\d*", flags[name]):
      raise Mistake(f"--{name}={flags[name]} must be a whole number from 1.")
  if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", flags.get("name", "")):
    raise Mistake(f"--name={flags.get('name', '')}: name the run by up to 40 small letters, digits and dashes.")
  if not flags.get("image"):
    raise Mistake("--image is missing: name the container image that holds the checkout.")
  if ("tpu" in flags) == ("gpus-per-node" in flags):
    raise Mistake("say where to run: either --tpu=v5p:4x4x4 or --gpus-per-node=8 (with --nodes).")
  if not any(argument.startswith("--workdir=") for argument in given[cut + 1 :]):
    raise Mistake("--workdir is missing among the arguments after --.")
  return flags, environment, given[cut + 1 :]


def slice_of(tpu: str) -> tuple[str, str, int, int]:
  """Node label, topology, chips of a host and hosts of 'v5p:4x4x4'."""
  kind, _, topology = tpu.partition(":")
  axes = 3 if kind in ("v4", "v5p", "tpu7x") else 2
  if kind not in TPUS or not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (axes - 1), topology):
    raise Mistake(f"--tpu={tpu}: write one of {', '.join(TPUS)} and its topology, such as v5p:4x4x4 or v5e:4x4.")
  chips = math.prod(int(size) for size in topology.split("x"))
  if chips != 1 and chips % 4:
    raise Mistake(f"--tpu={tpu}: a slice has 1 chip or a multiple of 4, this one {chips}.")
  here = min(chips, 4)
  return TPUS[kind][0], topology, here, chips // here


def manifest(flags: dict[str, str], environment: dict[str, str], arguments: list[str]) -> dict[str, Any]:
  """The JobSet, a tree of JSON values."""
  name, environment = flags["name"], dict(environment)
  variables: list[dict[str, Any]] = []
  if "tpu" in flags:
    label, topology, devices, hosts = slice_of(flags["tpu"])
    resource = "google.com/tpu"
    selector = {"cloud.google.com/gke-tpu-accelerator": label, "cloud.google.com/gke-tpu-topology": topology}
  else:
    devices, hosts, resource = int(flags["gpus-per-node"]), int(flags["nodes"]), "nvidia.com/gpu"
    selector = {"cloud.google.com/gke-accelerator": flags["accelerator"]} if "accelerator" in flags else {}
    environment |= {"RESEARCH_COORDINATOR": f"{name}-run-0-0.{name}:{PORT}", "RESEARCH_PROCESSES": str(hosts)}
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    variables.append({"name": "RESEARCH_PROCESS", "valueFrom": {"fieldRef": {"fieldPath": index}}})
  container: dict[str, Any] = {
    "name": "train",
    "image": flags["image"],
    # $(NAME) would be replaced by the cluster, $$ is a dollar.
    "command": [word.replace("$", "$$") for word in command(arguments)],
    "env": [*({"name": key, "value": value.replace("$", "$$")} for key, value in environment.items()), *variables],
    "ports": [{"containerPort": PORT}],
    "resources": {"requests": {resource: str(devices)}, "limits": {resource: str(devices)}},
  }
  pod: dict[str, Any] = {
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": int(flags["grace"]),
    "nodeSelector": selector,
    "tolerations": [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}],
    "containers": [container],
  }
  # Processes on one host's GPUs exchange data through shared memory.
  volumes, mounts = [{"name": "shm", "emptyDir": {"medium": "Memory"}}], [{"name": "shm", "mountPath": "/dev/shm"}]
  if "volume" in flags:
    claim, _, path = flags["volume"].partition(":")
    if not claim or not path.startswith("/"):
      raise Mistake(f"--volume={flags['volume']}: write CLAIM:/path.")
    volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": claim}})
    mounts.append({"name": "runs", "mountPath": path})
  pod["volumes"], container["volumeMounts"] = volumes, mounts
  job = {
    "completionMode": "Indexed",
    "completions": hosts,
    "parallelism": hosts,
    "backoffLimit": 0,
    "podFailurePolicy": {
      "rules": [
        {"action": "Ignore", "onExitCodes": {"containerName": "train", "operator": "In", "values": [143]}},
        {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": [2]}},
      ]
    },
    "template": {"spec": pod},
  }
  metadata: dict[str, Any] = {"name": name}
  if "tpu" in flags:  # all pods on the hosts of one slice
    metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
  if "namespace" in flags:
    metadata["namespace"] = flags["namespace"]
  if "queue" in flags:
    metadata["labels"] = {"kueue.x-k8s.io/queue-name": flags["queue"]}
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": metadata,
    "spec": {
      # The headless service: pod i is reached as NAME-run-0-i.NAME.
      "network": {"enableDNSHostnames": True, "subdomain": name},
      "failurePolicy": {
        "maxRestarts": int(flags["max-restarts"]),
        "restartStrategy": "BlockingRecreate",  # no process of the new run meets one of the old
        "rules": [{"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
      },
      "replicatedJobs": [{"name": "run", "replicas": 1, "template": {"spec": job}}],
    },
  }


def command(arguments: list[str]) -> list[str]:
  # Pods start when their images have come, minutes apart.
  return ["python", "-m", "research.train", "--connect_seconds=900", *arguments]


def xpk(flags: dict[str, str], environment: dict[str, str], arguments: list[str]) -> str:
  """The same run as a command of XPK, for a shell."""
  if "tpu" not in flags:
    raise Mistake("--xpk needs --tpu: XPK's names of GPU types are its own.")
  _, topology, _, _ = slice_of(flags["tpu"])
  kind = TPUS[flags["tpu"].partition(":")[0]][1]
  words = ["xpk", "workload", "create", f"--cluster={flags['xpk']}", f"--workload={flags['name']}", f"--tpu-type={kind}-{topology}"]
  words += ["--num-slices=1", f"--docker-image={flags['image']}", f"--max-restarts={flags['max-restarts']}"]
  words += [f"--termination-grace-period-seconds={flags['grace']}", *(f"--env={key}={value}" for key, value in environment.items())]
  return shlex.join([*words, f"--command={shlex.join(command(arguments))}"])


def main(given: list[str]) -> int:
  try:
    flags, environment, arguments = parse(given)
    print(xpk(flags, environment, arguments) if "xpk" in flags else json.dumps(manifest(flags, environment, arguments), indent=2))
  except Mistake as mistake:
    print(f"error: {mistake}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
