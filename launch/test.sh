#!/usr/bin/env bash
# Sets up and runs the tests; arguments go to pytest (bash launch/test.sh tests/model -k cache).
set -euo pipefail
RESEARCH_EXTRAS="${RESEARCH_EXTRAS:-test,hf}"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

"$PYTHON" -m ruff check research configs tests benchmarks experiments launch
exec "$PYTHON" -m pytest -n "${RESEARCH_TEST_WORKERS:-2}" --dist worksteal "$@"
