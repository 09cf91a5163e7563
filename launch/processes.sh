#!/usr/bin/env bash
# One run in N processes on this machine, each with its share of the devices.
#
#   bash launch/processes.sh N [--dry-run] [--devices=D] [--port=P] -- --config=configs/x.py --workdir=runs/x [--config.key=value …]
#
#   --devices=D   simulated CPU devices for each process; without it they share this machine's GPUs evenly, or have one CPU device each
#   --port=P      where process 0 is to be found (default: a free one)
#   --dry-run     prints the commands and starts nothing
#
# Process 0 is seen here; what the others print is kept in workdir/logs. SIGTERM is handed to all of them: the run saves, and this exits with 143.
# The exit status is that of the first process that fails.
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

devices="" port=""
case "${1:-}" in
  --help | -h) help; exit 0 ;;
  --* | "") fail "the number of processes comes first, as in 'bash $0 2 -- --config=configs/x.py --workdir=runs/x'." ;;
esac
processes="$1"
number N "$processes"
shift
read_flags "devices port" "$@"
[ -z "$devices" ] || number --devices "$devices"
[ -z "$port" ] || number --port "$port"
workdir="$(workdir_of ${arguments[@]+"${arguments[@]}"})"
[ -n "$workdir" ] || fail "--workdir is missing: give the arguments of research.train after --, as in 'bash $0 2 -- --config=configs/x.py --workdir=runs/x'."

if [ -n "${dry_run:-}" ]; then
  PYTHON=python
  port="${port:-PORT}"
else
  source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
  port="${port:-$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}"
  mkdir -p "$workdir/logs"
fi

gpus=()
if [ -n "$devices" ]; then
  export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
elif [ "${JAX_PLATFORMS:-}" != cpu ] && command -v nvidia-smi >/dev/null; then
  if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
  else
    mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader)
  fi
  [ $((${#gpus[@]} % processes)) -eq 0 ] || fail "${#gpus[@]} GPUs cannot be shared evenly by $processes processes."
fi
share=$((${#gpus[@]} / processes))

children=()
# shellcheck disable=SC2317,SC2329  # called by the trap
stop() {
  stopping=1
  kill -TERM "${children[@]}" 2>/dev/null || true
}
trap stop TERM INT HUP
for ((i = 0; i < processes; i++)); do
  command=("$PYTHON" -m research.train "--coordinator=127.0.0.1:$port" "--processes=$processes" "--process=$i" "${arguments[@]}")
  if [ "$share" -gt 0 ]; then
    own="${gpus[*]:$((i * share)):$share}"
    command=(env "CUDA_VISIBLE_DEVICES=${own// /,}" "${command[@]}")
  fi
  if [ -n "${dry_run:-}" ]; then
    run "${command[@]}"
    continue
  fi
  if [ "$i" -eq 0 ]; then
    "${command[@]}" &
  else
    "${command[@]}" >>"$workdir/logs/process-$i.log" 2>&1 &
  fi
  children+=($!)
done
[ -z "${dry_run:-}" ] || exit 0
[ -z "${stopping:-}" ] || stop # told before all had been started

# One after another, as they end; a signal interrupts the wait, and nobody is forgotten.
status=0
left=${#children[@]}
while [ "$left" -gt 0 ]; do
  code=0
  wait -n -p ended || code=$?
  [ -n "${ended:-}" ] || continue
  left=$((left - 1))
  if [ "$code" -ne 0 ] && [ "$status" -eq 0 ]; then
    status=$code
    [ -n "${stopping:-}" ] || echo "a process ended with status $code: the others stop within a minute; see $workdir/logs" >&2
  fi
done
exit "$status"
