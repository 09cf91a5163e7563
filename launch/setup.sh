#!/usr/bin/env bash
# Makes the virtual environment that the other scripts run in; sourced by them. Skips what is done already.
#   RESEARCH_VENV    where it is (default: .venv in the checkout)
#   RESEARCH_PYTHON  the Python to make it with (default: the first of python3, python3.12, python3.11, python3.13 that is new enough)
#   RESEARCH_EXTRAS  extras of setup.cfg to install, comma-separated
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${RESEARCH_VENV:-$root/.venv}"
extras="${RESEARCH_EXTRAS:-}"

find_python() {
  local candidate
  for candidate in ${RESEARCH_PYTHON:+"$RESEARCH_PYTHON"} python3 python3.12 python3.11 python3.13; do
    if "$candidate" -c 'import sys; sys.exit(not (sys.version_info >= (3, 11)))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or newer found: install one, or name it with RESEARCH_PYTHON=/path/to/python3." >&2
  return 1
}

# The stamp names what was installed: another lock file or other extras install anew.
stamp="$venv/.installed-$(cat "$root/requirements.lock" "$root/setup.cfg" | cksum | cut -d' ' -f1)-${extras//,/-}"
if [ ! -f "$stamp" ]; then
  python="$(find_python)"
  echo "setting up $venv with $("$python" --version) (once)"
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$root/requirements.lock"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/requirements.lock" -e "$root${extras:+[$extras]}"
  touch "$stamp"
fi

export PYTHON="$venv/bin/python"
# XLA on a CPU allocates its scratch memory anew at every step; huge pages and a heap that is kept save 15 % of it.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$root/.cache/jax}"
cd "$root"
