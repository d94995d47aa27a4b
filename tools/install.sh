#!/usr/bin/env bash
# Sets up everything that cxr_hvd needs, in one step: system packages, a virtual environment with the tested versions,
# and Horovod built with MPI and Gloo (and NCCL, where there is CUDA) for exactly the torch that is installed.
#
# Read `main`, at the end, first: it is the recipe. It may be stopped at any point and run again: what is whole is kept,
# what is half-made is made anew. When nothing has changed it ends at once and prints nothing.
# `source tools/install.sh` defines the functions and runs nothing.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly ROOT

readonly HOROVOD_VERSION=0.28.1
readonly HOROVOD_SHA256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0   # of the source archive
readonly MIN_PYTHON=3.11 MIN_TORCH=2.9
readonly NEED_FOR_ALL_GB=8 NEED_FOR_BUILD_GB=2   # torch with its CUDA libraries 5 GB unpacked, the archives 3 GB
readonly FILES_THAT_MATTER=(constraints.txt setup.cfg pyproject.toml tools/install.sh tools/horovod_cxx.sh)

VENV=$ROOT/.venv
PYTHON=            # --python, or found by choose_python
DOWNLOAD_DIR=      # --download
OFFLINE_DIR=       # --offline
SYSTEM_TORCH=      # 1 with --system-torch
NO_DEV=            # 1 with --no-dev
CACHE=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/cxr_hvd/horovod

# ---------------------------------------------------------------- what the user sees

usage() {
    cat <<'HELP'
Usage: tools/install.sh [OPTIONS]

Sets up cxr_hvd in one step: system packages (Debian, Ubuntu), a virtual environment, the versions of constraints.txt,
and Horovod built for the torch that is installed. Safe to run again: it goes on where it stopped, and ends at once when
all is up to date.

Options
  --venv DIR        the virtual environment (default: .venv beside setup.cfg); an existing one is completed, never wiped
  --python PY       the interpreter to build it from (default: the first python3 on PATH that is 3.11 or newer)
  --system-torch    use the torch and torchvision that PY already has (torch 2.9 or newer), and install neither
  --no-dev          leave out what only tests and lint need; a later run without this option adds it
  --download DIR    only fill DIR with every package, for a machine without a network (same Python and processor)
  --offline DIR     take every package from DIR; no network is used
  -h, --help        this text

Examples
  tools/install.sh                                          a bare machine; the same as: make setup
  tools/install.sh --download usb                           on a machine with a network ...
  tools/install.sh --offline usb                            ... and then on one without
  tools/install.sh --python /opt/conda/bin/python --system-torch     a container or cluster that brings its own torch
  CXX=g++-12 tools/install.sh                               another compiler
  UV_TORCH_BACKEND=cpu tools/install.sh                     torch without CUDA, where its index can be reached

Environment
  CXX, CUDA_HOME, MAKEFLAGS   as usual          XDG_CACHE_HOME   built Horovod wheels lie in its cxr_hvd/horovod/
  PIP_INDEX_URL, pip.conf     your index, extra index, certificate and proxy are used; settings for uv (UV_*) go first
  CXR_HVD_CXX_STANDARD        C++ standard for Horovod, where it cannot be read from torch's headers

Exit status: 0 done; 1 failed, one line says what to do; 2 wrong usage.
HELP
}

say() { printf '%s\n' "$*"; }

fail() {
    printf 'install: error: %s\n' "$*" >&2
    exit 1
}

wrong_usage() {
    printf 'install: error: %s (see tools/install.sh --help)\n' "$*" >&2
    exit 2
}

# step TITLE COMMAND...: runs an external command with its output in a log; shows the time it takes.
step() {
    local title=$1 log pid status=0 started=$SECONDS beat=$SECONDS
    shift
    log=$STATE/log/$(tr -cs '[:alnum:]' '-' <<<"${title,,}" | sed 's/^-//; s/-$//').log
    mkdir -p "$STATE/log"
    [[ -t 1 ]] || say "$title ..."

    # A session of its own, so that Ctrl-C can end the whole tree of compilers; without the locks' descriptors, so that
    # nothing left behind keeps them.
    printf '+ %s\n' "$*" >"$log"
    setsid "$@" >>"$log" 2>&1 </dev/null 8>&- 9>&- &
    pid=$!
    RUNNING=$pid
    while kill -0 "$pid" 2>/dev/null; do
        if [[ -t 1 ]]; then
            printf '\r\033[K%s ... %d s %s' "$title" $((SECONDS - started)) "$(progress_in "$log")"
        elif ((SECONDS - beat >= 30)); then
            beat=$SECONDS
            say "    $((SECONDS - started)) s $(progress_in "$log")"
        fi
        sleep 0.2
    done
    wait "$pid" || status=$?
    RUNNING=
    if [[ -t 1 ]]; then printf '\r\033[K'; fi
    ((status == 0)) || explain_failure "$title" "$log" "$status"
    if [[ -t 1 ]]; then say "$title: $((SECONDS - started)) s"; else say "    done in $((SECONDS - started)) s"; fi
}

# The compiler's own percentage, or the last thing the installer said.
progress_in() {
    tail -c 20000 "$1" | grep -oE '\[ *[0-9]+%\]' | tail -n 1 || true
}

