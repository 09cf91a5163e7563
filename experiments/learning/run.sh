#!/usr/bin/env bash
# Trains one objective of config.py and scores it on what it was not trained on, before the first update and after the last one:
#   bash experiments/learning/run.sh masked_lm [FOLDER [ARGUMENTS OF TRAIN …]]        (FOLDER: runs/learning unless given)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
NAME="$1"
FOLDER="${2:-runs/learning}"
WORKDIR="$FOLDER/$NAME"
: "${RESEARCH_DATA:=../shared/data}"
export RESEARCH_DATA
PYTHON="${RESEARCH_VENV:-.venv}/bin/python"

"$PYTHON" -m research.train --config="experiments/learning/config.py:$NAME" --workdir="$WORKDIR" --config.data.directory="$FOLDER/data" "${@:3}"
score() {
  "$PYTHON" -m research.evaluate --workdir="$WORKDIR" --step=0 "$@"
  "$PYTHON" -m research.evaluate --workdir="$WORKDIR" "$@"
}
case "$NAME" in
  contrastive)
    score --evals=retrieval
    score --evals=similarity --data="$RESEARCH_DATA/stsb/stsb-en-dev.csv.gz"
    ;;
  image_text) score --evals=retrieval ;;
  image_classification) score --evals=classification ;;
  *) score --evals=minimal_pairs --data="$RESEARCH_DATA/blimp/blimp_23.tar.gz" --pairs="${PAIRS:-100}" ;;
esac
