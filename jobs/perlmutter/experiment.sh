#!/usr/bin/env bash
# Train and score the study's set-ups, one after the other. Stopped, it goes on where it stood.
#
#   sbatch jobs/perlmutter/experiment.sh
#
# Made by: cxr-hvd jobs render experiment --machine perlmutter --out jobs/perlmutter/experiment.sh
# perlmutter: not run there by us.
# From https://docs.nersc.gov/jobs/ (read 2026-11-24).
#SBATCH --job-name=cxr-experiment
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --qos=regular
#SBATCH --time=12:00:00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --constraint=gpu

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

# ---- what is run: change it here, or render the script again
CONFIG=jobs/configs/D.yaml
RUN=runs/experiment
SEEDS=5

# ---- environment
module load PrgEnv-gnu cudatoolkit cray-mpich python
# shellcheck source=/dev/null
source .venv/bin/activate
export OMP_NUM_THREADS=16    # torch: one thread for each core of the rank
export PYTHONUNBUFFERED=1    # log lines appear at once
export NCCL_DEBUG=WARN    # warn if NCCL does not find the GPUs' network
export MPICH_GPU_SUPPORT_ENABLED="0"    # weights travel by NCCL; MPI itself sees host memory alone
export NCCL_SOCKET_IFNAME="hsn"    # the Slingshot ports

# ---- ranks: 1 node x 2, 16 cores each; chexpert 1, mimic 1, assigned in this order
launcher=(srun --mpi=cray_shasta    # how srun and MPI exchange data at the start
    --ntasks=2 --ntasks-per-node=2
    --cpus-per-task=16    # repeated here: srun does not inherit it from the job
    --cpu-bind=cores    # bind each rank to its cores and their memory
    --gpus-per-node=4 --gpu-bind=none    # a rank takes the GPU of its local rank; NCCL needs to see all GPUs
    --kill-on-bad-exit=1    # when one rank fails, end all
)

# ---- the work, and whether the job queues itself again
say() { printf '%s cxr-experiment: %s\n' "$(date '+%F %T')" "$*"; }

# Called before the time limit, or when another job needs the nodes.
# shellcheck disable=SC2317,SC2329  # called by trap
ask() { say "asked to stop: the ranks write a checkpoint"; kill -USR1 "$work" 2>/dev/null || true; }

# After a stop: a cancelled job is not wanted any more.
is_wanted() {
    case $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) in
        RUNNING | SIGNALING) ;;
        *) return 1 ;;
    esac
}

# A digest of the progress on disk: a job without progress must not queue itself for ever.
reached() {
    local run
    run=$(realpath -m -- "$RUN")
    { find "$run" -name 'step-*' -o -name scores.safetensors 2>/dev/null || true; } | sort | cksum
}
before=$(reached)

say "start on $(hostname)"
cxr-hvd experiment --seeds="$SEEDS" --config="$CONFIG" --out="$RUN" \
    --launcher="${launcher[*]}" -- A B C D &
work=$!
trap ask USR1 TERM INT
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
scontrol requeue "$SLURM_JOB_ID"