explain_failure() {
    local title=$1 log=$2 status=$3
    {
        printf '%s failed (status %d). The last that its log says of errors:\n' "$title" "$status"
        error_lines "$log" | cut -c 1-400 | sed 's/^ */    /'
        printf 'The whole log: %s\n' "$log"
    } >&2
    fail "$(diagnosis "$log"); run the same command again, what is done is kept"
}

# Compilers and CMake name the cause first and wrap it in other people's errors, so their lines go before the rest.
error_lines() {
    { grep -E -A 3 'CMake Error|fatal error:|: error:|undefined reference|No space left|Killed' "$1" | head -n 12 | grep .; } ||
        { grep -iE '(^|[^a-z_])(error|fatal|failed|cannot|could not)|[×╰├]' "$1" | tail -n 12 | grep .; } ||
        tail -n 12 "$1"
}

diagnosis() {
    if grep -qiE 'no space left on device|disk quota exceeded' "$1"; then
        printf 'the disk is full: free %s GB, or give another place with --venv and XDG_CACHE_HOME' "$NEED_FOR_ALL_GB"
    elif grep -qiE 'internal compiler error: killed|killed signal|cannot allocate memory' "$1"; then
        printf 'memory ran out while compiling: set MAKEFLAGS=-j1'
    elif grep -qiE 'dns error|name resolution|network is unreachable|connection (refused|reset|timed out)|connect error|error sending request|failed to establish|temporary failure resolving|timed out' "$1"; then
        printf 'the package index cannot be reached: check the network, HTTPS_PROXY or your pip.conf, or use --offline DIR'
    elif [[ -n $OFFLINE_DIR ]] && grep -qiE 'no matching distribution|no solution found|not found in the provided' "$1"; then
        printf '%s does not hold all packages: fill it with --download, on the same kind of processor and Python' "$OFFLINE_DIR"
    else
        printf 'the command above failed'
    fi
}

# tidy_up STATUS: ends compilers that still run, and removes a half-made build.
tidy_up() {
    trap - EXIT INT TERM
    if [[ -n ${RUNNING:-} ]]; then kill -TERM -- "-$RUNNING" 2>/dev/null || true; fi
    if [[ -n ${BUILD_DIR:-} ]]; then rm -rf "$BUILD_DIR"; fi
    exit "$1"
}

# ---------------------------------------------------------------- options and state

parse_options() {
    while (($#)); do
        case $1 in
            --venv | --python | --download | --offline)
                [[ -n ${2:-} ]] || wrong_usage "$1 needs a value" ;;&
            --venv) VENV=$2; shift 2 ;;
            --python) PYTHON=$2; shift 2 ;;
            --download) DOWNLOAD_DIR=$2; shift 2 ;;
            --offline) OFFLINE_DIR=$2; shift 2 ;;
            --system-torch) SYSTEM_TORCH=1; shift ;;
            --no-dev) NO_DEV=1; shift ;;
            -h | --help) usage; exit 0 ;;
            *) wrong_usage "unknown option '$1'" ;;
        esac
    done
    [[ -z $DOWNLOAD_DIR || -z $OFFLINE_DIR ]] || wrong_usage "--download needs a network, --offline has none: give one of them"
    if [[ -n $OFFLINE_DIR ]]; then
        OFFLINE_DIR=$(cd "$OFFLINE_DIR" 2>/dev/null && pwd) || wrong_usage "--offline: the folder is not there; fill it with --download on a machine with a network"
    fi
    VENV=$(realpath -m "$VENV")
    STATE=$VENV/.cxr_hvd
    # An environment stays what it was made as, also when `make` calls without options.
    if [[ -e $STATE/system-torch ]]; then SYSTEM_TORCH=1; fi
}

