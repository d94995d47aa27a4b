#!/usr/bin/env bash
# Read an institution's files into its study file, on many ranks. Stopped, it goes on.
#
#   bsub < jobs/lsf/preprocess.sh
#
# Made by: cxr-hvd jobs render preprocess --machine lsf --out jobs/lsf/preprocess.sh
# lsf: not run by us.
#BSUB -J cxr-preprocess
#BSUB -W 12:00
#BSUB -nnodes 1
#BSUB -wa USR1 -wt 5
#BSUB -r
#BSUB -Q 75
#BSUB -o cxr-preprocess.log

set -euo pipefail
cd "${LS_SUBCWD:-.}"

# ---- what is run; change it here, or render it anew
SOURCE=chexpert
ROOT=/data/chexpert
OUT=chexpert.h5
SITE=chexpert

# ---- environment
# shellcheck source=/dev/null
source .venv/bin/activate
export OMP_NUM_THREADS=1    # one thread of torch for each core of the rank
export PYTHONUNBUFFERED=1    # the log says what happens when it happens
export HDF5_USE_FILE_LOCKING=BEST_EFFORT    # shared file systems may have no locks

# ---- ranks: 1 node x 8, 2 cores each
launcher=(jsrun -n 8 -r 8    # a resource set for each rank
    -a 1 -c 2 -g 0 -b packed:2    # its cores, its GPU
)

# ---- work, and what comes after it
say() { printf '%s cxr-preprocess: %s\n' "$(date '+%F %T')" "$*"; }

# Before the walltime is over, or when another job needs the nodes.
# shellcheck disable=SC2317,SC2329  # called by trap
ask() { say "has to go: what is written is kept"; kill -TERM "$work" 2>/dev/null || true; }

# Whether anybody still wants this job, once it has stopped: not after it was cancelled.
wanted=yes
is_wanted() { [ -n "$wanted" ]; }

# What has been reached: a job that gets no further must not queue itself for ever.
reached() {
    local out
    out=$(realpath -m -- "$OUT")
    { find "${out%/*}/" -path "*${out##*/}*" -type f -printf '%p %s\n' 2>/dev/null || true; } | sort | cksum
}
before=$(reached)

say "start on $(hostname)"
"${launcher[@]}" cxr-preprocess -- "$SOURCE" --out="$OUT" --site="$SITE" -- "$ROOT" &
work=$!
trap ask USR1
trap 'wanted=; ask' TERM INT
# A signal ends `wait`, not the work.
while kill -0 "$work" 2>/dev/null; do wait "$work" || true; done
status=0
wait "$work" || status=$?
trap '' USR1 TERM INT

if [ "$status" -eq 0 ]; then
    say "done"
    exit
fi
if ! is_wanted; then
    say "ended with $status, and is not queued again; the same job goes on where it stood"
    exit "$status"
fi
# 75 is a stop on request. Another failure may be that of a node: worth a new start if this one got further.
if [ "$(reached)" = "$before" ]; then
    say "ended with $status and not one step further than before: see the lines above; 75 wants a longer walltime"
    exit 1
fi
say "ended with $status; goes on in a further job"
exit 75    # LSF queues it again, by -Q 75
