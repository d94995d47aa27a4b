#!/usr/bin/env bash
# Read an institution's files into its study file, on many ranks. Stopped, it goes on.
#
#   qsub jobs/pbs/preprocess.sh
#
# Made by: cxr-hvd jobs render preprocess --machine pbs --out jobs/pbs/preprocess.sh
# pbs: not run by us on PBS Pro; our tests submit it through Slurm's qsub, which reads a part of PBS's directives.
#PBS -N cxr-preprocess
#PBS -l walltime=12:00:00
#PBS -l select=1:ncpus=16:mpiprocs=8
#PBS -l place=scatter
#PBS -r y
#PBS -j oe

set -euo pipefail
cd "${PBS_O_WORKDIR:-.}"
exec >>"cxr-preprocess.log" 2>&1    # one log for all jobs of a chain

# ---- what is run: change it here, or render the script again
SOURCE=chexpert
ROOT=/data/chexpert
OUT=chexpert.h5
SITE=chexpert

# ---- environment
# shellcheck source=/dev/null
source .venv/bin/activate
export OMP_NUM_THREADS=1    # torch: one thread for each core of the rank
export PYTHONUNBUFFERED=1    # log lines appear at once
export HDF5_USE_FILE_LOCKING=BEST_EFFORT    # shared file systems may not support locks
export OMPI_MCA_mpi_warn_on_fork=0    # the only fork is git, once, at the start

# ---- ranks: 1 node x 8, 2 cores each
launcher=(mpiexec -np 8
    --map-by ppr:8:node:pe=2 --bind-to core    # bind each rank to its cores
    --tag-output    # mark each line with its rank
)

# ---- the work, and whether the job queues itself again
say() { printf '%s cxr-preprocess: %s\n' "$(date '+%F %T')" "$*"; }

# Called before the time limit, or when another job needs the nodes.
# shellcheck disable=SC2317,SC2329  # called by trap
ask() { say "asked to stop: written blocks are kept"; kill -TERM "$work" 2>/dev/null || true; }

# After a stop: a cancelled job is not wanted any more.
wanted=yes
is_wanted() { [ -n "$wanted" ]; }

# A digest of the progress on disk: a job without progress must not queue itself for ever.
reached() {
    local out
    out=$(realpath -m -- "$OUT")
    { find "${out%/*}/" -path "*${out##*/}*" -type f -printf '%p %s\n' 2>/dev/null || true; } | sort | cksum
}
before=$(reached)

say "start on $(hostname)"
timeout 42900 "${launcher[@]}" cxr-preprocess -- "$SOURCE" --out="$OUT" --site="$SITE" -- "$ROOT" &
work=$!
trap ask USR1
trap 'wanted=; ask' TERM INT
# A signal ends `wait`, but not the work.
while kill -0 "$work" 2>/dev/null; do wait "$work" || true; done
status=0
wait "$work" || status=$?
trap '' USR1 TERM INT

if [ "$status" -eq 0 ]; then
    say "done"
    exit
fi
if ! is_wanted; then
    say "ended with $status, and is not queued again; the same job continues where it stopped"
    exit "$status"
fi
# 75 is a stop on request. Any other failure may be a node's: queue again if there was progress.
if [ "$(reached)" = "$before" ]; then
    say "ended with $status and without progress: see the lines above; after 75, set a longer walltime"
    exit 1
fi
say "ended with $status; continues in a new job"
qsub jobs/pbs/preprocess.sh
