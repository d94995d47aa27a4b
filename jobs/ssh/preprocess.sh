#!/usr/bin/env bash
# Read an institution's files into its study file, on many ranks. Stopped, it goes on.
#
#   bash jobs/ssh/preprocess.sh
#
# Made by: cxr-hvd jobs render preprocess --machine ssh --out jobs/ssh/preprocess.sh
# ssh: run in our tests, between two hosts with an sshd each.

set -euo pipefail
cd "${CXR_HVD:-.}"

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
export OMPI_MCA_mpi_warn_on_fork=0    # the version of git is asked once

# ---- ranks: 1 node x 8, 2 cores each
launcher=(mpirun -np 8
    --map-by ppr:8:node:pe=2 --bind-to core    # a rank keeps its cores
    --tag-output    # which rank said it
)

# ---- work, and what comes after it
say() { printf '%s cxr-preprocess: %s\n' "$(date '+%F %T')" "$*"; }

# Before the walltime is over, or when another job needs the nodes.
# shellcheck disable=SC2317,SC2329  # called by trap
ask() { say "has to go: what is written is kept"; kill -TERM "$work" 2>/dev/null || true; }

say "start on $(hostname)"
"${launcher[@]}" cxr-preprocess -- "$SOURCE" --out="$OUT" --site="$SITE" -- "$ROOT" &
work=$!
trap ask USR1 TERM INT
# A signal ends `wait`, not the work.
while kill -0 "$work" 2>/dev/null; do wait "$work" || true; done
status=0
wait "$work" || status=$?
trap '' USR1 TERM INT

if [ "$status" -eq 0 ]; then
    say "done"
    exit
fi
say "ended with $status: the lines above say why; the same job goes on where it stood"
exit "$status"
