#!/usr/bin/env bash
# Sets up all that cxr_hvd needs: system packages, a virtual environment with the tested versions, and Horovod built for
# the torch that is installed (tools/horovod.sh). uv installs the packages; pip downloads what uv cannot.
#
# Read `main`, at the end, first. The script may be stopped at any point and run again: what is whole is kept. When nothing
# has changed it ends at once and prints nothing. `source tools/install.sh` defines the functions and runs nothing.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly ROOT
readonly MIN_PYTHON=3.11 MIN_TORCH=2.9
readonly NEED_FOR_ALL_GB=8   # torch with its CUDA libraries 5 GB unpacked, the archives 3 GB
readonly INPUTS=(constraints.txt setup.cfg pyproject.toml tools/install.sh tools/horovod.sh tools/horovod_cxx.sh)

VENV=$ROOT/.venv
PYTHON=            # --python, or set by choose_python
DOWNLOAD_DIR=      # --download
OFFLINE_DIR=       # --offline
SYSTEM_TORCH=      # 1 with --system-torch
NO_DEV=            # 1 with --no-dev
WITHOUT_MPI=       # 1 with --without-mpi
CACHE=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/cxr_hvd/horovod

# shellcheck source=/dev/null
source "$ROOT/tools/horovod.sh"

# ---------------------------------------------------------------- options and messages

usage() {
    cat <<'HELP'
Usage: tools/install.sh [OPTIONS]

Sets up cxr_hvd in one step: system packages (Debian, Ubuntu), a virtual environment, the versions of constraints.txt,
and Horovod built for the torch that is installed. Safe to run again: it continues where it stopped, and ends at once when
all is up to date.

Options
  --venv DIR        the virtual environment (default: .venv beside setup.cfg); an existing one is completed, never wiped
  --python PY       the interpreter to build it from (default: the first python3 on PATH that is 3.11 or newer)
  --system-torch    use the torch and torchvision that PY already has (torch 2.9 or newer), and install neither
  --without-mpi     build Horovod with Gloo (and NCCL) alone; horovodrun starts the ranks, and no MPI is needed
  --no-dev          leave out what only tests and lint need; a later run without this option adds it
  --download DIR    only fill DIR with every package, for a machine without a network (same Python and processor)
  --offline DIR     take every package from DIR; no network is used
  -h, --help        this text

Examples
  tools/install.sh                                          a bare machine; the same as: make setup
  tools/install.sh --download usb                           on a machine with a network ...
  tools/install.sh --offline usb                            ... and then on one without
  tools/install.sh --python /opt/conda/bin/python --system-torch     a container or cluster that brings its own torch
  tools/install.sh --without-mpi                            a workstation with GPUs, or a cloud machine
  CXX=g++-12 tools/install.sh                               another compiler
  UV_TORCH_BACKEND=cpu tools/install.sh                     torch without CUDA, where its index can be reached

Environment
  CXX, CUDA_HOME, MAKEFLAGS   as usual          XDG_CACHE_HOME   built Horovod wheels are kept in its cxr_hvd/horovod/
  PIP_INDEX_URL, pip.conf     your index, extra index, certificate and proxy are used; settings for uv (UV_*) go first
  CXR_HVD_CXX_STANDARD        C++ standard for Horovod, where it cannot be read from torch's headers

Exit status: 0 done; 1 failed, one line says what to do; 2 wrong usage.
HELP
}

say() { printf '%s\n' "$*"; }

fail() { printf 'install: error: %s\n' "$*" >&2; exit 1; }

wrong_usage() { printf 'install: error: %s (see tools/install.sh --help)\n' "$*" >&2; exit 2; }

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
            --without-mpi) WITHOUT_MPI=1; shift ;;
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
    # An environment that was made with one of these options keeps it, also when `make` calls without options.
    if [[ -e $STATE/system-torch ]]; then SYSTEM_TORCH=1; fi
    if [[ -e $STATE/without-mpi ]]; then WITHOUT_MPI=1; fi
}

# ---------------------------------------------------------------- steps: external commands with a log

