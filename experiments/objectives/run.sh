#!/usr/bin/env bash
# The whole study at one size: corpus, pretraining, fine-tuning, reports and the table; the arguments after SIZE go to each sweep.
#   bash experiments/objectives/run.sh small --parallel=2                     two CPU cores, hours
#   bash experiments/objectives/run.sh middle --parallel=8 --together=3       one GPU
# Works in runs/objectives, and goes on where it was stopped. A study's report is copied beside this file once its sweep has ended. A launcher that hands runs on
# (--launcher=slurm) does not wait for them, and each study starts from what the first one left: there the README's commands are given one by one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
SIZE="${1:?name the size: small or middle}"
: "${RESEARCH_DATA:=../shared/data}"
export RESEARCH_DATA
PYTHON="${RESEARCH_VENV:-.venv}/bin/python"
RUNS=runs/objectives

study() { # NAME OF ITS FOLDER, FILE:ARGUMENT, FLAGS OF THE SWEEP …
  "$PYTHON" -m research.sweep "$2" --workdir="$RUNS/$1" "${@:3}"
  "$PYTHON" -m research.report "$RUNS/$1"
  rm -rf "experiments/objectives/$1"
  mkdir "experiments/objectives/$1"
  cp -r "$RUNS/$1"/{report.md,results.csv,environment.md,figures} "experiments/objectives/$1/"
}

[ -e "$RUNS/corpus/corpus.json" ] || "$PYTHON" -m experiments.objectives.corpus
study "$SIZE" "experiments/objectives/study.py:$SIZE" "${@:2}"
for task in sst2 wnut17 stsb; do
  study "$SIZE-$task" "experiments/objectives/finetuning.py:$task,$SIZE" "${@:2}"
done
"$PYTHON" -m experiments.objectives.report "$SIZE"
