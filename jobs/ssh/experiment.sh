#!/usr/bin/env bash
# Train and score the study's set-ups, one after the other. Stopped, it goes on where it stood.
#
#   bash jobs/ssh/experiment.sh
#
# Made by: cxr-hvd jobs render experiment --machine ssh --out jobs/ssh/experiment.sh
# ssh: run in our tests, between two hosts with an sshd each.

set -euo pipefail
cd "${CXR_HVD:-.}"

# ---- what is run; change it here, or render it anew
CONFIG=jobs/configs/D.yaml
RUN=runs/experiment
SEEDS=5

# ---- environment
# shellcheck source=/dev/null
source .venv/bin/activate
export OMP_NUM_THREADS=16    # one thread of torch for each core of the rank
export PYTHONUNBUFFERED=1    # the log says what happens when it happens
export OMPI_MCA_mpi_warn_on_fork=0    # the version of git is asked once

# ---- ranks: 2 nodes x 1, 16 cores each; chexpert 1, mimic 1, dealt out in this order
launcher=(mpirun -np 2
    --map-by ppr:1:node:pe=16 --bind-to core    # a rank keeps its cores
    --tag-output    # which rank said it
    --mca pml ob1 --mca btl 'tcp,vader,self'    # plain sockets between hospitals
    -host 'hospital-a:1,hospital-b:1'
    -x PATH -x OMP_NUM_THREADS -x PYTHONUNBUFFERED    # ssh hands no variables on
)

# ---- work, and what comes after it
say() { printf '%s cxr-experiment: %s\n' "$(date '+%F %T')" "$*"; }

# Before the walltime is over, or when another job needs the nodes.
# shellcheck disable=SC2317,SC2329  # called by trap
ask() { say "has to go: the ranks are asked for a checkpoint"; kill -USR1 "$work" 2>/dev/null || true; }

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
say "ended with $status: the lines above say why; the same job goes on where it stood"
exit "$status"