# step TITLE COMMAND...: run a command with its output in a log.
step() {
    local title=$1 log status=0 started=$SECONDS beat=$SECONDS
    shift
    log=$STATE/log/$(tr -cs '[:alnum:]' '-' <<<"${title,,}" | sed 's/^-//; s/-$//').log
    mkdir -p "$STATE/log"
    say "$title ..."
    printf '+ %s\n' "$*" >"$log"
    # In a session of its own, so that Ctrl-C ends all compilers; without the descriptors of the locks, so that no process
    # that is left behind keeps them.
    setsid "$@" >>"$log" 2>&1 </dev/null 8>&- 9>&- &
    RUNNING=$!
    while kill -0 "$RUNNING" 2>/dev/null; do
        sleep 0.2
        if ((SECONDS - beat >= 30)); then
            beat=$SECONDS
            say "    $((SECONDS - started)) s $(tail -c 20000 "$log" | grep -oE '\[ *[0-9]+%\]' | tail -n 1 || true)"
        fi
    done
    wait "$RUNNING" || status=$?
    RUNNING=
    ((status == 0)) || explain_failure "$title" "$log" "$status"
    say "    done in $((SECONDS - started)) s"
}

explain_failure() {
    {
        printf '%s failed (status %d). The last errors in its log:\n' "$1" "$3"
        error_lines "$2" | cut -c 1-400 | sed 's/^ */    /'
        printf 'The whole log: %s\n' "$2"
    } >&2
    fail "$(diagnosis "$2"); run the same command again, what is done is kept"
}

# The lines of compilers and CMake go first: they name the cause, others only report it.
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

# tidy_up STATUS: end the running command, and remove an unfinished build.
tidy_up() {
    trap - EXIT INT TERM
    if [[ -n ${RUNNING:-} ]]; then kill -TERM -- "-$RUNNING" 2>/dev/null || true; fi
    if [[ -n ${BUILD_DIR:-} ]]; then rm -rf "$BUILD_DIR"; fi
    exit "$1"
}

# ---------------------------------------------------------------- whether anything is to be done

