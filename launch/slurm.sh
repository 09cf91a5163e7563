#!/usr/bin/env bash
# Submits a run, or an array of runs, to SLURM.
#
#   bash launch/slurm.sh [flags] -- --config=configs/x.py --workdir=runs/x [--config.key=value …]
#
# All tasks of a job form one run; one task a node, with all of the node's GPUs, is the usual way. Before its time ends, or when it is preempted,
# SLURM sends SIGTERM: the run saves and exits with status 143, and the job puts itself back into the queue. Any other failure ends it.
# A job that SLURM requeues without a warning goes on from its last checkpoint.
#
#   --nodes=N --tasks-per-node=K --gpus-per-node=G --cpus-per-task=C --mem=SIZE   what one run needs (default: 1 node, 1 task)
#   --time=LIMIT --partition=NAME --account=NAME --qos=NAME --constraint=FEATURE  as sbatch takes them
#   --warning=SECONDS   how long before the end of its time a job is told (default: 120)
#   --name=NAME         the job's name (default: research)
#   --logs=FOLDER       of the jobs' output (default: logs in the workdir; for an array, slurm_logs)
#   --array=RANGE       an array of runs: {task} in the arguments becomes the number of each, as in
#                         --array=0-4 -- --config=configs/x.py --workdir=runs/seed{task} --config.seed={task}
#   --array-file=FILE   an array of runs, one line of arguments each, added to those after --. Words are divided by blanks, quotes ("…", '…') and
#                       backslashes keep them together, nothing is expanded; lines of # are comments. --array=%4 lets 4 run at a time
#   --dry-run           prints the batch script and the command, and submits nothing
#
# The environment is handed on (RESEARCH_DATA, RESEARCH_VENV and RESEARCH_EXTRAS among it); the checkout, its virtual environment and the workdir
# must be on a file system that all nodes see. Relative paths are below the checkout.
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

nodes=1 tasks_per_node=1 gpus_per_node="" cpus_per_task="" mem="" time="" partition="" account="" qos="" constraint=""
warning=120 name=research logs="" array="" array_file=""
read_flags "nodes tasks-per-node gpus-per-node cpus-per-task mem time partition account qos constraint warning name logs array array-file" "$@"
number --nodes "$nodes"
number --tasks-per-node "$tasks_per_node"
number --warning "$warning"
workdir="$(workdir_of ${arguments[@]+"${arguments[@]}"})"

# The runs of an array: the words of each line, quoted anew. xargs knows quotes and backslashes and expands nothing.
runs=()
if [ -n "$array_file" ]; then
  [ -f "$array_file" ] || fail "--array-file=$array_file is not a file: name one with the arguments of a run on each line."
  number=0
  while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    [[ "$line" =~ ^[[:space:]]*(#|$) ]] && continue
    mapfile -t -d '' words < <(xargs printf '%s\0' 2>/dev/null <<<"$line")
    wait $! || fail "line $number of $array_file: a quote is not closed."
    [ -n "$(workdir_of ${arguments[@]+"${arguments[@]}"} "${words[@]}")" ] || fail "line $number of $array_file names no --workdir: each run needs its own."
    runs+=("$(quote "${words[@]}")")
  done <"$array_file"
  [ ${#runs[@]} -gt 0 ] || fail "$array_file has no line of arguments."
  case "$array" in "" | %*) array="0-$((${#runs[@]} - 1))$array" ;; esac
elif [ -z "$workdir" ]; then
  fail "--workdir is missing: give the arguments of research.train after --, as in 'bash $0 -- --config=configs/x.py --workdir=runs/x'."
elif [ -n "$array" ] && [[ "$workdir" != *"{task}"* ]]; then
  fail "the runs of an array need a workdir each: write {task} in it, as in --workdir=$workdir/{task}."
fi
[ -z "$array" ] || [[ "$array" =~ ^[0-9,:-]+(%[1-9][0-9]*)?$ ]] || fail "--array=$array: write a range, such as 0-4 or 0-9%2."
if [ -z "$logs" ]; then
  if [ -n "$array" ]; then logs=slurm_logs; else logs="$workdir/logs"; fi
fi
case "$logs" in /*) ;; *) logs="$root/$logs" ;; esac

directive() {
  word "$1" "$2"
  if [ -n "$2" ]; then echo "#SBATCH $1=$2"; fi
}

# shellcheck disable=SC2016  # what stands in single quotes is for the job
script() {
  echo '#!/usr/bin/env bash'
  directive --job-name "$name"
  directive --nodes "$nodes"
  directive --ntasks-per-node "$tasks_per_node"
  directive --gpus-per-node "$gpus_per_node"
  directive --cpus-per-task "$cpus_per_task"
  directive --mem "$mem"
  directive --time "$time"
  directive --partition "$partition"
  directive --account "$account"
  directive --qos "$qos"
  directive --constraint "$constraint"
  directive --array "$array"
  echo '#SBATCH --requeue'
  echo '#SBATCH --open-mode=append'
  echo "#SBATCH --signal=TERM@$warning"
  echo 'set -euo pipefail'
  echo "arguments=($(quote ${arguments[@]+"${arguments[@]}"}))"
  if [ ${#runs[@]} -gt 0 ]; then
    echo 'case "$SLURM_ARRAY_TASK_ID" in'
    local i
    for i in "${!runs[@]}"; do echo "  $i) arguments+=(${runs[$i]}) ;;"; done
    echo '  *) echo "error: there is no run $SLURM_ARRAY_TASK_ID in this array." >&2; exit 2 ;;'
    echo 'esac'
  elif [ -n "$array" ]; then
    echo 'arguments=("${arguments[@]//\{task\}/$SLURM_ARRAY_TASK_ID}")'
  fi
  echo "source $(quote "$root/launch/setup.sh")"
  cat <<'END'
# A task that dies ends the run: the others stop by themselves within a minute, and SLURM kills them after two. Not --kill-on-bad-exit=1, which
# sends them SIGTERM at once: they would save, and srun would report 143 for a run that has failed, to be requeued for ever.
status=0
srun --kill-on-bad-exit=0 --wait=120 "$PYTHON" -m research.train "${arguments[@]}" || status=$?
if [ "$status" -eq 143 ]; then
  echo "the run was told to stop and has saved: requeueing job $SLURM_JOB_ID"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
END
}

text="$(script)"
printf '%s\n' "$text"
echo
if [ -z "${dry_run:-}" ]; then
  (source "$(dirname "${BASH_SOURCE[0]}")/setup.sh") # here, where there is a network
  mkdir -p "$logs"
fi
# % begins a pattern in the name of an output file.
output="${logs//%/%%}/%x-%j.out"
run sbatch "--output=$output" <<<"$text"
