#!/usr/bin/env bash
# Runs a command as one host of a pod, and keeps the contract of its exit code:
#
#   0        it finished
#   42       it was asked to stop (SIGTERM) and saved, or another host is gone: start it again
#   127-255  it died of a signal, or its container did: start it again
#   others   a person has to mend something: a restart would not help
#
# Reads SR4_TPU (v5e, v5p, v6e, tpu7x: whose flags; without its chips jax does not start) and
# SR4_CACHE (a folder for compiled programs); sets LIBTPU_INIT_ARGS and JAX_COMPILATION_CACHE_DIR.
# Who the other hosts are, jax finds itself.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { echo "entrypoint: $*" >&2; }
die() { say "$@"; exit 1; }

(($#)) || die 'no command; give one, such as: entrypoint.sh sr4 train --config ...'
command -v "$1" >/dev/null || die "$1: no such command" # Its 127 would mean: try again.

if [[ -n ${SR4_TPU:-} ]]; then
  file=$here/flags/$SR4_TPU.txt
  [[ -r $file ]] || die "SR4_TPU=$SR4_TPU: no flags for it; there is $(ls -m "$here/flags")"
  # The file first: of a flag given twice, the last counts.
  LIBTPU_INIT_ARGS="$(sed 's/#.*//' "$file" | xargs) ${LIBTPU_INIT_ARGS:-}"
  export LIBTPU_INIT_ARGS JAX_PLATFORMS=${JAX_PLATFORMS:-tpu,cpu} # Else a CPU would train it.
fi

# Compiled programs are code that will run: nobody else may write them, and none are fetched.
cache=${SR4_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/sr4}/compiled-$(id -u)
mkdir -p "${cache%/*}" && mkdir -m 0700 "$cache" 2>/dev/null # Or it is there.
# A shared folder may hand its group down (setgid), which digits alone do not take away.
if [[ -d $cache && ! -L $cache && -O $cache ]] && chmod u=rwx,go=,ug-s "$cache" &&
  [[ $(stat -c %a "$cache") == 700 ]]; then
  export JAX_COMPILATION_CACHE_DIR=$cache
else
  say "$cache is not ours alone: it will not keep compiled programs"
  unset JAX_COMPILATION_CACHE_DIR
fi

ulimit -l unlimited 2>/dev/null || true # The chips' DMA locks memory; not everyone may ask.

signals=0 child=
trap 'signals=$((signals + 1)); [[ -z $child ]] || kill -TERM "$child" 2>/dev/null' TERM INT
"$@" &
child=$!
((signals)) && kill -TERM "$child" # It came before there was a child.

# `wait` returns when a signal comes, too: then it was not the child's code, and we wait again.  A
# 127 after a signal is `wait` saying that it gave the code before.
code=0
while :; do
  before=$signals
  wait "$child"
  got=$?
  ((got == 127 && signals)) || code=$got
  ((signals == before)) && break
done
((signals && code == 0)) && code=42
exit "$code"
