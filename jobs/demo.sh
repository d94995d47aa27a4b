#!/usr/bin/env bash
# The whole story in four commands: hospital files -> study files -> training by two ranks -> a table for each site.
#
#   make demo                      two phantom institutions, drawn on the spot
#   make demo DATA=path/to/images  your own: a folder with CheXpert-v1.0[-small]/ and one with mimic-cxr-2.x.0-*.csv
#
# Study files are kept in runs/demo-data and made once; the run folder is runs/demo.
set -euo pipefail
cd "$(dirname "$0")/.."

data=runs/demo-data
run=runs/demo
mkdir -p "$data"

# Say each command before it runs, so that it can be typed again.
say() { printf '\n\033[1m%s\033[0m\n' "$1"; }
try() { printf '$ %s\n' "$*"; "$@"; }

# Launchers put the rank's name before each line, and into long ones; one machine's demo reads better without.
plain() { LC_ALL=C sed -u -E 's/\[[0-9]+(,[0-9]+)?\]<std(out|err)>: ?//g'; }
launcher() { printf '$ horovodrun -np 2 %s\n' "$*"; horovodrun -np 2 "$@" 2>&1 | plain; }

# Preprocess one institution on both cores. Root must tell Open MPI that it means it.
as_root=(); [ "$(id -u)" -ne 0 ] || as_root=(--allow-run-as-root)
preprocess() { # SOURCE ROOT SITE [OPTION...]
    local file="$data/$3.h5"
    if [ -f "$file" ]; then echo "$file is there already"; return; fi
    try mpirun "${as_root[@]}" --oversubscribe -np 2 cxr-preprocess "$1" "$2" --out "$file" --site "$3" --key "$data/$3.key" "${@:4}"
}

# Pick bfloat16 where the processor computes in it: more than twice as fast. Elsewhere it would be emulated.
precision=fp32
if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo; then precision=bf16; fi

if [ -z "${DATA:-}" ]; then
    config=jobs/configs/demo.yaml
    say "1/4  Two phantom institutions, in the layouts of CheXpert and MIMIC-CXR"
    for layout in chexpert mimic-cxr; do
        if [ -d "$data/phantom-$layout" ]; then echo "$data/phantom-$layout is there already"; continue; fi
        try cxr-preprocess phantom "$data/phantom-$layout" --layout "$layout" --studies 800 --seed 1
    done
    say "2/4  Preprocess: one study file each, on two ranks"
    preprocess chexpert "$data/phantom-chexpert" chexpert --train 480 --test 200
    preprocess mimic-cxr "$data/phantom-mimic-cxr" mimic --train 480 --test 200
else
    config=jobs/configs/demo-real.yaml
    run=runs/demo-real
    say "1/4  Two institutions in $DATA"
    nih=$(find -L "$(realpath -m -- "$DATA")" -maxdepth 2 -name 'CheXpert-v1.0*' -type d | head -n 1)
    guangzhou=$(find -L "$(realpath -m -- "$DATA")" -maxdepth 3 -name 'mimic-cxr-2.*-metadata.csv*' | head -n 1)
    if [ -z "$nih" ] || [ -z "$guangzhou" ]; then
        echo "demo: $DATA: expected a folder CheXpert-v1.0* and a file mimic-cxr-2.*-metadata.csv* up to three folders down" >&2
        exit 1
    fi
    say "2/4  Preprocess: one study file each, on two ranks"
    preprocess chexpert "$(dirname "$nih")" nih
    preprocess mimic-cxr "$(dirname "$guangzhou")" guangzhou
fi

say "3/4  Train experiment D: the middle of DenseNet121 is averaged after every step, both ends stay private"
launcher cxr-hvd train "$config" --run "$run" --overwrite --set "training.precision=$precision"

say "4/4  Evaluate: each institution's network on its own test studies"
launcher cxr-hvd evaluate "$run"

say "Done. Run folder: $run (one folder for each institution: config, plan, metrics, checkpoints, results)"
