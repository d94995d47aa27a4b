#!/usr/bin/env bash
# Train one model over all sites of a config. Stopped, it goes on where it stood.
#
#   bsub < jobs/lsf/train.sh
#
# Made by: cxr-hvd jobs render train --machine lsf --out jobs/lsf/train.sh
# lsf: not run by us.
#BSUB -J cxr-train
#BSUB -W 12:00
#BSUB -nnodes 2
#BSUB -wa USR1 -wt 5
#BSUB -r
#BSUB -Q 75
#BSUB -o cxr-train.log

set -euo pipefail
cd "${LS_SUBCWD:-.}"

# ---- what is run; change it here, or render it anew
CONFIG=jobs/configs/D.yaml
RUN=runs/train

# ---- environment
# shellcheck source=/dev/null
source .venv/bin/activate
export OMP_NUM_THREADS=16    # one thread of torch for each core of the rank
export PYTHONUNBUFFERED=1    # the log says what happens when it happens

# ---- ranks: 2 nodes x 1, 16 cores each; chexpert 1, mimic 1, dealt out in this order
launcher=(jsrun -n 2 -r 1    # a resource set for each rank
    -a 1 -c 16 -g 0 -b packed:16    # its cores, its GPU
)
train=(cxr-hvd train --run="$RUN" --resume auto -- "$CONFIG")

# ---- work, and what comes after it
say() { printf '%s cxr-train: %s\n' "$(date '+%F %T')" "$*"; }

# Before the walltime is over, or when another job needs the nodes.
# shellcheck disable=SC2317,SC2329  # called by trap
ask() { say "has to go: the ranks are asked for a checkpoint"; kill -USR1 "$work" 2>/dev/null || true; }

# Whether anybody still wants this job, once it has stopped: not after it was cancelled.
wanted=yes
is_wanted() { [ -n "$wanted" ]; }

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
