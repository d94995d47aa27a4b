#!/usr/bin/env bash
# Train one model over all sites of a config. Stopped, it goes on where it stood.
#
#   sbatch jobs/slurm/train.sh
#
# Made by: cxr-hvd jobs render train --machine slurm --out jobs/slurm/train.sh
# slurm: run in our tests, on Slurm 22.05 with Open MPI 4.1.
#SBATCH --job-name=cxr-train
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --time=12:00:00
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

# ---- what is run; change it here, or render it anew
CONFIG=jobs/configs/D.yaml
RUN=runs/train

# ---- environment
# shellcheck source=/dev/null
source .venv/bin/activate
export OMP_NUM_THREADS=16    # one thread of torch for each core of the rank
export PYTHONUNBUFFERED=1    # the log says what happens when it happens

# ---- ranks: 2 nodes x 1, 16 cores each; chexpert 1, mimic 1, dealt out in this order
launcher=(srun --mpi=pmix    # what MPI and srun tell each other when ranks start
    --ntasks=2 --ntasks-per-node=1
    --cpus-per-task=16    # said again: srun does not take it from the job
    --cpu-bind=cores    # a rank keeps its cores and the memory beside them
    --kill-on-bad-exit=1    # one rank fails: all end at once
)
train=(cxr-hvd train --run="$RUN" --resume auto -- "$CONFIG")

# ---- work, and what comes after it
say() { printf '%s cxr-train: %s\n' "$(date '+%F %T')" "$*"; }

# Before the walltime is over, or when another job needs the nodes.
# shellcheck disable=SC2317,SC2329  # called by trap
ask() { say "has to go: the ranks are asked for a checkpoint"; kill -USR1 "$work" 2>/dev/null || true; }

# Whether anybody still wants this job, once it has stopped: not after it was cancelled.
is_wanted() {
    case $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) in
        RUNNING | SIGNALING) ;;
        *) return 1 ;;
    esac
}

# What has been reached: a job that gets no further must not queue itself for ever.
reached() {
    local run
    run=$(realpath -m -- "$RUN")
    { find "$run" -name 'step-*' -o -name scores.safetensors 2>/dev/null || true; } | sort | cksum
}
before=$(reached)

say "start on $(hostname)"
"${launcher[@]}" "${train[@]}" &
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
scontrol requeue "$SLURM_JOB_ID"
