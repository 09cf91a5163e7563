#!/usr/bin/env bash
# What the launch scripts share; sourced by them. A script's flags stand before `--`, the arguments of research.train after it.
# shellcheck disable=SC2034  # the variables set here are read by the scripts that source it
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

fail() {
  echo "error: $*" >&2
  exit 2
}

# The script's own opening comment.
help() {
  sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
}

# read_flags "FLAG …" "$@": --some-flag=VALUE becomes $some_flag; what follows `--` becomes the array `arguments`.
# Only the FLAGs named are known. --dry-run takes no value.
arguments=()
read_flags() {
  local _known=" $1 " _flag _key
  shift
  while [ $# -gt 0 ]; do
    _flag="$1"
    shift
    case "$_flag" in
      --) arguments=("$@"); return ;;
      --help | -h) help; exit 0 ;;
      --dry-run) dry_run=1 ;;
      --config=* | --config.* | --workdir=*) fail "$_flag is an argument of research.train: write it after --, as in 'bash $0 … -- $_flag'." ;;
      --*=*)
        _key="${_flag%%=*}"
        [[ "$_known" == *" ${_key#--} "* ]] || fail "no flag $_key; known are --dry-run and: $(sed 's/ \([a-z]\)/ --\1/g; s/^ //' <<<"$_known")"
        _key="${_key#--}"
        printf -v "${_key//-/_}" %s "${_flag#*=}"
        ;;
      --*) fail "$_flag is unknown, or lacks its value: flags are written --name=value (bash $0 --help)." ;;
      *) fail "unexpected argument '$_flag': flags are written --name=value, and the arguments of research.train follow after --." ;;
    esac
  done
}

# number FLAG VALUE: a whole number from 1.
number() {
  [[ "$2" =~ ^[1-9][0-9]*$ ]] || fail "$1=$2 must be a whole number from 1."
}

# word FLAG VALUE: one word, that can stand in a directive or a name.
word() {
  [[ "$2" =~ ^[A-Za-z0-9_.,:@%+/=-]*$ ]] || fail "$1=$(quote "$2") must be one word of letters, digits and _.,:@%+/=-"
}

# The value of --workdir among the arguments given; nothing where there is none.
workdir_of() {
  local argument found=""
  for argument in "$@"; do
    case "$argument" in --workdir=*) found="${argument#--workdir=}" ;; esac
  done
  printf %s "$found"
}

# quote WORD …: for any POSIX shell to read as these words (printf %q writes what only bash reads).
quote() {
  local word between="" apostrophe="'\\''"
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_.,:@%+/=-]+$ ]] || word="'${word//"'"/$apostrophe}'"
    printf '%s%s' "$between" "$word"
    between=" "
  done
}

# Prints a command as it could be typed, then runs it; with --dry-run it is only printed.
run() {
  quote "$@"
  echo
  if [ -z "${dry_run:-}" ]; then "$@"; fi
}