# A hash of all that the environment depends on. Reads files and starts no Python, since every `make` calls it.
fingerprint() {
    local site
    site=$(site_packages)
    {
        say "$ROOT $VENV ${SYSTEM_TORCH:-0}${NO_DEV:+ --no-dev}${WITHOUT_MPI:+ --without-mpi}"
        (cd "$ROOT" && sha256sum "${INPUTS[@]}")
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

site_packages() { local folder; for folder in "$VENV"/lib/python3.*/site-packages; do if [[ -d $folder ]]; then say "$folder"; fi; done; }

is_up_to_date() { [[ -e $STATE/stamp && -x $VENV/bin/python && $(<"$STATE/stamp") == "$(fingerprint)" ]]; }

# lock DESCRIPTOR FILE WHAT: wait for another run; the kernel releases the lock when this process ends.
lock() {
    mkdir -p "$(dirname "$2")"
    eval "exec $1>>\"\$2\""
    flock -n "$1" || { say "Another run is at work on $3; waiting for it ..."; flock "$1"; }
}

# ---------------------------------------------------------------- the machine: Python, compiler, system packages, disk

# Set PYTHON: that of the environment, --python, or the first of python3, python3.14 ... python3.11 that is new enough.
choose_python() {
    local name
    if [[ -L $VENV/bin/python && ! -e $VENV/bin/python ]]; then
        fail "the Python that $VENV was made from is gone ($(readlink "$VENV/bin/python")): delete that folder and run again"
    elif [[ -x $VENV/bin/python ]]; then
        check_environment
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

is_python_new_enough() { "$1" -c "import sys; sys.exit(sys.version_info < (${MIN_PYTHON/./, }))" 2>/dev/null; }

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# An existing environment cannot change its interpreter, nor be moved, since its scripts name their place.
check_environment() {
    local wanted version home
    if [[ -n $PYTHON ]]; then
        wanted=$(python_version "$PYTHON") || fail "--python: no such interpreter"
        version=$(python_version "$VENV/bin/python")
        [[ $wanted == "$version" ]] || fail "$VENV has Python $version and --python is $wanted: delete that folder, or give another with --venv"
    fi
    if [[ -n $SYSTEM_TORCH ]] && ! [[ -e $STATE/system-torch ]]; then
        fail "$VENV was made without --system-torch: delete that folder, or give another with --venv"
    fi
    home=$(sed -n 's/^VIRTUAL_ENV=//p' "$VENV/bin/activate" 2>/dev/null | tr -d "\"'" | tail -n 1)
    if [[ $home == /* && $(realpath -m "$home") != "$VENV" ]]; then
        fail "$VENV is a copy of $home, and such folders cannot be moved: delete it and run again"
    fi
}

# The missing Debian packages, one a line. Judged by commands and headers, so that MPI modules and conda count.
missing_packages() {
    local version header='import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
    version=$(python_version "$PYTHON")
    if [[ -z $WITHOUT_MPI ]]; then
        # Clusters start ranks by srun and the like; some of them, Cray's for example, have no mpirun at all.
        command -v mpirun mpiexec srun jsrun flux palsrun >/dev/null || say openmpi-bin
        command -v mpicxx mpiicpc mpic++ >/dev/null || is_cray || say libopenmpi-dev
    fi
    command -v cmake >/dev/null || say cmake
    command -v make >/dev/null || say make
    [[ -n $(real_cxx) ]] || say g++
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || [[ -x $VENV/bin/pip ]] || say "python$version-venv"
    "$PYTHON" -c "$header" || say "python$version-dev"
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

# Called before the long download, since Horovod is compiled after it.
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

# ---------------------------------------------------------------- packages

# Give uv the settings of pip, which it does not read; a hospital's mirror is usually named there. UV_* variables go first.
# Folders (file://) among the extra indexes are left out: --offline installs from a folder.
honour_pip_config() {
    local key value name url urls=()
    export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1
    # Keep compiled Python: the checks at the end import nearly all, and later starts would be slow without it.
    unset PYTHONHOME PYTHONDONTWRITEBYTECODE
    while IFS='=' read -r key value; do
        value=${value#\'} value=${value%\'} name=${key#*.} name=${name#.}
        case ${name#*.} in
            index-url) export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-$value}} ;;
            extra-index-url) for url in ${value//\\n/ }; do if [[ $url == http*://* ]]; then urls+=("$url"); fi; done ;;
            cert) export SSL_CERT_FILE=${SSL_CERT_FILE:-$value} ;;
            client-cert) export SSL_CLIENT_CERT=${SSL_CLIENT_CERT:-$value} ;;
            trusted-host) export UV_INSECURE_HOST=${UV_INSECURE_HOST:-$value} ;;
            proxy) export HTTPS_PROXY=${HTTPS_PROXY:-${https_proxy:-$value}} ;;
        esac
    done < <("$VENV/bin/python" -m pip config list 2>/dev/null | grep -E '^(:env:|global|user|site|install)\.' || true)
    # All indexes are equal, as for pip; uv by itself stops at the first that knows the name.
    if ((${#urls[@]})); then export UV_INDEX=${UV_INDEX:-${urls[*]}} UV_INDEX_STRATEGY=${UV_INDEX_STRATEGY:-unsafe-best-match}; fi
}

# The options of pip, and of uv, that take packages from --offline alone.
pip_source() { if [[ -n $OFFLINE_DIR ]]; then printf '%s\n' --no-index --find-links "$OFFLINE_DIR"; fi; }

pinned() { sed -n "s/^$1==\([^ ;]*\).*/\1/p" "$ROOT/constraints.txt" | head -n 1; }

is_torch_new_enough() { [[ $(printf '%s\n' "$MIN_TORCH" "$1" | sort -V | head -n 1) == "$MIN_TORCH" ]]; }

check_system_torch() {
    local version
    version=$("$PYTHON" -c 'import torch, torchvision.ops; print(torch.__version__)' 2>&1) ||
        fail "--system-torch: $PYTHON cannot import torch and torchvision ($(tail -n 1 <<<"$version")): give the right --python, or leave --system-torch out"
    version=$(tail -n 1 <<<"$version")
    is_torch_new_enough "$version" || fail "torch $MIN_TORCH or newer is needed, found $version in $PYTHON: leave --system-torch out"
}

# Make the environment, with pip and with the pinned uv.
create_venv() {
    if ! [[ -e $VENV/bin/activate ]] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        if [[ -n $SYSTEM_TORCH ]]; then say "$PYTHON" >"$STATE/system-torch"; fi
        step "Creating $VENV" "$PYTHON" -m venv ${SYSTEM_TORCH:+--system-site-packages} "$VENV"
    fi
    [[ -n $SYSTEM_TORCH ]] || return 0
    # Where PY belongs to a virtual environment itself, --system-site-packages names the interpreter below it.
    "$PYTHON" -c 'import site, sys; print(*(site.getsitepackages() if sys.prefix != sys.base_prefix else []), sep="\n")' \
        >"$(site_packages)/_parent_environment.pth"
    ln -sfn "$("$PYTHON" -c 'import torch; print(torch.__path__[0])')/version.py" "$STATE/system-torch-version.py"
}

install_uv() {
    local version
    version=$(pinned uv)
    [[ $("$VENV/bin/uv" --version 2>/dev/null) != "uv $version"* ]] || return 0
    # --ignore-installed: a parent environment may have uv, outside of this one.
    # shellcheck disable=SC2046
    step "Installing uv $version" "$VENV/bin/python" -m pip install --ignore-installed --no-deps $(pip_source) "uv==$version"
}

# uv_install TITLE ARGUMENTS...
uv_install() {
    local title=$1 source=()
    shift
    if [[ -n $OFFLINE_DIR ]]; then source=(--offline --no-index --find-links "$OFFLINE_DIR"); fi
    step "$title" "$VENV/bin/uv" pip install --python "$VENV/bin/python" "${source[@]}" --constraints "$ROOT/constraints.txt" "$@"
}

# First what the builds without isolation need, this package's and Horovod's, whose setup.py has to see torch.
install_packages() {
    local options=() extra="[dev]"
    if [[ -n $NO_DEV ]]; then extra=; fi
    if [[ -n $SYSTEM_TORCH ]]; then
        printf 'torch\ntorchvision\n' >"$STATE/excluded.txt"
        options=(--excludes "$STATE/excluded.txt")
    fi
    uv_install "Installing what builds need" setuptools wheel packaging cloudpickle psutil pyyaml cffi
    uv_install "Installing cxr_hvd$extra and its packages" --no-build-isolation "${options[@]}" --editable "$ROOT$extra"
}

# --download. By pip, since uv has no download.
download_all() {
    mkdir -p "$DOWNLOAD_DIR"
    DOWNLOAD_DIR=$(cd "$DOWNLOAD_DIR" && pwd)
    check_disk "$DOWNLOAD_DIR" 4
    step "Downloading all packages to $DOWNLOAD_DIR" "$VENV/bin/python" -m pip download --no-deps \
        --dest "$DOWNLOAD_DIR" --requirement "$ROOT/constraints.txt"
    # mpi4py's source, too, for an MPI that its wheel does not find (check_imports).
    step "Downloading mpi4py's source" "$VENV/bin/python" -m pip download --no-deps --no-binary mpi4py \
        --dest "$DOWNLOAD_DIR" "mpi4py==$(pinned mpi4py)"
    # Horovod's wheels of this machine, for others that are like it; cached_wheel looks there.
    mkdir -p "$CACHE" "$DOWNLOAD_DIR/horovod"
    (cd "$CACHE" && find . -mindepth 2 -maxdepth 2 -name '*.whl' -not -path './.*' -exec cp --parents {} "$DOWNLOAD_DIR/horovod" \;)
    say "$DOWNLOAD_DIR holds $(du -sh "$DOWNLOAD_DIR" | cut -f 1). On the other machine: tools/install.sh --offline DIR"
}

# ---------------------------------------------------------------- checks of the result

# Import everything in one process; without MPI all but mpi4py, which then has nothing to load. mpi4py's wheel loads any libmpi that it finds; where that is not Horovod's, build mpi4py.
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

# Status 3: several MPI libraries were loaded; prints them.
import_all() {
    WITHOUT_MPI=$WITHOUT_MPI "$VENV/bin/python" - <<'PY'
import os, re, sys

has_mpi = not os.environ["WITHOUT_MPI"]
if has_mpi:
    import mpi4py
    mpi4py.rc.initialize = False
    from mpi4py import MPI
    MPI.Get_library_version()

import cv2, h5py, torch, torchvision.ops, horovod.torch
import cxr_hvd, preprocess

# Without its library, horovod.torch only warns at its import.
if not (horovod.torch.gloo_built() and bool(horovod.torch.mpi_built()) == has_mpi):
    sys.exit("Horovod was built without MPI or Gloo" if has_mpi else "Horovod was built without Gloo, or with MPI")
if not has_mpi:
    sys.exit()
libraries = {os.path.realpath(path) for path in re.findall(r"/\S*/libmpi\.so\S*", open("/proc/self/maps").read())}
if len(libraries) != 1:
    print(*sorted(libraries))
    sys.exit(3)
PY
}

# The words that start two ranks here, one a line: where ranks are started by srun, an installer may not.
launcher_of_two() {
    if [[ -z $WITHOUT_MPI ]] && command -v mpirun >/dev/null; then
        printf '%s\n' mpirun -np 2
    else
        printf '%s\n' "$VENV/bin/horovodrun" --gloo -np 2 -H localhost:2
    fi
}

# Two ranks sum 1 and 2. Only a warning, since a machine may forbid starting ranks where it allows installing.
check_two_ranks() {
    local message launcher
    mapfile -t launcher < <(launcher_of_two)
    message=$(OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 \
        OMPI_MCA_mpi_yield_when_idle=1 OMP_NUM_THREADS=1 timeout 120 "${launcher[@]}" "$VENV/bin/python" -c '
import torch, horovod.torch as hvd
hvd.init()
total = hvd.allreduce(torch.tensor([hvd.rank() + 1.0]), op=hvd.Sum)
assert hvd.size() == 2 and total.item() == 3.0, (hvd.size(), total)
hvd.shutdown()' 2>&1 </dev/null) ||
        say "Warning: two ranks under ${launcher[0]##*/} could not sum their numbers; run: $VENV/bin/cxr-hvd doctor ($(tail -n 1 <<<"$message"))"
}

# ---------------------------------------------------------------- main

main() {
    parse_options "$@"
    if [[ -z $DOWNLOAD_DIR ]] && is_up_to_date; then exit 0; fi

    lock 9 "$STATE/lock" "$VENV"
    trap 'tidy_up $?' EXIT
    trap 'tidy_up 130' INT
    trap 'tidy_up 143' TERM
    if [[ -z $DOWNLOAD_DIR ]] && is_up_to_date; then exit 0; fi    # another run was at work
    choose_python
    if [[ -n $DOWNLOAD_DIR ]]; then
        create_venv
        honour_pip_config
        download_all
        exit 0
    fi

    rm -f "$STATE/stamp"
    if [[ -n $WITHOUT_MPI ]]; then touch "$STATE/without-mpi"; fi
    ensure_system_packages
    check_cxx
    if [[ -n $SYSTEM_TORCH ]]; then check_system_torch; fi
    [[ -d $(site_packages)/torch || -n $SYSTEM_TORCH ]] || check_disk "$VENV" "$NEED_FOR_ALL_GB"
    create_venv
    honour_pip_config
    install_uv
    install_packages
    install_horovod
    say "Checking all imports, then two ranks ..."
    check_imports
    check_two_ranks
    fingerprint >"$STATE/stamp.new"
    mv "$STATE/stamp.new" "$STATE/stamp"
    say "Ready in $SECONDS s: $("$VENV/bin/python" -V), torch $TORCH_VERSION, Horovod $HOROVOD_VERSION ($(horovod_parts)), $(mpi_identity). Next: source $VENV/bin/activate && cxr-hvd doctor"
}

# `exit` on the same line: bash reads a script as it runs, and `git pull` may replace this file meanwhile.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; exit; fi
