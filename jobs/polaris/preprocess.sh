#!/usr/bin/env bash
# Read an institution's files into its study file, on many ranks. Stopped, it goes on.
#
#   qsub jobs/polaris/preprocess.sh
#
# Made by: cxr-hvd jobs render preprocess --machine polaris --out jobs/polaris/preprocess.sh
# polaris: not run there by us.
# From https://docs.alcf.anl.gov/polaris/running-jobs/ (read 2026-11-24).
#PBS -N cxr-preprocess
#PBS -q prod
#PBS -l walltime=12:00:00
#PBS -l select=1:system=polaris
#PBS -l place=scatter
#PBS -l filesystems=home:eagle
#PBS -r y
#PBS -j oe

set -euo pipefail
cd "${PBS_O_WORKDIR:-.}"
exec >>"cxr-preprocess.log" 2>&1    # all jobs of a chain into one log, as they run

# ---- what is run; change it here, or render it anew
SOURCE=chexpert
ROOT=/data/chexpert
OUT=chexpert.h5
SITE=chexpert

# ---- environment
module load conda
# shellcheck source=/dev/null
source .venv/bin/activate
export OMP_NUM_THREADS=1    # one thread of torch for each core of the rank
export PYTHONUNBUFFERED=1    # the log says what happens when it happens
export HDF5_USE_FILE_LOCKING=BEST_EFFORT    # shared file systems may have no locks
export MPICH_GPU_SUPPORT_ENABLED="0"    # weights travel by NCCL; MPI itself sees host memory alone
export NCCL_SOCKET_IFNAME="hsn"    # the Slingshot ports

# ---- ranks: 1 node x 4, 8 cores each
launcher=(mpiexec -n 4 --ppn 4
    --depth=8 --cpu-bind depth    # a rank keeps its cores and the memory beside them
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
timeout 42900 "${launcher[@]}" cxr-preprocess -- "$SOURCE" --out="$OUT" --site="$SITE" -- "$ROOT" &
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
qsub jobs/polaris/preprocess.sh
