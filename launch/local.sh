#!/usr/bin/env bash
# Sets up, trains, evaluates and prints a sample of generated text, on this machine.
#
#   bash launch/local.sh                                             the default: tiny Shakespeare, a few minutes on 2 CPU cores
#   bash launch/local.sh --config=configs/x.py --workdir=runs/x [--config.key=value …]
#
# The same command again goes on with (or evaluates) the run in that workdir.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

config=configs/shakespeare.py
workdir=runs/shakespeare
rest=()
for argument in "$@"; do
  case "$argument" in
    --config=*) config="${argument#--config=}" ;;
    --workdir=*) workdir="${argument#--workdir=}" ;;
    *) rest+=("$argument") ;;
  esac
done

"$PYTHON" -m research.train --config="$config" --workdir="$workdir" ${rest[@]+"${rest[@]}"}
"$PYTHON" -m research.evaluate --workdir="$workdir"
"$PYTHON" -m research.generate --workdir="$workdir" --if_possible --length=400 --seed=1
