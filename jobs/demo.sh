#!/usr/bin/env bash
# The whole story in four commands: hospital files -> study files -> training by two ranks -> a table for each site.
#
#   make demo                      two phantom institutions, drawn on the spot
#   make demo DATA=path/to/images  your own: a folder with CheXpert-v1.0[-small]/ and one with mimic-cxr-2.x.0-*.csv
#
# Study files are kept in runs/demo-data and made once; the run folder is runs/demo. Your own hospitals are called as
# their folders in DATA are.
set -euo pipefail
cd "$(dirname "$0")/.."

data=runs/demo-data
run=runs/demo
mkdir -p "$data"

# Say each command before it runs, so that it can be typed again; in bold letters on a terminal alone.
bold="" plain=""
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
say() { printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }
try() { printf '$ %s\n' "$*"; "$@"; }
fail() { echo "demo: $1" >&2; exit 1; }

# Preprocess one institution on both cores. Root must tell Open MPI that it means it.
as_root=(); [ "$(id -u)" -ne 0 ] || as_root=(--allow-run-as-root)
preprocess() { # SOURCE ROOT SITE [OPTION...]
    local file="$data/$3.h5"
    if [ -f "$file" ]; then
        [ ! -f "$file.from" ] || [ "$(cat "$file.from")" = "$2" ] ||
            fail "$file was made from $(cat "$file.from"), not from $2: remove it, or call the folder in DATA otherwise"
        echo "$file is there already"
        return
    fi
    try mpirun "${as_root[@]}" --oversubscribe -np 2 cxr-preprocess "$1" "$2" --out "$file" --site "$3" --key "$data/$3.key" "${@:4}"
    printf '%s\n' "$2" >"$file.from"
}

# Name a hospital after the folder in DATA that its files are in.
name_of() { # ROOT
    local below="${1#"$DATA"}"
    below="${below#/}"
    [ -n "$below" ] || below=$(basename "$DATA")
    printf '%s' "${below%%/*}" | tr -c 'A-Za-z0-9_-' '-' | sed -E 's/^(site)?[^A-Za-z0-9]+//'
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
    config=$data/demo-real.yaml
    run=runs/demo-real
    say "1/4  Two institutions in $DATA"
    DATA=$(realpath -- "$DATA")
    chexpert=$(find -L "$DATA" -maxdepth 2 -name 'CheXpert-v1.0*' -type d -print -quit)
    mimic=$(find -L "$DATA" -maxdepth 3 -name 'mimic-cxr-2.*-metadata.csv*' -print -quit)
    [ -n "$chexpert" ] && [ -n "$mimic" ] ||
        fail "$DATA: expected a folder CheXpert-v1.0* and a file mimic-cxr-2.*-metadata.csv* up to three folders down"
    first=$(name_of "$(dirname "$chexpert")")
    second=$(name_of "$(dirname "$mimic")")
    [ -n "$first" ] && [ -n "$second" ] && [ "$first" != "$second" ] ||
        fail "$DATA: expected two folders with names of their own, one a hospital, found '$first' and '$second'"
    sed -e "s|^  nih: .*|  \"$first\": {ranks: 1, data: $data/$first.h5}|" \
        -e "s|^  guangzhou: .*|  \"$second\": {ranks: 1, data: $data/$second.h5}|" jobs/configs/demo-real.yaml >"$config"
    say "2/4  Preprocess: one study file each, on two ranks"
    preprocess chexpert "$(dirname "$chexpert")" "$first"
    preprocess mimic-cxr "$(dirname "$mimic")" "$second"
fi

say "3/4  Train experiment D: the middle of DenseNet121 is averaged after every step, both ends stay private"
try cxr-hvd train "$config" --run "$run" --overwrite --set "training.precision=$precision"

say "4/4  Evaluate: each institution's network on its own test studies"
try cxr-hvd evaluate "$run"

say "Done. Run folder: $run (one folder for each institution: config, plan, metrics, checkpoints, results)"
