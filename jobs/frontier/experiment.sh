#!/usr/bin/env bash
# Train and score the study's set-ups, one after the other. Stopped, it goes on where it stood.
#
#   sbatch jobs/frontier/experiment.sh
#
# Made by: cxr-hvd jobs render experiment --machine frontier --out jobs/frontier/experiment.sh
# frontier: not run there by us; its GPUs are AMD's, for which Horovod has to be built with RCCL, which tools/install.sh does not do.
# From https://docs.olcf.ornl.gov/systems/frontier_user_guide.html (read 2026-11-24).
#SBATCH --job-name=cxr-experiment
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --partition=batch
#SBATCH --time=12:00:00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=7
#SBATCH --gpus-per-node=8
#SBATCH --threads-per-core=1

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

# ---- what is run; change it here, or render it anew
CONFIG=jobs/configs/D.yaml
RUN=runs/experiment
SEEDS=5

# ---- environment
module load PrgEnv-gnu rocm craype-accel-amd-gfx90a cray-python
# shellcheck source=/dev/null
source .venv/bin/activate
export OMP_NUM_THREADS=7    # one thread of torch for each core of the rank
export PYTHONUNBUFFERED=1    # the log says what happens when it happens
export NCCL_DEBUG=WARN    # say so if the GPUs' own network is not found
export MPICH_GPU_SUPPORT_ENABLED="0"    # weights travel by RCCL; MPI itself sees host memory alone
export NCCL_SOCKET_IFNAME="hsn"    # the Slingshot ports
export MIOPEN_USER_DB_PATH="/tmp/miopen-$SLURM_JOB_ID"    # not on the shared file system, where ranks would wait for its lock

# ---- ranks: 1 node x 2, 7 cores each; chexpert 1, mimic 1, dealt out in this order
launcher=(srun --mpi=cray_shasta    # what MPI and srun tell each other when ranks start
    --ntasks=2 --ntasks-per-node=2
    --cpus-per-task=7    # said again: srun does not take it from the job
    --cpu-bind=cores    # a rank keeps its cores and the memory beside them
    --gpus-per-node=8 --gpu-bind=none    # a rank takes the GPU of its place on the node; NCCL has to see all
    --kill-on-bad-exit=1    # one rank fails: all end at once
)

# ---- work, and what comes after it
say() { printf '%s cxr-experiment: %s\n' "$(date '+%F %T')" "$*"; }

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
cxr-hvd experiment --seeds="$SEEDS" --config="$CONFIG" --out="$RUN" \
    --launcher="${launcher[*]}" -- A B C D &
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
