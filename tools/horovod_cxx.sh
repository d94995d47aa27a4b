#!/usr/bin/env bash
# Stands in for the C++ compiler while Horovod builds, and mends what Horovod 0.28.1 sets by itself:
#
#   -std=...        Horovod asks for C++14 (Gloo for C++11); the headers of today's torch refuse anything below the
#                   standard they name. CMake sets it per target, so no flag from outside comes later and wins.
#   -Wl,-rpath,...  CMake writes the folders of the build machine into the library. The wheel outlives them, and a
#                   folder that somebody else could create later is no place to load code from. Nothing needs them:
#                   torch has loaded its own libraries before Horovod is imported.
#   -g              Notes for a debugger take a third of the compiler's time and nine tenths of the library's size.
#
# Reads: CXR_HVD_CXX, the real compiler; CXR_HVD_CXX_STANDARD, for example 20; CXR_HVD_RPATH, folders that have to stay
# (an MPI outside of the system's library path), may be empty.
set -euo pipefail

: "${CXR_HVD_CXX:?names the real C++ compiler}" "${CXR_HVD_CXX_STANDARD:?is the C++ standard, for example 20}"

arguments=()
for argument in "$@"; do
    case "$argument" in
        -std=gnu++* | -std=c++*) argument="-std=gnu++$CXR_HVD_CXX_STANDARD" ;;
        -Wl,-rpath,* | -Wl,-rpath=* | -g) continue ;;
    esac
    arguments+=("$argument")
done
# Only where a library is linked: at a plain compilation the flag would be noise.
if [[ -n ${CXR_HVD_RPATH:-} && " $* " == *" -shared "* ]]; then
    arguments+=("-Wl,-rpath,$CXR_HVD_RPATH")
fi

# CXR_HVD_CXX may hold arguments of its own ("ccache g++"), hence the missing quotes.
# shellcheck disable=SC2086
exec $CXR_HVD_CXX "${arguments[@]}"
