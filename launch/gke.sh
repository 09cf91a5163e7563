#!/usr/bin/env bash
# Submits a run to Google Kubernetes Engine, on a TPU slice or on GPU nodes. The cluster needs the JobSet controller.
#
#   bash launch/gke.sh --name=NAME --image=IMAGE --tpu=v5p:4x4x4 [flags] -- --config=configs/x.py --workdir=/runs/x [--config.key=value …]
#   bash launch/gke.sh --name=NAME --image=IMAGE --gpus-per-node=8 --nodes=2 [flags] -- …
#
#   --image=IMAGE        holds the checkout as its working directory, with `pip install -c requirements.lock '.[tpu]'` or '.[cuda]' done
#   --tpu=KIND:TOPOLOGY  v4, v5e, v5p, v6e or tpu7x, and the slice's chips; one process a host
#   --gpus-per-node=G --nodes=N   one process a node; --accelerator=LABEL chooses the nodes (nvidia-h100-80gb, …)
#   --volume=CLAIM:PATH  a PersistentVolumeClaim, writable from all nodes, mounted at PATH; the workdir must be on one
#   --max-restarts=R     how often the run is started again after a failure (default: 10). Status 143 (told to stop: it has saved) does not
#                        count; status 2 (a mistake in the command) ends it at once
#   --grace=SECONDS      to save, once told to stop (default: 120)
#   --namespace=NAME --queue=NAME   as kubectl takes it; a Kueue queue
#   --env=NAME=VALUE     for the run's environment; may be given several times
#   --xpk=CLUSTER        with --tpu: prints the equivalent command of XPK for that cluster, and submits nothing
#   --dry-run            prints the manifest, and submits nothing
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
dry_run="" xpk=""
for argument in "$@"; do
  case "$argument" in
    --) break ;;
    --help | -h) sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"; exit 0 ;;
    --dry-run) dry_run=1 ;;
    --xpk=*) xpk=1 ;;
  esac
done
manifest="$("${RESEARCH_PYTHON:-python3}" "$root/launch/gke_manifest.py" "$@")"
printf '%s\n' "$manifest"
if [ -z "$dry_run$xpk" ]; then kubectl apply -f - <<<"$manifest"; fi
