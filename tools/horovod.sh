# shellcheck shell=bash
# Builds Horovod with MPI and Gloo (and NCCL, where there is CUDA) for the torch that is installed: docs/decisions/0001.
# tools/install.sh sources this file; it gives VENV, ROOT, CACHE, OFFLINE_DIR, WITHOUT_MPI, `step`, `say`, `fail`, `lock` and
# `pip_source`.

readonly HOROVOD_VERSION=0.28.1
readonly HOROVOD_SHA256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0   # of the source archive
readonly NEED_FOR_BUILD_GB=2

# ---------------------------------------------------------------- the machine

# "openmpi-4.1.4", "mpich-4.0.2", "intelmpi-2021.10", "craympich-8.1.29", "nompi" with --without-mpi, or nothing where there
# is none. Asks the mpirun on PATH, so a loaded module counts.
mpi_identity() {
    local text name=mpi
    if [[ -n ${WITHOUT_MPI:-} ]]; then printf 'nompi'; return; fi
    if ! text=$(mpirun --version 2>/dev/null); then
        if is_cray; then printf 'craympich-%s' "${CRAY_MPICH_VERSION:-0}"; fi
        return 0
    fi
    case $text in
        *"Open MPI"* | *OpenRTE* | *PRRTE*) name=openmpi ;;
        *Intel*) name=intelmpi ;;
        *HYDRA*) name=mpich ;;
    esac
    printf '%s-%s' "$name" "$(grep -oE '[0-9]+(\.[0-9]+)+' <<<"$text" | head -n 1)"
}

# Whether the compiler is Cray's, which links Cray's MPI by itself: CC is set up by a module that names that MPI's folder.
is_cray() { [[ -n ${CRAY_MPICH_DIR:-} ]] && command -v CC >/dev/null; }

# The folder of the CUDA toolkit, or nothing. Asks nvcc, since the one on PATH may be a link or a script.
find_cuda_home() {
    local nvcc
    for nvcc in "${CUDA_HOME:-/none}/bin/nvcc" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
        if [[ -x $nvcc ]]; then
            realpath "$("$nvcc" --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')" 2>/dev/null && return
        fi
    done
    true
}

