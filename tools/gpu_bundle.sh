#!/usr/bin/env bash
# Fills a folder with what `make gpu` needs on a machine that has a GPU and no network: wheels for that machine's Python,
# and Horovod's source. Nothing of torch, CUDA or NVIDIA is in it: those are there already.
#
# `source tools/gpu_bundle.sh` defines the functions and runs nothing.
set -euo pipefail

# shellcheck source=/dev/null
source "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/install.sh"

readonly MAX_BUNDLE_BYTES=20000000
# What cxr_hvd and preprocess import beside torch and its kin, what these need in turn, and what builds Horovod. The versions
# are those of constraints.txt, also where the machine has another one.
readonly BUNDLED=(
    annotated-doc annotated-types click jinja2 markdown-it-py markupsafe mdurl pydantic pydantic-core pydicom pygments
    pylibjpeg pylibjpeg-openjpeg pyyaml rich safetensors shellingham typer typing-extensions typing-inspection
    cffi cloudpickle ninja packaging pip psutil pycparser setuptools wheel
)
# What the machine has to have: too large for the bundle, or fitted to its driver.
readonly EXPECTED_THERE=(torch torchvision numpy scipy h5py scikit-learn opencv-python-headless)

bundle_usage() {
    cat <<'HELP'
Usage: tools/gpu_bundle.sh DIR [OPTIONS]

Fills DIR, on a machine with a network, for `make gpu BUNDLE=DIR` on a machine without one. At most 20 MB.

Options
  --python X.Y      Python of that machine (default: 3.12)
  --torch X.Y       torch of that machine (default: 2.11); noted, and compared there
  --machine NAME    its processor: x86_64 or aarch64 (default: that of this machine)
  -h, --help        this text

Exit status: 0 done; 1 failed, one line says what to do; 2 wrong usage.
HELP
}

fail() { printf 'gpu_bundle: error: %s\n' "$*" >&2; exit 1; }

wrong_bundle_usage() { printf 'gpu_bundle: error: %s (see tools/gpu_bundle.sh --help)\n' "$*" >&2; exit 2; }

parse_bundle_options() {
    BUNDLE='' FOR_PYTHON=3.12 FOR_TORCH=2.11 FOR_MACHINE=$(uname -m)
    while (($#)); do
        case $1 in
            --python | --torch | --machine) [[ -n ${2:-} ]] || wrong_bundle_usage "$1 needs a value" ;;&
            --python) FOR_PYTHON=$2; shift 2 ;;
            --torch) FOR_TORCH=$2; shift 2 ;;
            --machine) FOR_MACHINE=$2; shift 2 ;;
            -h | --help) bundle_usage; exit 0 ;;
            -*) wrong_bundle_usage "unknown option '$1'" ;;
            *) [[ -z $BUNDLE ]] || wrong_bundle_usage "expected one folder, found $BUNDLE and $1"; BUNDLE=$1; shift ;;
        esac
    done
    [[ -n $BUNDLE ]] || wrong_bundle_usage "expected a folder to fill"
    [[ $FOR_PYTHON =~ ^3\.[0-9]+$ ]] || wrong_bundle_usage "--python: expected a version such as 3.12, found $FOR_PYTHON"
    [[ $FOR_TORCH =~ ^[0-9]+\.[0-9]+(\.[0-9]+)?$ ]] || wrong_bundle_usage "--torch: expected a version such as 2.11, found $FOR_TORCH"
    is_torch_new_enough "$FOR_TORCH" || wrong_bundle_usage "--torch: $MIN_TORCH or newer is needed, found $FOR_TORCH"
    [[ $FOR_MACHINE == x86_64 || $FOR_MACHINE == aarch64 ]] || wrong_bundle_usage "--machine: expected x86_64 or aarch64, found $FOR_MACHINE"
}

# The bundled packages as pip reads them, one a line: `name==version`, or the name where constraints.txt has none.
bundled_requirements() {
    local name version
    for name in "${BUNDLED[@]}"; do
        version=$(pinned "$name")
        say "$name${version:+==$version}"
    done
}

# The tags of Linux wheels that a machine of today takes.
platforms() {
    local glibc
    for glibc in manylinux_2_28 manylinux_2_17 manylinux2014; do printf '%s\n' --platform "${glibc}_$FOR_MACHINE"; done
}

fill_bundle() {
    local options
    mapfile -t options < <(platforms)
    rm -f "$BUNDLE"/*.whl
    bundled_requirements >"$STATE/requirements.txt"
    step "Downloading wheels for Python $FOR_PYTHON" "$PYTHON" -m pip download --no-deps --only-binary=:all: \
        --python-version "$FOR_PYTHON" --implementation cp "${options[@]}" --dest "$BUNDLE" --requirement "$STATE/requirements.txt"
    [[ -e $BUNDLE/horovod-$HOROVOD_VERSION.tar.gz ]] || download_horovod "$BUNDLE"
    check_horovod_source "$BUNDLE/horovod-$HOROVOD_VERSION.tar.gz"
    printf 'python=%s\ntorch=%s\nmachine=%s\n' "$FOR_PYTHON" "$FOR_TORCH" "$FOR_MACHINE" >"$BUNDLE/made-for.txt"
}

check_bundle() {
    local bytes
    bytes=$(cat "$BUNDLE"/*.whl "$BUNDLE"/*.tar.gz | wc -c)
    ((bytes <= MAX_BUNDLE_BYTES)) || fail "$BUNDLE holds $bytes bytes, and at most $MAX_BUNDLE_BYTES are wanted: shorten the list in tools/gpu_bundle.sh"
    say "$BUNDLE holds $((bytes / 1000000)) MB for Python $FOR_PYTHON on $FOR_MACHINE. There have to be there: ${EXPECTED_THERE[*]}."
    say "On the machine with the GPU: make gpu BUNDLE=$BUNDLE OUT=gpu.json"
}

bundle_main() {
    parse_bundle_options "$@"
    mkdir -p "$BUNDLE" || fail "$BUNDLE: cannot be made"
    BUNDLE=$(cd "$BUNDLE" && pwd)
    STATE=$(mktemp -d)
    trap 'rm -rf "$STATE"; tidy_up $?' EXIT
    trap 'rm -rf "$STATE"; tidy_up 130' INT
    trap 'rm -rf "$STATE"; tidy_up 143' TERM
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
    PYTHON=$VENV/bin/python
    "$PYTHON" -m pip --version >/dev/null 2>&1 || PYTHON=$(command -v python3) || fail "Python with pip is needed: run make setup first"
    fill_bundle
    check_bundle
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then bundle_main "$@"; exit; fi
