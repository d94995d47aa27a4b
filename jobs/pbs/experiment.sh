#!/usr/bin/env bash
# Train and score the study's set-ups, one after the other. Stopped, it goes on where it stood.
#
#   qsub jobs/pbs/experiment.sh
#
# Made by: cxr-hvd jobs render experiment --machine pbs --out jobs/pbs/experiment.sh
# pbs: not run by us on PBS Pro; our tests submit it through Slurm's qsub, which reads a part of PBS's directives.
#PBS -N cxr-experiment
#PBS -l walltime=12:00:00
#PBS -l select=2:ncpus=16:mpiprocs=1
#PBS -l place=scatter
#PBS -r y
#PBS -j oe

set -euo pipefail
cd "${PBS_O_WORKDIR:-.}"
exec >>"cxr-experiment.log" 2>&1    # one log for all jobs of a chain

# ---- what is run: change it here, or render the script again
CONFIG=jobs/configs/D.yaml
RUN=runs/experiment
SEEDS=5

# ---- environment
# shellcheck source=/dev/null
source .venv/bin/activate
export OMP_NUM_THREADS=16    # torch: one thread for each core of the rank
export PYTHONUNBUFFERED=1    # log lines appear at once
export OMPI_MCA_mpi_warn_on_fork=0    # the only fork is git, once, at the start

# ---- ranks: 2 nodes x 1, 16 cores each; chexpert 1, mimic 1, assigned in this order
launcher=(mpiexec -np 2
    --map-by ppr:1:node:pe=16 --bind-to core    # bind each rank to its cores
    --tag-output    # mark each line with its rank
)

# ---- the work, and whether the job queues itself again
say() { printf '%s cxr-experiment: %s\n' "$(date '+%F %T')" "$*"; }

# Called before the time limit, or when another job needs the nodes.
# shellcheck disable=SC2317,SC2329  # called by trap
ask() { say "asked to stop: the ranks write a checkpoint"; kill -USR1 "$work" 2>/dev/null || true; }

# After a stop: a cancelled job is not wanted any more.
wanted=yes
is_wanted() { [ -n "$wanted" ]; }

# A digest of the progress on disk: a job without progress must not queue itself for ever.
reached() {
    local run
    run=$(realpath -m -- "$RUN")
    { find "$run" -name 'step-*' -o -name scores.safetensors 2>/dev/null || true; } | sort | cksum
}
before=$(reached)

say "start on $(hostname)"
cxr-hvd experiment --seeds="$SEEDS" --config="$CONFIG" --out="$RUN" \
    --launcher="${launcher[*]}" --time-limit 42900 -- A B C D &
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
qsub jobs/pbs/experiment.sh