# The C++ compiler: $CXX, Cray's CC, c++ or g++; nothing where there is none.
real_cxx() {
    local name cray=
    if [[ -z $WITHOUT_MPI ]] && is_cray; then cray=CC; fi
    for name in ${CXX:+"$CXX"} $cray c++ g++; do
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

# ---------------------------------------------------------------- the installed torch

# Set TORCH_VERSION, TORCH_CUDA, TORCH_INCLUDE, PYTHON_ABI, NCCL_HEADER and NCCL_LIBRARY; "-" for what is missing. Reads the
# files of the installed torch, since its import takes seconds.
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

# Set CUDA_TOOLKIT and NCCL_VERSION ("-" for none), and report whether GPUs will be used.
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

# cxx_standard_of HEADER: torch/all.h says "#error C++20 or later compatible compiler is required to use PyTorch."
cxx_standard_of() {
    local standard=${CXR_HVD_CXX_STANDARD:-}
    [[ -n $standard ]] || standard=$(grep -oE '#error C\+\+[0-9]+' "$1" 2>/dev/null | grep -oE '[0-9]+$' | head -n 1) ||
        fail "cannot read from $1 which C++ standard torch needs: set CXR_HVD_CXX_STANDARD, for example to 20"
    printf '%s' "$standard"
}

# The compute capabilities that torch is built for, "75,80,90"; nothing where torch does not list them.
gpus_of_torch() {
    "$VENV/bin/python" -c 'import re, torch; print(*re.findall(r"\bsm_(\d+)\b", torch._C._cuda_getArchFlags() or ""), sep=",")' \
        2>/dev/null || true
}

# ---------------------------------------------------------------- the wheel

# Install the wheel for this machine; build it first where the cache has none.
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

# Whether the build with this key is installed and whole: direct_url.json names the wheel's path, which holds the key, and
# RECORD the size of the library.
is_horovod_installed() {
    local site notes size
    site=$(site_packages)
    notes=$site/horovod-$HOROVOD_VERSION.dist-info
    grep -qF "/$1/" "$notes/direct_url.json" 2>/dev/null || return 1
    size=$(sed -n 's/^horovod\/torch\/mpi_lib_v2[^,]*\.so,[^,]*,//p' "$notes/RECORD" | tr -d '\r')
    [[ -n $size && $size == "$(stat -c %s "$site"/horovod/torch/mpi_lib_v2*.so 2>/dev/null)" ]]
}

# Everything that the wheel's machine code depends on, with a hash of the recipe: a changed function or compiler stand-in leads
# to a new build. No "+" in it, since CMake takes paths for patterns.
wheel_key() {
    local recipe compiler nvcc=-
    recipe=$({ declare -f build_horovod horovod_environment hide_cuda let_python_run include_headers open_driver do_without_distutils; cat "$ROOT/tools/horovod_cxx.sh"; } | sha256sum | cut -c 1-8)
    compiler=$(compiler_identity)
    if [[ $CUDA_TOOLKIT != - ]]; then nvcc=$("$CUDA_TOOLKIT/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p'); fi
    printf '%s' "$HOROVOD_VERSION-torch$TORCH_VERSION-$PYTHON_ABI-$(mpi_identity)-$compiler-$(uname -m)" \
        "-$(getconf GNU_LIBC_VERSION)-cuda$nvcc-nccl$NCCL_VERSION-$recipe" | tr -c 'A-Za-z0-9._-' '_'
}

# The path of the wheel with this key, or nothing. Folders are renamed into the cache, so their wheels are whole; a folder of
# --download may hold wheels, too.
cached_wheel() {
    local folder wheel
    for folder in "$CACHE/$1" ${OFFLINE_DIR:+"$OFFLINE_DIR/horovod/$1"}; do
        for wheel in "$folder"/horovod-*.whl; do
            if [[ -e $wheel ]]; then printf '%s' "$wheel"; return; fi
        done
    done
}

# ---------------------------------------------------------------- the build

# Build the wheel into the cache.
build_horovod() {
    local key=$1 settings
    rm -rf "$CACHE/.build-$key".*     # of a run that was killed
    BUILD_DIR=$(mktemp -d "$CACHE/.build-$key.XXXXXX")
    fetch_horovod "$BUILD_DIR"
    cp "$ROOT/tools/horovod_cxx.sh" "$BUILD_DIR/cxx"
    [[ $CUDA_TOOLKIT != - ]] || hide_cuda "$BUILD_DIR/horovod-$HOROVOD_VERSION"
    let_python_run "$BUILD_DIR/horovod-$HOROVOD_VERSION"
    include_headers "$BUILD_DIR/horovod-$HOROVOD_VERSION"
    open_driver "$BUILD_DIR/horovod-$HOROVOD_VERSION"
    do_without_distutils "$BUILD_DIR/horovod-$HOROVOD_VERSION"
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

# Unpack the source archive into a folder; download it first where no folder was given that holds it.
fetch_horovod() {
    local archive=${OFFLINE_DIR:-$1}/horovod-$HOROVOD_VERSION.tar.gz
    if [[ ! -e $archive ]]; then
        download_horovod "$1"
        archive=$1/horovod-$HOROVOD_VERSION.tar.gz
    fi
    check_horovod_source "$archive"
    tar --no-same-owner -xzf "$archive" -C "$1"
}

# Download the source archive into a folder. pip reads its metadata by running its setup.py.
download_horovod() {
    local python=$VENV/bin/python isolation=(--no-build-isolation)
    if ! "$python" -c 'import cffi, cloudpickle, setuptools' 2>/dev/null; then python=${PYTHON:-python3} isolation=(); fi
    printf 'horovod==%s --hash=sha256:%s\n' "$HOROVOD_VERSION" "$HOROVOD_SHA256" >"$1/horovod-requirement.txt"
    # shellcheck disable=SC2046
    step "Fetching Horovod's source" "$python" -m pip download $(pip_source) --no-deps --no-binary horovod \
        "${isolation[@]}" --dest "$1" --requirement "$1/horovod-requirement.txt"
    rm "$1/horovod-requirement.txt"
}

check_horovod_source() {
    sha256sum --check --status <<<"$HOROVOD_SHA256  $1" ||
        fail "$1 is not Horovod's source archive of version $HOROVOD_VERSION: its SHA-256 differs; delete it and fetch it again"
}

# Build without CUDA: Horovod would use any toolkit that it sees, also one of another version than torch's.
hide_cuda() {
    local file=$1/cmake/Modules/FindPytorch.cmake
    sed -i 's/(CUDA_HOME is not None)/False/' "$file"
    grep -q 'and False' "$file" || fail "Horovod's FindPytorch.cmake is not as expected: $file"
}

# Release Python's lock where a tensor is handed over. Horovod keeps it while it waits for its own thread; where that waits
# for a frozen peer, all threads of Python stop, the watchdog too.
let_python_run() {
    local file=$1/horovod/torch/mpi_ops_v2.cc
    sed -i -E 's/&(Do[A-Za-z]+)\)/\&\1, py::call_guard<py::gil_scoped_release>())/' "$file"
    grep -q 'DoAllgather, py::call_guard' "$file" || fail "Horovod's mpi_ops_v2.cc is not as expected: $file"
}

# Two of Horovod's headers lack #include lines; before version 13, g++'s own headers brought them along.
include_headers() {
    local file
    for file in common.h group_table.h; do
        sed -i '1i #include <cstdint>\n#include <functional>\n#include <memory>\n#include <stdexcept>\n#include <string>' \
            "$1/horovod/common/$file"
    done
}

# Open the driver by the name that every machine with a GPU has. The one without a number comes with development packages.
open_driver() {
    local file=$1/horovod/torch/cuda_util.cc
    sed -i 's/"libcuda\.so"/"libcuda.so.1"/' "$file"
    grep -q '"libcuda\.so\.1"' "$file" || fail "Horovod's cuda_util.cc is not as expected: $file"
}

# Python 3.12 has no distutils, from which horovodrun takes one function.
do_without_distutils() {
    local file=$1/horovod/runner/js_run.py
    sed -i 's/^from distutils\.spawn import find_executable$/from shutil import which as find_executable/' "$file"
    ! grep -q distutils "$file" || fail "Horovod's js_run.py is not as expected: $file"
}

# The variables of the build, NAME=VALUE, one a line.
horovod_environment() {
    local build=$1 mpi_folder gpus
    say "PATH=$VENV/bin:$PATH"
    say "CXX=$build/cxx"
    say "CXR_HVD_CXX=$(real_cxx)"
    say "CXR_HVD_CXX_STANDARD=$(cxx_standard_of "$TORCH_INCLUDE/torch/csrc/api/include/torch/all.h")"
    # An MPI that the loader does not find by itself, for example of a module, has to be named in the library.
    if [[ -n ${WITHOUT_MPI:-} ]]; then
        say HOROVOD_WITHOUT_MPI=1
    else
        mpi_folder=$(mpi_library_folder)
        if [[ -n $mpi_folder ]]; then say "CXR_HVD_RPATH=$mpi_folder"; fi
        say HOROVOD_WITH_MPI=1
    fi
    say HOROVOD_WITH_PYTORCH=1 && say HOROVOD_WITHOUT_TENSORFLOW=1 && say HOROVOD_WITHOUT_MXNET=1
    say HOROVOD_WITH_GLOO=1
    say "MAKEFLAGS=${MAKEFLAGS:--j$(num_jobs)}"
    say CMAKE_POLICY_VERSION_MINIMUM=3.5      # CMake 4 no longer reads what the bundled Gloo asks for
    [[ $CUDA_TOOLKIT != - ]] || return 0
    say "PATH=$VENV/bin:$CUDA_TOOLKIT/bin:$PATH"
    say "CUDA_HOME=$CUDA_TOOLKIT" && say "CUDAToolkit_ROOT=$CUDA_TOOLKIT" && say "HOROVOD_CUDA_HOME=$CUDA_TOOLKIT"
    say "LIBRARY_PATH=$CUDA_TOOLKIT/lib64${LIBRARY_PATH:+:$LIBRARY_PATH}"
    say "CMAKE_LIBRARY_PATH=$CUDA_TOOLKIT/lib64" && say "CMAKE_INCLUDE_PATH=$CUDA_TOOLKIT/include"
    say "NVCC_APPEND_FLAGS=-std=c++20"
    # Left alone, Horovod compiles for every GPU that nvcc knows, which takes twice as long as for those of torch.
    gpus=${HOROVOD_BUILD_CUDA_CC_LIST:-$(gpus_of_torch)}
    if [[ -n $gpus ]]; then say "HOROVOD_BUILD_CUDA_CC_LIST=$gpus"; fi
    [[ $NCCL_VERSION != - ]] || return 0
    mkdir -p "$build/nccl"
    ln -sf "$NCCL_LIBRARY" "$build/nccl/libnccl.so"      # the linker wants the name without the number
    say HOROVOD_GPU_OPERATIONS=NCCL && say HOROVOD_NCCL_LINK=SHARED
    say "HOROVOD_NCCL_INCLUDE=$(dirname "$NCCL_HEADER")" && say "HOROVOD_NCCL_LIB=$build/nccl"
}

# The folder of the MPI library that mpicxx links; nothing where the loader searches it anyway.
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

# Number of compiler processes; each takes up to 1.5 GB.
num_jobs() {
    local cores memory_gb jobs
    cores=$(nproc)
    memory_gb=$(awk '/MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo)
    jobs=$((memory_gb * 2 / 3))
    echo $((jobs < 1 ? 1 : jobs < cores ? jobs : cores))
}

# The parts of the build, for the last line of the installer.
horovod_parts() {
    if [[ -z $WITHOUT_MPI ]]; then printf 'MPI, '; fi
    printf Gloo
    if [[ $CUDA_TOOLKIT != - ]]; then printf ', CUDA'; fi
    if [[ $NCCL_VERSION != - ]]; then printf ', NCCL'; fi
}
