#!/usr/bin/env bash
# Measures on a machine with a GPU and no network: from this repository, the torch that is there, and a folder that
# tools/gpu_bundle.sh has filled. Two stages of less than ten minutes each write into one JSON file.
#
# Read `gpu_main`, at the end, first. `source tools/gpu.sh` defines the functions and runs nothing.
set -euo pipefail

# shellcheck source=/dev/null
source "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/install.sh"

readonly STAGE_LIMIT_S=570 BUILD_LIMIT_S=300

gpu_usage() {
    cat <<'HELP'
Usage: tools/gpu.sh --bundle DIR [OPTIONS]

Builds Horovod for the torch that is there, checks the CUDA path, and measures training. Needs no network and no MPI.

Options
  --bundle DIR      the folder that tools/gpu_bundle.sh has filled
  --out FILE        results, as JSON; a later stage completes it (default: gpu.json)
  --stage NAME      build: Horovod and the ten checks; measure: speed; all: both in turn (default: all)
  --python PY       the Python that has torch (default: python3)
  --work DIR        environments and builds; kept from one stage to the next (default: a folder in /tmp)
  --dry-run         tiny sizes on the CPU, in the environment of `make setup`; builds nothing
  -h, --help        this text

Exit status: 0 the results are written, whatever they say; 1 failed, one line says what to do; 2 wrong usage.
HELP
}

fail() { printf 'gpu: error: %s\n' "$*" >&2; exit 1; }

wrong_gpu_usage() { printf 'gpu: error: %s (see tools/gpu.sh --help)\n' "$*" >&2; exit 2; }

parse_gpu_options() {
    BUNDLE='' OUT=gpu.json STAGE=all BASE_PYTHON=python3 WORK=${TMPDIR:-/tmp}/cxr-hvd-gpu.$UID DRY_RUN='' BUILD_KIND=''
    while (($#)); do
        case $1 in
            --bundle | --out | --stage | --python | --work | --build-one) [[ -n ${2:-} ]] || wrong_gpu_usage "$1 needs a value" ;;&
            --bundle) BUNDLE=$2; shift 2 ;;
            --out) OUT=$2; shift 2 ;;
            --stage) STAGE=$2; shift 2 ;;
            --python) BASE_PYTHON=$2; shift 2 ;;
            --work) WORK=$2; shift 2 ;;
            --build-one) BUILD_KIND=$2; shift 2 ;;     # what this script calls itself with
            --dry-run) DRY_RUN=1; shift ;;
            -h | --help) gpu_usage; exit 0 ;;
            *) wrong_gpu_usage "unknown option '$1'" ;;
        esac
    done
    [[ $STAGE == build || $STAGE == measure || $STAGE == all ]] || wrong_gpu_usage "--stage: expected build, measure or all, found $STAGE"
    [[ -n $DRY_RUN || -n $BUNDLE ]] || wrong_gpu_usage "--bundle is missing: fill a folder with tools/gpu_bundle.sh on a machine with a network"
    if [[ -n $BUNDLE ]]; then
        [[ -e $BUNDLE/made-for.txt ]] || wrong_gpu_usage "--bundle: $BUNDLE was not filled by tools/gpu_bundle.sh"
        BUNDLE=$(cd "$BUNDLE" && pwd)
    fi
    OUT=$(realpath -m "$OUT") WORK=$(realpath -m "$WORK")
}

# ---------------------------------------------------------------- environments

# A value of the bundle's note, such as `made_for python`.
made_for() { sed -n "s/^$1=//p" "$BUNDLE/made-for.txt"; }

check_machine() {
    local version torch
    version=$(python_version "$BASE_PYTHON") || fail "--python: no such interpreter: $BASE_PYTHON"
    [[ $version == "$(made_for python)" ]] ||
        fail "$BUNDLE is for Python $(made_for python), and $BASE_PYTHON is $version: fill one with tools/gpu_bundle.sh DIR --python $version"
    torch=$("$BASE_PYTHON" -c 'import torch; print(torch.__version__)' 2>&1) || fail "$BASE_PYTHON has no torch ($(tail -n 1 <<<"$torch")): give another --python"
    torch=$(tail -n 1 <<<"$torch")
    is_torch_new_enough "$torch" || fail "torch $MIN_TORCH or newer is needed, found $torch: give another --python"
    [[ $torch == "$(made_for torch)"* ]] || say "Note: $BUNDLE was filled for torch $(made_for torch); this is $torch"
}