# All that the environment depends on, as one hash. Reads files only and starts no Python, for every `make` asks this.
fingerprint() {
    local site
    site=$(site_packages)
    {
        say "$ROOT $VENV ${SYSTEM_TORCH:-0}${NO_DEV:+ --no-dev}"
        (cd "$ROOT" && sha256sum "${FILES_THAT_MATTER[@]}")
        cat "$VENV/pyvenv.cfg"
        if [[ -n $site ]]; then
            ls -d "$site"/*.dist-info
            cat "$site"/horovod-*.dist-info/direct_url.json "$site"/torch/version.py "$STATE/system-torch-version.py" 2>/dev/null || true
            stat -c '%n %s' "$site"/horovod/torch/*.so
        fi
        mpi_identity
        find_cuda_home
    } 2>&1 | sha256sum | cut -d ' ' -f 1
}

site_packages() {
    local candidate
    for candidate in "$VENV"/lib/python3.*/site-packages; do
        if [[ -d $candidate ]]; then printf '%s' "$candidate"; fi
    done
}

is_up_to_date() {
    [[ -e $STATE/stamp && -x $VENV/bin/python && $(<"$STATE/stamp") == "$(fingerprint)" ]]
}

write_stamp() {
    fingerprint >"$STATE/stamp.new"
    mv "$STATE/stamp.new" "$STATE/stamp"
}

# lock DESCRIPTOR FILE WHAT: waits for another run; the kernel lets go when this process ends, however it ends.
lock() {
    mkdir -p "$(dirname "$2")"
    eval "exec $1>>\"\$2\""
    flock -n "$1" || { say "Another run is at work on $3; waiting for it ..."; flock "$1"; }
}

# ---------------------------------------------------------------- what the machine has

# The first of python3, python3.14 ... python3.11 that is new enough.
choose_python() {
    local name
    if [[ -L $VENV/bin/python && ! -e $VENV/bin/python ]]; then
        fail "the Python that $VENV was made from is gone ($(readlink "$VENV/bin/python")): delete that folder and run again"
    elif [[ -x $VENV/bin/python ]]; then
        check_same_python
        PYTHON=$(cat "$STATE/system-torch" 2>/dev/null || "$VENV/bin/python" -c 'import sys; print(sys._base_executable)')
    elif [[ -n $PYTHON ]]; then
        PYTHON=$(command -v "$PYTHON") || fail "--python: no such interpreter"
    else
        for name in python3 python3.14 python3.13 python3.12 python3.11; do
            if is_python_new_enough "$name"; then PYTHON=$(command -v "$name"); break; fi
        done
        [[ -n $PYTHON ]] || fail "Python $MIN_PYTHON or newer is needed, found $(python3 -V 2>/dev/null || echo none): install python3.11, or give --python PY"
    fi
    is_python_new_enough "$PYTHON" || fail "Python $MIN_PYTHON or newer is needed, found $("$PYTHON" -V 2>&1) at $PYTHON: give another with --python PY"
}

is_python_new_enough() {
    "$1" -c "import sys; sys.exit(sys.version_info < (${MIN_PYTHON/./, }))" 2>/dev/null
}

# An existing environment is adopted. It cannot change its interpreter, nor be moved: its scripts name its old place.
check_same_python() {
    local wanted found home
    if [[ -n $PYTHON ]]; then
        wanted=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || fail "--python: no such interpreter"
        found=$("$VENV/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        [[ $wanted == "$found" ]] || fail "$VENV has Python $found and --python is $wanted: delete that folder, or give another with --venv"
    fi
    if [[ -n $SYSTEM_TORCH ]] && ! [[ -e $STATE/system-torch ]]; then
        fail "$VENV was made without --system-torch: delete that folder, or give another with --venv"
    fi
    home=$(sed -n 's/^VIRTUAL_ENV=//p' "$VENV/bin/activate" 2>/dev/null | tr -d "\"'" | tail -n 1)
    if [[ $home == /* && $(realpath -m "$home") != "$VENV" ]]; then
        fail "$VENV is a copy of $home, and such folders cannot be moved: delete it and run again"
    fi
}

# "openmpi-4.1.4", "mpich-4.0.2", "intelmpi-2021.10", or nothing where there is no mpirun. Asks the mpirun on PATH, so an
# MPI that a module brought is the one that counts.
mpi_identity() {
    local text name=mpi
    text=$(mpirun --version 2>/dev/null) || return 0
    case $text in
        *"Open MPI"* | *OpenRTE* | *PRRTE*) name=openmpi ;;
        *Intel*) name=intelmpi ;;
        *HYDRA*) name=mpich ;;
    esac
    printf '%s-%s' "$name" "$(grep -oE '[0-9]+(\.[0-9]+)+' <<<"$text" | head -n 1)"
}

# The CUDA toolkit's folder, or nothing. nvcc itself is asked: the one on PATH may be a link or a script.
find_cuda_home() {
    local nvcc
    for nvcc in "${CUDA_HOME:-/none}/bin/nvcc" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
        if [[ -x $nvcc ]]; then
            realpath "$("$nvcc" --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')" 2>/dev/null && return
        fi
    done
    true
}

real_cxx() {
    local name
    for name in ${CXX:+"$CXX"} c++ g++; do
        if command -v "${name%% *}" >/dev/null; then printf '%s' "$name"; return; fi
    done
}

# "gcc12.2.0" or "clang14.0.6".
compiler_identity() {
    local text make=gcc
    text=$($(real_cxx) --version | head -n 1)
    if [[ $text == *clang* ]]; then make=clang; fi
    printf '%s%s' "$make" "$(grep -oE '[0-9]+\.[0-9.]+' <<<"$text" | head -n 1)"
}

has_python_header() {
    "$PYTHON" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
}

# The Debian packages whose commands or headers are not there, one a line.
missing_packages() {
    local version
    version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    command -v mpirun >/dev/null || say openmpi-bin
    command -v mpicxx >/dev/null || command -v mpiicpc >/dev/null || say libopenmpi-dev
    command -v cmake >/dev/null || say cmake
    command -v make >/dev/null || say make
    [[ -n $(real_cxx) ]] || say g++
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || [[ -x $VENV/bin/pip ]] || say "python$version-venv"
    has_python_header || say "python$version-dev"
}

ensure_system_packages() {
    local packages
    mapfile -t packages < <(missing_packages)
    ((${#packages[@]})) || return 0
    if [[ -n $OFFLINE_DIR ]]; then
        fail "with --offline these have to be on the system already, and are not: ${packages[*]} (Debian's names)"
    elif ! command -v apt-get >/dev/null; then
        fail "missing on this system: ${packages[*]} (Debian's names); install them with your package manager, or load them as modules"
    elif ((EUID != 0)); then
        fail "missing on this system, run: sudo apt-get install -y ${packages[*]}"
    fi
    step "Reading Debian's package lists" apt-get update
    step "Installing ${packages[*]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}"
    hash -r
}

# Before the long download, for a compiler that is too old shows only after it.
check_cxx() {
    local cxx
    cxx=$(real_cxx)
    # shellcheck disable=SC2086
    $cxx -std=gnu++20 -fsyntax-only -x c++ - <<<'int main() {}' 2>/dev/null ||
        fail "the C++ compiler '$cxx' does not know C++20, which torch's headers need: install g++ 10 or newer and set CXX, for example CXX=g++-12"
}

# check_disk FOLDER GB
check_disk() {
    local folder=$1 need_gb=$2 free_gb
    while [[ ! -d $folder ]]; do folder=$(dirname "$folder"); done
    free_gb=$(($(df -Pk "$folder" | awk 'NR == 2 { print $4 }') / 1048576))
    ((free_gb >= need_gb)) || fail "too little disk: $need_gb GB are needed in $folder, $free_gb GB are free"
}

# ---------------------------------------------------------------- where packages come from

# uv does not read pip's settings; a hospital's mirror is usually named there, and nowhere else. What is set for uv wins.
# Folders (file://) among the extra indexes are left out: --offline is the way to install from a folder.
honour_pip_config() {
    local key value name
    export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1
    unset PYTHONHOME
    # The checks at the end import nearly all; what Python compiles then is to be kept, or every later start is slow.
    unset PYTHONDONTWRITEBYTECODE
    while IFS='=' read -r key value; do
        value=${value#\'} value=${value%\'} name=${key#*.} name=${name#.}
        case ${name#*.} in
            index-url) export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-$value}} ;;
            extra-index-url) use_extra_indexes "$value" ;;
            cert) export SSL_CERT_FILE=${SSL_CERT_FILE:-$value} ;;
            client-cert) export SSL_CLIENT_CERT=${SSL_CLIENT_CERT:-$value} ;;
            trusted-host) export UV_INSECURE_HOST=${UV_INSECURE_HOST:-$value} ;;
            proxy) export HTTPS_PROXY=${HTTPS_PROXY:-${https_proxy:-$value}} ;;
        esac
    done < <("$VENV/bin/python" -m pip config list 2>/dev/null | grep -E '^(:env:|global|user|site|install)\.' || true)
}

use_extra_indexes() {
    local url urls=()
    for url in ${1//\\n/ }; do
        if [[ $url == http*://* ]]; then urls+=("$url"); fi
    done
    ((${#urls[@]})) || return 0
    # As pip does it: all indexes are one. uv's own rule stops at the first that knows the name.
    export UV_INDEX=${UV_INDEX:-${urls[*]}} UV_INDEX_STRATEGY=${UV_INDEX_STRATEGY:-unsafe-best-match}
}

uv_install() {
    local title=$1 source=()
    shift
    if [[ -n $OFFLINE_DIR ]]; then source=(--offline --no-index --find-links "$OFFLINE_DIR"); fi
    step "$title" "$VENV/bin/uv" pip install --python "$VENV/bin/python" "${source[@]}" --constraints "$ROOT/constraints.txt" "$@"
}

# pip's options that say where packages come from.
pip_source() {
    if [[ -n $OFFLINE_DIR ]]; then printf '%s\n' --no-index --find-links "$OFFLINE_DIR"; fi
}

# ---------------------------------------------------------------- the virtual environment

create_venv() {
    if ! [[ -e $VENV/bin/activate ]] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        if [[ -n $SYSTEM_TORCH ]]; then say "$PYTHON" >"$STATE/system-torch"; fi
        step "Creating $VENV" "$PYTHON" -m venv ${SYSTEM_TORCH:+--system-site-packages} "$VENV"
    fi
    if [[ -n $SYSTEM_TORCH ]]; then see_parent_environment; fi
}

# Where PY is itself of a virtual environment, --system-site-packages looks past it, at the interpreter below.
see_parent_environment() {
    "$PYTHON" -c 'import site, sys; print(*(site.getsitepackages() if sys.prefix != sys.base_prefix else []), sep="\n")' \
        >"$(site_packages)/_parent_environment.pth"
    ln -sfn "$("$PYTHON" -c 'import torch; print(torch.__path__[0])')/version.py" "$STATE/system-torch-version.py"
}

check_system_torch() {
    local found
    found=$("$PYTHON" -c 'import torch, torchvision.ops; print(torch.__version__)' 2>&1) ||
        fail "--system-torch: $PYTHON cannot import torch and torchvision ($(tail -n 1 <<<"$found")): give the right --python, or leave --system-torch out"
    is_torch_new_enough "$(tail -n 1 <<<"$found")"  || fail "torch $MIN_TORCH or newer is needed, found $(tail -n 1 <<<"$found") in $PYTHON: leave --system-torch out"
}

is_torch_new_enough() {
    [[ $(printf '%s\n' "$MIN_TORCH" "$1" | sort -V | head -n 1) == "$MIN_TORCH" ]]
}

pinned() { sed -n "s/^$1==\([^ ;]*\).*/\1/p" "$ROOT/constraints.txt" | head -n 1; }

install_uv() {
    local want
    want=$(pinned uv)
    [[ $("$VENV/bin/uv" --version 2>/dev/null) != "uv $want"* ]] || return 0
    # Ignoring what a parent environment has: it lies outside of this one.
    # shellcheck disable=SC2046
    step "Installing uv $want" "$VENV/bin/python" -m pip install --ignore-installed --no-deps $(pip_source) "uv==$want"
}

# Horovod's setup.py runs outside of build isolation, for it has to see torch; so its own needs come first.
install_torch() {
    local wanted=(setuptools wheel packaging cloudpickle psutil pyyaml cffi)
    if [[ -n $SYSTEM_TORCH ]]; then
        uv_install "Installing what Horovod's build needs" "${wanted[@]}"
    else
        uv_install "Installing torch" torch torchvision "${wanted[@]}"
    fi
}

install_project() {
    local extra=()
    if [[ -n $SYSTEM_TORCH ]]; then
        printf 'torch\ntorchvision\n' >"$STATE/excluded.txt"
        extra=(--excludes "$STATE/excluded.txt")
    fi
    if [[ -n $NO_DEV ]]; then
        uv_install "Installing cxr_hvd" --no-build-isolation "${extra[@]}" --editable "$ROOT"
    else
        uv_install "Installing cxr_hvd and its tools" --no-build-isolation "${extra[@]}" --editable "${ROOT}[dev]"
    fi
}

# ---------------------------------------------------------------- Horovod

# cxx_standard_of HEADER: torch/all.h says "#error C++20 or later compatible compiler is required to use PyTorch."
cxx_standard_of() {
    local standard=${CXR_HVD_CXX_STANDARD:-}
    [[ -n $standard ]] || standard=$(grep -oE '#error C\+\+[0-9]+' "$1" 2>/dev/null | grep -oE '[0-9]+$' | head -n 1) ||
        fail "cannot read from $1 which C++ standard torch needs: set CXR_HVD_CXX_STANDARD, for example to 20"
    printf '%s' "$standard"
}

# Sets TORCH_VERSION, TORCH_CUDA, TORCH_INCLUDE, PYTHON_ABI, NCCL_HEADER and NCCL_LIBRARY; "-" for what is not there. Reads
# the installed torch's files; importing it takes seconds.
describe_torch() {
    local answer
    answer=$("$VENV/bin/python" - <<'PY' 2>&1
import importlib.util, os, runpy, sys

def first(*paths):
    return next((path for path in paths if os.path.exists(path)), "-")

folder = os.path.dirname(importlib.util.find_spec("torch").origin)
version = runpy.run_path(folder + "/version.py")
nccl = os.path.join(os.path.dirname(folder), "nvidia", "nccl")
system = "/usr/lib/%s-linux-gnu/" % os.uname().machine
header = first(nccl + "/include/nccl.h", "/usr/include/nccl.h")
library = first(nccl + "/lib/libnccl.so.2") if header.startswith(nccl) else first(system + "libnccl.so.2", "/usr/lib64/libnccl.so.2")
print(version["__version__"], version["cuda"] or "-", folder + "/include", sep="\n")
print(sys.implementation.cache_tag, header, library, sep="\n")
PY
    ) || fail "torch is not installed as expected: $(tail -n 1 <<<"$answer")"
    {
        read -r TORCH_VERSION && read -r TORCH_CUDA && read -r TORCH_INCLUDE
        read -r PYTHON_ABI && read -r NCCL_HEADER && read -r NCCL_LIBRARY
    } <<<"$answer"
    is_torch_new_enough "$TORCH_VERSION" || fail "torch $MIN_TORCH or newer is needed, found $TORCH_VERSION: correct constraints.txt"
}

# Sets CUDA_TOOLKIT and NCCL_VERSION ("-" for none) and says what it found: whether GPUs will be used must not be a guess.
choose_accelerator() {
    local toolkit version
    CUDA_TOOLKIT=- NCCL_VERSION=-
    if [[ $TORCH_CUDA == - ]]; then say "torch $TORCH_VERSION is built without CUDA: Horovod for processors only"; return; fi
    toolkit=$(find_cuda_home)
    if [[ -z $toolkit ]]; then
        say "torch $TORCH_VERSION is built for CUDA $TORCH_CUDA, but there is no nvcc here: Horovod for processors only"
        return
    fi
    version=$("$toolkit/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
    if [[ ${version%%.*} != "${TORCH_CUDA%%.*}" ]]; then
        say "torch $TORCH_VERSION is built for CUDA $TORCH_CUDA, nvcc is of $version: Horovod for processors only"
        return
    fi
    CUDA_TOOLKIT=$toolkit
    if [[ $NCCL_HEADER != - && $NCCL_LIBRARY != - ]]; then
        NCCL_VERSION=$(awk '/^#define NCCL_(MAJOR|MINOR|PATCH) / { printf "%s%s", dot, $3; dot = "." }' "$NCCL_HEADER")
        say "torch $TORCH_VERSION, nvcc $version, NCCL $NCCL_VERSION: Horovod with CUDA and NCCL"
    else
        say "torch $TORCH_VERSION, nvcc $version, no NCCL: Horovod with CUDA, GPUs exchange through the host's memory"
    fi
}

# Everything that the wheel's machine code depends on. The recipe itself is part of it: whoever changes one of these
# functions or the compiler's stand-in does not get a wheel of the old recipe. No "+" in it: CMake takes paths for patterns.
wheel_key() {
    local recipe compiler nvcc=-
    recipe=$({ declare -f build_horovod horovod_environment hide_cuda let_python_run include_headers; cat "$ROOT/tools/horovod_cxx.sh"; } | sha256sum | cut -c 1-8)
    compiler=$(compiler_identity)
    if [[ $CUDA_TOOLKIT != - ]]; then nvcc=$("$CUDA_TOOLKIT/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p'); fi
    printf '%s' "$HOROVOD_VERSION-torch$TORCH_VERSION-$PYTHON_ABI-$(mpi_identity)-$compiler-$(uname -m)" \
        "-$(getconf GNU_LIBC_VERSION)-cuda$nvcc-nccl$NCCL_VERSION-$recipe" | tr -c 'A-Za-z0-9._-' '_'
}

install_horovod() {
    local key wheel
    describe_torch
    choose_accelerator
    key=$(wheel_key)
    if is_horovod_installed "$key"; then return; fi
    lock 8 "$CACHE/$key.lock" "the same build of Horovod"
    wheel=$(cached_wheel "$key")
    if [[ -z $wheel ]]; then
        check_disk "$CACHE" "$NEED_FOR_BUILD_GB"
        build_horovod "$key"
        wheel=$(cached_wheel "$key")
    fi
    exec 8>&-
    step "Installing Horovod" "$VENV/bin/uv" pip install --python "$VENV/bin/python" --offline --no-deps --reinstall-package horovod "$wheel"
}

# Installers write down where a package came from (the key is in that path), and how large its library has to be.
is_horovod_installed() {
    local site notes size
    site=$(site_packages)
    notes=$site/horovod-$HOROVOD_VERSION.dist-info
    grep -qF "/$1/" "$notes/direct_url.json" 2>/dev/null || return 1
    size=$(sed -n 's/^horovod\/torch\/mpi_lib_v2[^,]*\.so,[^,]*,//p' "$notes/RECORD" | tr -d '\r')
    [[ -n $size && $size == "$(stat -c %s "$site"/horovod/torch/mpi_lib_v2*.so 2>/dev/null)" ]]
}

# The cache holds whole wheels only, since folders are renamed into it; a folder of --download may bring one along.
cached_wheel() {
    local folder wheel
    for folder in "$CACHE/$1" ${OFFLINE_DIR:+"$OFFLINE_DIR/horovod/$1"}; do
        for wheel in "$folder"/horovod-*.whl; do
            if [[ -e $wheel ]]; then printf '%s' "$wheel"; return; fi
        done
    done
}

build_horovod() {
    local key=$1 settings
    rm -rf "$CACHE/.build-$key".*     # of a run that was killed
    BUILD_DIR=$(mktemp -d "$CACHE/.build-$key.XXXXXX")
    fetch_horovod "$BUILD_DIR"
    cp "$ROOT/tools/horovod_cxx.sh" "$BUILD_DIR/cxx"
    [[ $CUDA_TOOLKIT != - ]] || hide_cuda "$BUILD_DIR/horovod-$HOROVOD_VERSION"
    let_python_run "$BUILD_DIR/horovod-$HOROVOD_VERSION"
    include_headers "$BUILD_DIR/horovod-$HOROVOD_VERSION"
    mapfile -t settings < <(horovod_environment "$BUILD_DIR")
    say "Horovod $HOROVOD_VERSION has to be built for this machine, once; this takes minutes"
    step "Building Horovod" \
        env "${settings[@]}" "$VENV/bin/python" -m pip wheel --verbose --no-deps --no-build-isolation --no-cache-dir \
        --wheel-dir "$BUILD_DIR/wheel" "$BUILD_DIR/horovod-$HOROVOD_VERSION"
    rm -rf "${CACHE:?}/$key"
    mv "$BUILD_DIR/wheel" "$CACHE/$key"
    rm -rf "$BUILD_DIR"
    BUILD_DIR=
}

# The source, checked against its hash, unpacked.
fetch_horovod() {
    printf 'horovod==%s --hash=sha256:%s\n' "$HOROVOD_VERSION" "$HOROVOD_SHA256" >"$1/requirement.txt"
    # shellcheck disable=SC2046
    step "Fetching Horovod's source" "$VENV/bin/python" -m pip download $(pip_source) --no-deps --no-binary horovod \
        --no-build-isolation --dest "$1" --requirement "$1/requirement.txt"
    tar --no-same-owner -xzf "$1/horovod-$HOROVOD_VERSION.tar.gz" -C "$1"
}

# Horovod compiles CUDA parts whenever torch is a CUDA build and any toolkit is in sight, also one of the wrong version.
hide_cuda() {
    local file=$1/cmake/Modules/FindPytorch.cmake
    sed -i 's/(CUDA_HOME is not None)/False/' "$file"
    grep -q 'and False' "$file" || fail "Horovod's FindPytorch.cmake is not as expected: $file"
}

# Horovod hands a tensor over with Python's lock held, and waits meanwhile for its own thread; where that waits for a
# frozen peer, all threads of Python stand still, the watchdog among them. Here it lets go of the lock first.
let_python_run() {
    local file=$1/horovod/torch/mpi_ops_v2.cc
    sed -i -E 's/&(Do[A-Za-z]+)\)/\&\1, py::call_guard<py::gil_scoped_release>())/' "$file"
    grep -q 'DoAllgather, py::call_guard' "$file" || fail "Horovod's mpi_ops_v2.cc is not as expected: $file"
}

# Two of Horovod's headers use what they do not include; from version 13 on, g++'s own headers no longer bring it along.
include_headers() {
    local file
    for file in common.h group_table.h; do
        sed -i '1i #include <cstdint>\n#include <functional>\n#include <memory>\n#include <stdexcept>\n#include <string>' \
            "$1/horovod/common/$file"
    done
}

# The build's environment, NAME=VALUE, one a line.
horovod_environment() {
    local build=$1 mpi_folder gpus
    say "PATH=$VENV/bin:$PATH"
    say "CXX=$build/cxx"
    say "CXR_HVD_CXX=$(real_cxx)"
    say "CXR_HVD_CXX_STANDARD=$(cxx_standard_of "$TORCH_INCLUDE/torch/csrc/api/include/torch/all.h")"
    # An MPI that the loader does not find by itself, for example of a module, has to be named in the library.
    mpi_folder=$(mpi_library_folder)
    if [[ -n $mpi_folder ]]; then say "CXR_HVD_RPATH=$mpi_folder"; fi
    say HOROVOD_WITH_PYTORCH=1 && say HOROVOD_WITHOUT_TENSORFLOW=1 && say HOROVOD_WITHOUT_MXNET=1
    say HOROVOD_WITH_MPI=1 && say HOROVOD_WITH_GLOO=1
    say "MAKEFLAGS=${MAKEFLAGS:--j$(num_jobs)}"
    say CMAKE_POLICY_VERSION_MINIMUM=3.5      # CMake 4 no longer reads what the bundled Gloo asks for
    [[ $CUDA_TOOLKIT != - ]] || return 0
    say "PATH=$VENV/bin:$CUDA_TOOLKIT/bin:$PATH"
    say "CUDA_HOME=$CUDA_TOOLKIT" && say "CUDAToolkit_ROOT=$CUDA_TOOLKIT" && say "HOROVOD_CUDA_HOME=$CUDA_TOOLKIT"
    say "LIBRARY_PATH=$CUDA_TOOLKIT/lib64${LIBRARY_PATH:+:$LIBRARY_PATH}"
    say "CMAKE_LIBRARY_PATH=$CUDA_TOOLKIT/lib64" && say "CMAKE_INCLUDE_PATH=$CUDA_TOOLKIT/include"
    say "NVCC_APPEND_FLAGS=-std=c++20"
    # Left alone, Horovod compiles for every GPU that nvcc knows, which takes twice as long as for those of torch.
    gpus=$(gpus_of_torch)
    if [[ -n $gpus ]]; then say "HOROVOD_BUILD_CUDA_CC_LIST=$gpus"; fi
    [[ $NCCL_VERSION != - ]] || return 0
    mkdir -p "$build/nccl"
    ln -sf "$NCCL_LIBRARY" "$build/nccl/libnccl.so"      # the linker wants the name without the number
    say HOROVOD_GPU_OPERATIONS=NCCL && say HOROVOD_NCCL_LINK=SHARED
    say "HOROVOD_NCCL_INCLUDE=$(dirname "$NCCL_HEADER")" && say "HOROVOD_NCCL_LIB=$build/nccl"
}

# The compute capabilities that torch is built for, "75,80,90"; nothing where it does not say so.
gpus_of_torch() {
    "$VENV/bin/python" -c 'import re, torch; print(*re.findall(r"\bsm_(\d+)\b", torch._C._cuda_getArchFlags() or ""), sep=",")' \
        2>/dev/null || true
}

horovod_parts() {
    printf 'MPI, Gloo'
    if [[ $CUDA_TOOLKIT != - ]]; then printf ', CUDA'; fi
    if [[ $NCCL_VERSION != - ]]; then printf ', NCCL'; fi
}

# Where mpicxx links from, if that is no folder that the loader searches anyway.
mpi_library_folder() {
    local flag known
    known=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | sed -n 's/.*libmpi\.so.* => //p' | xargs -r realpath)
    for flag in $(mpicxx --showme:link 2>/dev/null || mpicxx -show 2>/dev/null || true); do
        if [[ $flag == -L* && -e ${flag#-L}/libmpi.so ]]; then
            grep -qxF "$(realpath "${flag#-L}/libmpi.so")" <<<"$known" || realpath "${flag#-L}"
            return
        fi
    done
}

# One compiler process takes up to 1.5 GB.
num_jobs() {
    local cores memory_gb jobs
    cores=$(nproc)
    memory_gb=$(awk '/MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo)
    jobs=$((memory_gb * 2 / 3))
    echo $((jobs < 1 ? 1 : jobs < cores ? jobs : cores))
}

# ---------------------------------------------------------------- checks of the whole

# Everything is imported once, in one process. mpi4py's wheel looks for any libmpi when it is imported; should it find
# another than Horovod's, it is built for this one.
check_imports() {
    local status=0 message
    message=$(import_all 2>&1) || status=$?
    if ((status == 3)); then
        # shellcheck disable=SC2046
        step "Building mpi4py for $(mpi_identity)" "$VENV/bin/python" -m pip install $(pip_source) --force-reinstall --no-deps \
            --no-cache-dir --no-binary mpi4py "mpi4py==$(pinned mpi4py)"
        status=0
        message=$(import_all 2>&1) || status=$?
        ((status != 3)) || fail "mpi4py and Horovod load different MPI libraries ($message): load one MPI module only, then run again"
    fi
    ((status == 0)) || fail "what was installed does not import: $(tail -n 1 <<<"$message")"
}

# Status 3: more than one MPI library was loaded; prints them.
import_all() {
    "$VENV/bin/python" - <<'PY'
import os, re, sys

import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
MPI.Get_library_version()

import cv2, h5py, torch, torchvision.ops, horovod.torch
import cxr_hvd, preprocess

# Importing says nothing: without its library horovod.torch only warns.
if not (horovod.torch.mpi_built() and horovod.torch.gloo_built()):
    sys.exit("Horovod was built without MPI or Gloo")
libraries = {os.path.realpath(path) for path in re.findall(r"/\S*/libmpi\.so\S*", open("/proc/self/maps").read())}
if len(libraries) != 1:
    print(*sorted(libraries))
    sys.exit(3)
PY
}

# Two ranks add up 1 and 2. A machine may forbid launching where it allows installing, so a failure is a warning.
check_two_ranks() {
    local message
    message=$(OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 \
        OMPI_MCA_mpi_yield_when_idle=1 OMP_NUM_THREADS=1 timeout 120 mpirun -np 2 "$VENV/bin/python" -c '
import torch, horovod.torch as hvd
hvd.init()
total = hvd.allreduce(torch.tensor([hvd.rank() + 1.0]), op=hvd.Sum)
assert hvd.size() == 2 and total.item() == 3.0, (hvd.size(), total)
hvd.shutdown()' 2>&1 </dev/null) ||
        say "Warning: two ranks under mpirun could not add up their numbers; run: $VENV/bin/cxr-hvd doctor ($(tail -n 1 <<<"$message"))"
}

# ---------------------------------------------------------------- --download

download_all() {
    local version
    mkdir -p "$DOWNLOAD_DIR"
    DOWNLOAD_DIR=$(cd "$DOWNLOAD_DIR" && pwd)
    check_disk "$DOWNLOAD_DIR" 4
    version=$(pinned mpi4py)
    step "Downloading all packages to $DOWNLOAD_DIR" "$VENV/bin/python" -m pip download --no-deps \
        --dest "$DOWNLOAD_DIR" --requirement "$ROOT/constraints.txt"
    # The wheel usually does; the source is for an MPI that it does not find (check_imports).
    step "Downloading mpi4py's source" "$VENV/bin/python" -m pip download --no-deps --no-binary mpi4py \
        --dest "$DOWNLOAD_DIR" "mpi4py==$version"
    # Builds of this machine, for others that are like it; cached_wheel looks there.
    mkdir -p "$CACHE" "$DOWNLOAD_DIR/horovod"
    (cd "$CACHE" && find . -mindepth 2 -maxdepth 2 -name '*.whl' -not -path './.*' -exec cp --parents {} "$DOWNLOAD_DIR/horovod" \;)
    say "$DOWNLOAD_DIR holds $(du -sh "$DOWNLOAD_DIR" | cut -f 1). On the other machine: tools/install.sh --offline DIR"
}

# ---------------------------------------------------------------- the recipe

main() {
    parse_options "$@"
    if [[ -z $DOWNLOAD_DIR ]] && is_up_to_date; then exit 0; fi

    lock 9 "$STATE/lock" "$VENV"
    trap 'tidy_up $?' EXIT
    trap 'tidy_up 130' INT
    trap 'tidy_up 143' TERM
    if [[ -z $DOWNLOAD_DIR ]] && is_up_to_date; then exit 0; fi
    choose_python
    if [[ -n $DOWNLOAD_DIR ]]; then
        create_venv
        honour_pip_config
        download_all
        exit 0
    fi

    rm -f "$STATE/stamp"
    ensure_system_packages
    check_cxx
    if [[ -n $SYSTEM_TORCH ]]; then check_system_torch; fi
    [[ -d $(site_packages)/torch || -n $SYSTEM_TORCH ]] || check_disk "$VENV" "$NEED_FOR_ALL_GB"

    create_venv
    honour_pip_config
    install_uv
    install_torch
    install_horovod
    install_project
    say "Checking all imports, then two ranks under mpirun ..."
    check_imports
    check_two_ranks
    write_stamp
    say "Ready in $SECONDS s: $("$VENV/bin/python" -V), torch $TORCH_VERSION, Horovod $HOROVOD_VERSION ($(horovod_parts)), $(mpi_identity). Next: source $VENV/bin/activate && cxr-hvd doctor"
}

# `exit` on the same line: bash reads a script as it runs, and this file may be replaced (git pull) meanwhile.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; exit; fi
