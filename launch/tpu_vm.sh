#!/usr/bin/env bash
# A run on a Cloud TPU slice: asks for it, copies this checkout to all its hosts, installs, trains, and gives the slice back.
#
#   bash launch/tpu_vm.sh VERB --name=NAME --zone=ZONE [flags] [-- --config=configs/x.py --workdir=/mnt/runs/x [--config.key=value …]]
#
#   create   asks for the slice by a queued resource, and waits until it is there
#   setup    copies the commit checked out here to all hosts and installs it there, with the versions of requirements.lock
#   train    runs research.train on all hosts, which find each other; the same command again goes on with the run
#   delete   gives the slice back
#   all      the four in turn. A run that ends with another status than 0 keeps the slice, for a look: end with delete
#
#   --accelerator=TYPE     for create: v5litepod-16, v5p-128, v6e-64, …
#   --version=IMAGE        for create: the runtime of the hosts, as Google names it for the accelerator (v2-alpha-tpuv5, v2-alpha-tpuv6e, …)
#   --spot=1               for create: cheaper, and may be taken away
#   --nfs=SERVER:/SHARE    for setup: mounted at /mnt/runs. The workdir must be on a file system that all hosts see
#   --project=NAME         as gcloud takes it
#   --poll=SECONDS         between looks while the slice is waited for (default: 30)
#   --dry-run              prints the commands, and runs none
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

name="" zone="" accelerator="" version="" spot="" nfs="" project="" poll=30
case "${1:-}" in
  create | setup | train | delete | all) verb="$1" ;;
  --help | -h) help; exit 0 ;;
  *) fail "the verb comes first: create, setup, train, delete or all (bash $0 --help)." ;;
esac
shift
read_flags "name zone accelerator version spot nfs project poll" "$@"
[ -n "$name" ] || fail "--name is missing: name the slice."
[ -n "$zone" ] || fail "--zone is missing: name the zone, such as us-east5-a."
number --poll "$poll"
where=("--zone=$zone" ${project:+"--project=$project"})
case "$verb" in create | all)
  [ -n "$accelerator" ] || fail "--accelerator is missing: name the slice's type, such as v5p-128."
  [ -n "$version" ] || fail "--version is missing: name the runtime, such as v2-alpha-tpuv5." ;;
esac
case "$verb" in train | all)
  [ -n "$(workdir_of ${arguments[@]+"${arguments[@]}"})" ] || fail "--workdir is missing: give the arguments of research.train after --." ;;
esac

# on_all WORD …: a command on every host. gcloud hands one string to the hosts' shells, so each word is quoted for them.
on_all() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all "--command=$(quote "$@")"
}

create() {
  run gcloud compute tpus queued-resources create "$name" "${where[@]}" "--node-id=$name" "--accelerator-type=$accelerator" \
    "--runtime-version=$version" ${spot:+--spot}
  [ -z "${dry_run:-}" ] || return 0
  local state=""
  while [ "$state" != ACTIVE ]; do
    state="$(gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)')"
    echo "$name: $state"
    case "$state" in
      ACTIVE) ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING) fail "the slice $name is $state: give it back with 'bash $0 delete --name=$name --zone=$zone'." ;;
      *) sleep "$poll" ;;
    esac
  done
}

setup() {
  local archive
  archive="$(mktemp -d)/research.tar.gz"
  run git -C "$root" archive --prefix=research/ "--output=$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$name:research.tar.gz" "${where[@]}" --worker=all
  rm -rf "$(dirname "$archive")"
  if [ -n "$nfs" ]; then
    # shellcheck disable=SC2016  # for the hosts
    on_all bash -euc 'mountpoint -q /mnt/runs && exit; sudo apt-get install -y nfs-common; sudo mkdir -p /mnt/runs; sudo mount -t nfs "$1" /mnt/runs' mount "$nfs"
  fi
  # setup.sh makes the virtual environment and needs nothing but Python.
  on_all bash -euc 'tar -xzf research.tar.gz; cd research; RESEARCH_EXTRAS=tpu; source launch/setup.sh'
}

train() {
  # shellcheck disable=SC2016  # for the hosts
  on_all bash -euc 'cd research; RESEARCH_EXTRAS=tpu; source launch/setup.sh; exec "$PYTHON" -m research.train "$@"' train "${arguments[@]}"
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

if [ "$verb" = all ]; then
  create
  setup
  train
  delete
else
  "$verb"
fi