# make_environment FOLDER: a virtual environment above the Python that has torch, with the bundle's wheels. It wants
# neither ensurepip nor pip: the bundle's pip runs from its wheel.
make_environment() {
    local folder
    if [[ -e $1/ready ]]; then return; fi
    rm -rf "$1"
    "$BASE_PYTHON" -m venv --without-pip --system-site-packages "$1"
    folder=$(VENV=$1 site_packages)
    # Where that Python belongs to a virtual environment itself, --system-site-packages names the interpreter below it.
    "$BASE_PYTHON" -c 'import site, sys; print(*(site.getsitepackages() if sys.prefix != sys.base_prefix else []), sep="\n")' \
        >"$folder/_parent_environment.pth"
    say "$ROOT" >"$folder/cxr_hvd_repository.pth"
    step "Installing the bundle's packages into $1" env "PYTHONPATH=$(echo "$BUNDLE"/pip-*.whl)" "$1/bin/python" -m pip install \
        --no-index --no-deps --no-cache-dir --ignore-installed --no-warn-script-location "$BUNDLE"/*.whl
    touch "$1/ready"
}

# ---------------------------------------------------------------- builds

# Build Horovod of one kind into an environment of its own, and say what it holds. Run with a time limit, as a process.
#   gpu: with CUDA and NCCL where nvcc and NCCL are there.     cpu: as tools/install.sh builds it without nvcc.
# shellcheck disable=SC2034  # the installer's functions read what is set here
build_one() {
    local gpus
    VENV=$WORK/$BUILD_KIND STATE=$WORK/$BUILD_KIND-state CACHE=$WORK/$BUILD_KIND-wheel OFFLINE_DIR=$BUNDLE WITHOUT_MPI=1
    trap 'tidy_up $?' EXIT
    trap 'tidy_up 130' INT
    trap 'tidy_up 143' TERM
    mkdir -p "$STATE" "$CACHE"
    make_environment "$VENV"
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=$BUNDLE PIP_DISABLE_PIP_VERSION_CHECK=1 UV_NO_PROGRESS=1
    # For the GPUs that are here, not for all that torch knows: a fifth of the compiler's work.
    gpus=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | sort -u | paste -sd ,) || true
    if [[ -n $gpus ]]; then export HOROVOD_BUILD_CUDA_CC_LIST=$gpus; fi
    command -v make >/dev/null || export CMAKE_GENERATOR=Ninja
    check_cxx
    describe_torch
    choose_accelerator
    if [[ $BUILD_KIND == cpu ]]; then CUDA_TOOLKIT=- NCCL_VERSION=-; fi
    build_horovod wheel
    step "Installing Horovod" "$VENV/bin/python" -m pip install --no-index --no-deps --ignore-installed "$CACHE"/wheel/horovod-*.whl
    "$VENV/bin/python" -W ignore - <<'PY' >"$STATE/parts"
import horovod.torch as hvd
print(f"gloo={int(hvd.gloo_built())} nccl={int(bool(hvd.nccl_built()))} cuda={int(bool(hvd.cuda_built()))} mpi={int(hvd.mpi_built())}")
PY
    say "Horovod of kind $BUILD_KIND: $(<"$STATE/parts")"
}

# build KIND...: side by side, each as a process with a time limit. What came of each is in $WORK/KIND.build.
build() {
    local kind pids=()
    for kind in "$@"; do
        if grep -q '^built' "$WORK/$kind.build" 2>/dev/null; then continue; fi
        (
            started=$SECONDS status=0
            timeout --kill-after 20 "$BUILD_LIMIT_S" "$ROOT/tools/gpu.sh" --bundle "$BUNDLE" --work "$WORK" --python "$BASE_PYTHON" \
                --build-one "$kind" >"$WORK/$kind.log" 2>&1 || status=$?
            if ((status == 0)); then
                printf 'built\n%d\n%s\n' $((SECONDS - started)) "$(<"$WORK/$kind-state/parts")"
            else
                printf 'failed\n%d\nstatus %d: %s\n' $((SECONDS - started)) "$status" "$(tail -n 1 "$WORK/$kind.log")"
            fi >"$WORK/$kind.build"
            say "Horovod, $kind: $(tr '\n' ' ' <"$WORK/$kind.build")"
        ) &
        pids+=($!)
    done
    for kind in "${pids[@]}"; do wait "$kind"; done
}

# ---------------------------------------------------------------- stages

# run_part MODULE ARGUMENTS...: take measurements with the GPU's build, until this stage's time is up.
run_part() {
    local options=(--out "$OUT" --limit-s "$((STAGE_LIMIT_S - (SECONDS - STAGE_BEGAN)))")
    if [[ -n $DRY_RUN ]]; then
        options+=(--dry-run)
    else
        options+=(--builds "$WORK")
    fi
    [[ -x $RUN_PYTHON ]] || fail "$RUN_PYTHON was not made: $(tail -n 1 "$WORK/gpu.log" 2>/dev/null)"
    (cd "$ROOT" && PATH=$(dirname "$RUN_PYTHON"):$PATH "$RUN_PYTHON" -u -m "$1" "${options[@]}")
}

stage_build() {
    STAGE_BEGAN=$SECONDS
    if [[ -z $DRY_RUN ]]; then
        rm -f "$WORK"/*.build
        build gpu cpu
    fi
    run_part bench.gpu_checks
}

stage_measure() {
    STAGE_BEGAN=$SECONDS
    if [[ -z $DRY_RUN ]]; then build gpu; fi
    run_part bench.gpu
}

gpu_main() {
    parse_gpu_options "$@"
    if [[ -n $BUILD_KIND ]]; then build_one; exit 0; fi
    mkdir -p "$(dirname "$OUT")"
    if [[ -n $DRY_RUN ]]; then
        RUN_PYTHON=$VENV/bin/python
        [[ -x $RUN_PYTHON ]] || RUN_PYTHON=$(command -v python3)
    else
        BASE_PYTHON=$(command -v "$BASE_PYTHON") || fail "--python: no such interpreter"
        check_machine
        RUN_PYTHON=$WORK/gpu/bin/python
        (umask 077 && mkdir -p "$WORK")
        [[ -O $WORK && ! -L $WORK ]] || fail "$WORK is not this user's own folder: give another with --work"
    fi
    if [[ $STAGE != measure ]]; then stage_build; fi
    if [[ $STAGE != build ]]; then stage_measure; fi
    say "Results: $OUT"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then gpu_main "$@"; exit; fi
