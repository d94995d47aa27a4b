#!/usr/bin/env bash
# Everything in docs/results.md, from images to tables: about two hours on two cores.
#
#   make results DATA=path/to/images    a folder with CheXpert-v1.0[-small]/ and one with mimic-cxr-2.x.0-*.csv
#
# What is there already is kept: stopped and started again, it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
export DATA
: "${DATA:?expected DATA=path/to/images, a folder with images of two hospitals (README.md)}"

bold="" plain=""
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
say() { printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }
try() { printf '$ %s\n' "$*"; "$@"; }
preprocess() { # SOURCE ROOT FILE SITE [OPTION...]
    [ -f "$3" ] || try cxr-preprocess "$1" "$2" --out "$3" --site "$4" --key "${3%.h5}.key" "${@:5}"
}
# bfloat16 where the processor computes in it, float32 elsewhere: emulated, it would be slower.
precision=fp32
if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo; then precision=bf16; fi
experiment() { try cxr-hvd experiment "$@" --set "training.precision=$precision"; }

say "1/5  Two real hospitals: study files"
mkdir -p runs/real-data runs/shift-data
nih=$(find -L "$(realpath -m -- "$DATA")" -maxdepth 2 -name 'CheXpert-v1.0*' -type d | head -n 1)
guangzhou=$(find -L "$(realpath -m -- "$DATA")" -maxdepth 3 -name 'mimic-cxr-2.*-metadata.csv*' | head -n 1)
preprocess chexpert "$(dirname "$nih")" runs/real-data/nih.h5 nih --train 320 --validate 67 --test 180
preprocess mimic-cxr "$(dirname "$guangzhou")" runs/real-data/guangzhou.h5 guangzhou

say "2/5  Two real hospitals: the four experiments with five seeds, their variants with three"
real=(--config jobs/configs/real.yaml --variants jobs/variants/real.yaml --out runs/real)
experiment "${real[@]}" --seeds 3
experiment A B C D C-with-block D-with-block D-head D-last "${real[@]}" --seeds 5

say "3/5  Phantom hospitals that differ in one way"
phantom() { # NAME SEED [OPTION...]
    if [ -f "runs/shift-data/$1.h5" ]; then return; fi
    [ -d "runs/shift-data/$1" ] || try cxr-preprocess phantom "runs/shift-data/$1" --studies 700 --seed "$2" "${@:3}"
    preprocess chexpert "runs/shift-data/$1" "runs/shift-data/$1.h5" "$([ "$1" = plain ] && echo plain || echo shifted)" \
        --train 320 --validate 100 --test 240
}
phantom plain 1
phantom none 2
phantom label 2 --label-shift 1
phantom acquisition 2 --acquisition-shift 1
phantom concept 2 --concept-shift 1
for shift in none label acquisition concept; do
    experiment A C D --config jobs/configs/shift.yaml --seeds 1 --out "runs/shift/$shift" \
        --set "sites.shifted.data=runs/shift-data/$shift.h5"
done

say "4/5  Tables and pages"
try cxr-hvd report runs/real
for shift in none label acquisition concept; do try cxr-hvd report "runs/shift/$shift"; done
try python -m bench.results --document docs/results.md

say "5/5  The demo's tables"
DATA="" jobs/demo.sh
jobs/demo.sh
