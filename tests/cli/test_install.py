"""The installer: its parts, run for real in bash, and (slow) the whole of it without a network."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.launch import has_ended

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "tools" / "install.sh"
HOROVOD = ROOT / "tools" / "horovod.sh"
WRAPPER = ROOT / "tools" / "horovod_cxx.sh"


def run_bash(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a bash that knows the installer's functions."""
    return subprocess.run(
        ["bash", "-c", f"source '{INSTALL}'\n{script}"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
        check=False,
        # Jobs in the background start with interrupts ignored, and bash cannot trap what was ignored at its start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def write_command(folder: Path, name: str, body: str) -> None:
    """Put a fake command into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def copy_tree(destination: Path) -> Path:
    """Copy what the installer needs, without an environment, and return the copy's root."""
    destination.mkdir()
    for name in ("constraints.txt", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, destination)
    for name in ("tools", "cxr_hvd", "preprocess"):
        shutil.copytree(ROOT / name, destination / name, ignore=shutil.ignore_patterns("__pycache__"))
    return destination


def test_sourcing_runs_nothing_and_prints_nothing() -> None:
    done = run_bash("")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_help_names_every_option() -> None:
    done = subprocess.run([INSTALL, "--help"], capture_output=True, text=True, check=True)
    options = set(re.findall(r"^\s+(--[a-z-]+)(?: \|.*)?\)", INSTALL.read_text(), re.MULTILINE))
    assert {"--venv", "--offline", "--system-torch"} <= options
    assert all(option in done.stdout for option in options)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--colour"], "unknown option '--colour'"),
        (["--offline"], "--offline needs a value"),
        (["--offline", "/nowhere/at/all"], "the folder is not there"),
        (["--download", "a", "--offline", "."], "give one of them"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: list[str], says: str) -> None:
    done = subprocess.run([INSTALL, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("header", "standard"), [("C++17", "17"), ("C++20", "20"), ("C++23", "23")])
def test_cxx_standard_is_the_one_torch_asks_for(tmp_path: Path, header: str, standard: str) -> None:
    file = tmp_path / "all.h"
    file.write_text(f"#if x\n#error {header} or later compatible compiler is required to use PyTorch.\n#endif\n")
    assert run_bash(f"cxx_standard_of '{file}'").stdout == standard
    assert run_bash(f"cxx_standard_of '{file}'", CXR_HVD_CXX_STANDARD="26").stdout == "26"


def test_unknown_cxx_standard_is_refused_not_guessed(tmp_path: Path) -> None:
    file = tmp_path / "all.h"
    file.write_text("#pragma once\n")
    done = run_bash(f"cxx_standard_of '{file}'")
    assert done.returncode == 1
    assert "CXR_HVD_CXX_STANDARD" in done.stderr


def test_compiler_stand_in_swaps_the_standard_and_drops_build_folders(tmp_path: Path) -> None:
    write_command(tmp_path, "real", "printf '%s\\n' \"$@\"")
    given = ["-std=gnu++14", "-O3", "-std=c++11", "-Wl,-rpath,/tmp/build", "-g", "-I/with space", "-c", "a.cc"]
    environment = os.environ | {"CXR_HVD_CXX": str(tmp_path / "real"), "CXR_HVD_CXX_STANDARD": "20"}
    seen = subprocess.run([WRAPPER, *given], capture_output=True, text=True, check=True, env=environment).stdout
    assert seen.splitlines() == ["-std=gnu++20", "-O3", "-std=gnu++20", "-I/with space", "-c", "a.cc"]

    environment["CXR_HVD_RPATH"] = "/opt/mpi/lib"
    seen = subprocess.run(
        [WRAPPER, "-shared", "a.o"], capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert seen.splitlines() == ["-shared", "a.o", "-Wl,-rpath,/opt/mpi/lib"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")
def test_compiler_stand_in_compiles_what_needs_the_newer_standard(tmp_path: Path) -> None:
    source = tmp_path / "a.cc"
    source.write_text("#if __cplusplus < 202002L\n#error too old\n#endif\nint main() {}\n")
    environment = os.environ | {"CXR_HVD_CXX": "g++", "CXR_HVD_CXX_STANDARD": "20"}
    command = ["-std=gnu++14", "-fsyntax-only", source]
    assert subprocess.run(["g++", *command], capture_output=True, check=False).returncode != 0
    assert subprocess.run([WRAPPER, *command], capture_output=True, check=False, env=environment).returncode == 0


WHEEL_KEY = "TORCH_VERSION={torch} PYTHON_ABI={abi} CUDA_TOOLKIT=- NCCL_VERSION={nccl}; wheel_key"


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")
def test_wheel_key_changes_with_all_that_the_wheel_depends_on(tmp_path: Path) -> None:
    usual = {"torch": "2.14.1+cu130", "abi": "cpython-311", "nccl": "2.30.7"}
    others = [{"torch": "2.14.1+cpu"}, {"torch": "2.15.0+cu130"}, {"abi": "cpython-312"}, {"nccl": "-"}]
    keys = [run_bash(WHEEL_KEY.format(**usual | other)).stdout for other in [{}, *others]]
    write_command(tmp_path, "mpirun", "echo 'mpirun (Open MPI) 5.0.3'")
    write_command(tmp_path, "g++-99", "echo 'g++-99 (GCC) 99.1.0'")
    path = f"{tmp_path}:{os.environ['PATH']}"
    keys.append(run_bash(WHEEL_KEY.format(**usual), PATH=path).stdout)
    keys.append(run_bash(WHEEL_KEY.format(**usual), PATH=path, CXX="g++-99").stdout)
    keys.append(run_bash("hide_cuda() { true; }\n" + WHEEL_KEY.format(**usual)).stdout)
    assert len(set(keys)) == len(keys), keys
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{40,200}", key) for key in keys), keys
    assert keys[0] == run_bash(WHEEL_KEY.format(**usual)).stdout


@pytest.mark.parametrize(
    ("version", "identity"),
    [
        ("mpirun (Open MPI) 4.1.4", "openmpi-4.1.4"),
        ("HYDRA build details:\n    Version:     4.2.1", "mpich-4.2.1"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.10 Build 2", "intelmpi-2021.10"),
    ],
)
def test_mpi_on_path_is_told_apart(tmp_path: Path, version: str, identity: str) -> None:
    write_command(tmp_path, "mpirun", f"cat <<'END'\n{version}\nEND")
    assert run_bash("mpi_identity", PATH=f"{tmp_path}:{os.environ['PATH']}").stdout == identity


def test_missing_packages_without_root_names_the_command() -> None:
    script = "missing_packages() { say cmake; say g++; }; ensure_system_packages"
    command = ["bash", "-c", f"source <(cat); apt-get() {{ exit 9; }}; {script}"]
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid=65534", "--clear-groups", *command]
    # Both files as one through a pipe: the project may be where only root can read.
    source = 'source "$ROOT/tools/horovod.sh"\n'
    assert source in INSTALL.read_text()
    text = INSTALL.read_text().replace(source, HOROVOD.read_text())
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "sudo apt-get install -y cmake g++" in done.stderr
    assert done.stderr.count("install: error:") == 1


def test_missing_packages_offline_are_listed() -> None:
    done = run_bash("OFFLINE_DIR=/tmp; missing_packages() { say cmake; say g++; }; ensure_system_packages")
    assert done.returncode == 1
    assert "cmake g++" in done.stderr


def test_what_is_missing_is_told_by_presence(tmp_path: Path) -> None:
    for name in ("mpirun", "mpicxx", "make"):
        write_command(tmp_path, name, "true")
    done = run_bash(f"PATH={tmp_path} PYTHON={sys.executable}; missing_packages")
    assert done.stdout.split()[:2] == ["cmake", "g++"]


def test_old_python_is_refused(tmp_path: Path) -> None:
    write_command(tmp_path, "python3.9", 'case "$1" in -V) echo Python 3.9.2;; *) exit 1;; esac')
    done = run_bash(f"VENV={tmp_path}/none STATE={tmp_path}/none PYTHON={tmp_path}/python3.9; choose_python")
    assert done.returncode == 1
    assert "3.11 or newer is needed, found Python 3.9.2" in done.stderr
    assert "--python" in done.stderr


@pytest.mark.parametrize(
    ("torch", "is_new"), [("2.8.0", 1), ("2.9.0", 0), ("2.10.1+cu130", 0), ("3.0", 0), ("1.13", 1)]
)
def test_old_torch_is_told_from_new(torch: str, is_new: int) -> None:
    assert run_bash(f"is_torch_new_enough {torch}").returncode == is_new


def test_full_disk_is_said_before_the_work(tmp_path: Path) -> None:
    done = run_bash(f"check_disk '{tmp_path}/not/there/yet' 10000000")
    assert done.returncode == 1
    assert "10000000 GB are needed" in done.stderr
    assert run_bash(f"check_disk '{tmp_path}' 0").returncode == 0


def test_old_compiler_is_refused(tmp_path: Path) -> None:
    write_command(tmp_path, "g++-7", "exit 1")
    done = run_bash("check_cxx", CXX=str(tmp_path / "g++-7"))
    assert done.returncode == 1
    assert "C++20" in done.stderr


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("g++: internal compiler error: Killed (program cc1plus)", "MAKEFLAGS=-j1"),
        ("error sending request: dns error: failed to lookup", "use --offline DIR"),
    ],
)
def test_failed_step_says_why_and_where_the_log_is(tmp_path: Path, line: str, says: str) -> None:
    done = run_bash(
        f"STATE={tmp_path}; step 'Some work' sh -c 'echo fine; echo \"{line}\"; exit 3'; echo not reached"
    )
    assert done.returncode == 1
    assert says in done.stderr
    assert line in done.stderr
    assert str(tmp_path / "log" / "some-work.log") in done.stderr
    assert "not reached" not in done.stdout


def test_unfinished_build_is_no_wheel_and_a_whole_one_is(tmp_path: Path) -> None:
    unfinished = tmp_path / ".build-KEY.abc" / "wheel"
    unfinished.mkdir(parents=True)
    (unfinished / "horovod-0.28.1-x.whl").touch()
    (tmp_path / "KEY").mkdir()
    assert run_bash(f"CACHE={tmp_path}; cached_wheel KEY").stdout == ""
    unfinished.rename(tmp_path / "OTHER")
    assert run_bash(f"CACHE={tmp_path}; cached_wheel OTHER").stdout.endswith("horovod-0.28.1-x.whl")


def test_damaged_horovod_is_not_taken_for_installed(tmp_path: Path) -> None:
    site = tmp_path / "lib/python3.11/site-packages"
    notes = site / "horovod-0.28.1.dist-info"
    library = site / "horovod/torch/mpi_lib_v2.cpython-311-x86_64-linux-gnu.so"
    for folder in (notes, library.parent):
        folder.mkdir(parents=True)
    (notes / "direct_url.json").write_text('{"url": "file:///cache/KEY/horovod-0.28.1-x.whl"}')
    (notes / "RECORD").write_text(f"{library.relative_to(site)},sha256=abc,5\n")

    def is_installed(key: str) -> bool:
        return run_bash(f"VENV={tmp_path}; is_horovod_installed {key}").returncode == 0

    assert not is_installed("KEY")
    library.write_text("12345")
    assert is_installed("KEY")
    assert not is_installed("OTHER")
    library.write_text("123")
    assert not is_installed("KEY")


def test_moved_environment_is_refused(tmp_path: Path) -> None:
    write_command(tmp_path / "bin", "python", "echo /usr/bin/python3")
    (tmp_path / "bin" / "activate").write_text('VIRTUAL_ENV="/somewhere/else/.venv"\n')
    done = run_bash(f"VENV={tmp_path} STATE={tmp_path}/s; choose_python")
    assert done.returncode == 1
    assert "is a copy of /somewhere/else/.venv" in done.stderr


def test_pip_settings_reach_uv(tmp_path: Path) -> None:
    settings = r"global.index-url='https://mirror.example/simple'\nglobal.extra-index-url='file:///a https://b.example/s'\n"
    write_command(tmp_path / "bin", "python", f'printf "{settings}"')
    clean = "unset UV_DEFAULT_INDEX UV_INDEX_URL UV_INDEX UV_INDEX_STRATEGY"
    show = "echo $UV_DEFAULT_INDEX $UV_INDEX"
    done = run_bash(f"{clean}; VENV={tmp_path}; honour_pip_config; {show}")
    assert done.stdout.split() == ["https://mirror.example/simple", "https://b.example/s"]
    done = run_bash(
        f"{clean}; export UV_DEFAULT_INDEX=https://own.example; VENV={tmp_path}; honour_pip_config; {show}"
    )
    assert done.stdout.split()[0] == "https://own.example"


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_stopped_step_leaves_nothing_running_and_nothing_half_made(tmp_path: Path, name: str) -> None:
    build = tmp_path / "build"
    build.mkdir()
    body = f"""
        STATE={tmp_path} BUILD_DIR={build}
        trap 'tidy_up $?' EXIT; trap 'tidy_up 130' INT; trap 'tidy_up 143' TERM
        (sleep 1; kill -{name} $$) &
        step work bash -c 'sleep 600 & echo $! >{tmp_path}/child; wait'
    """
    done = run_bash(body)
    assert done.returncode == {"TERM": 143, "INT": 130}[name]
    assert not build.exists()
    assert has_ended((tmp_path / "child").read_text().strip())


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_are_shellcheck_clean() -> None:
    done = subprocess.run(["shellcheck", INSTALL, HOROVOD, WRAPPER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(
    not (ROOT / ".venv/.cxr_hvd/stamp").exists(), reason="this copy was not set up by tools/install.sh"
)
def test_second_run_is_quick_and_changes_nothing() -> None:
    if run_bash("parse_options; is_up_to_date").returncode != 0:
        pytest.skip("this copy is not up to date: run make setup")
    stamp = ROOT / ".venv/.cxr_hvd/stamp"
    before = stamp.stat().st_mtime_ns
    started = time.monotonic()
    done = subprocess.run([INSTALL], capture_output=True, text=True, check=True, timeout=60)
    assert time.monotonic() - started < 5
    assert done.stdout == ""
    assert stamp.stat().st_mtime_ns == before


# ---- without MPI, and with Cray's


def test_machines_that_start_ranks_in_another_way_need_no_mpirun(tmp_path: Path) -> None:
    for name in ("srun", "mpicxx", "cmake", "make", "g++"):
        write_command(tmp_path, name, "true")
    missing = f"PATH={tmp_path} PYTHON={sys.executable}; missing_packages"
    assert "openmpi" not in run_bash(missing).stdout
    (tmp_path / "srun").unlink()
    assert run_bash(missing).stdout.split()[:1] == ["openmpi-bin"]
    (tmp_path / "mpicxx").unlink()
    assert run_bash(missing).stdout.split()[:2] == ["openmpi-bin", "libopenmpi-dev"]
    assert "openmpi" not in run_bash(f"WITHOUT_MPI=1; {missing}").stdout


def test_cray_s_compiler_brings_cray_s_mpi(tmp_path: Path) -> None:
    for name in ("CC", "srun"):
        write_command(tmp_path, name, "true")
    script = f"PATH={tmp_path} PYTHON={sys.executable}; real_cxx; mpi_identity; missing_packages"
    modules = {"CRAY_MPICH_DIR": "/opt/cray/pe/mpich", "CRAY_MPICH_VERSION": "8.1.29", "CXX": ""}
    output = run_bash(script, **modules).stdout
    assert output.startswith("CCcraympich-8.1.29") and "openmpi" not in output
    assert not run_bash(script, CRAY_MPICH_DIR="", CXX="").stdout.startswith("CC")


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")
def test_a_build_without_mpi_is_another_build_and_starts_its_ranks_by_gloo(tmp_path: Path) -> None:
    header = tmp_path / "torch/csrc/api/include/torch/all.h"
    header.parent.mkdir(parents=True)
    header.write_text("#error C++20 or later compatible compiler is required to use PyTorch.\n")
    script = (
        f"VENV={tmp_path} TORCH_INCLUDE={tmp_path} CUDA_TOOLKIT=- NCCL_VERSION=- TORCH_VERSION=2 PYTHON_ABI=x;"
    )
    script += (
        "horovod_environment /tmp | grep MPI; wheel_key; echo; horovod_parts; echo; launcher_of_two | tail -n 3"
    )
    by_gloo = run_bash(f"WITHOUT_MPI=1 {script}").stdout.splitlines()
    assert by_gloo[0] == "HOROVOD_WITHOUT_MPI=1" and by_gloo[2] == "Gloo" and by_gloo[-1] == "localhost:2"
    assert "-nompi-" in by_gloo[1]
    by_mpi = run_bash(f"WITHOUT_MPI= {script}").stdout.splitlines()
    assert "HOROVOD_WITH_MPI=1" in by_mpi and "MPI, Gloo" in by_mpi and by_mpi[-3:] == ["mpirun", "-np", "2"]


@pytest.mark.parametrize(
    ("change", "file", "before", "after"),
    [
        (
            "open_driver",
            "torch/cuda_util.cc",
            'dlopen("libcuda.so", RTLD_LAZY)',
            'dlopen("libcuda.so.1", RTLD_LAZY)',
        ),
        (
            "do_without_distutils",
            "runner/js_run.py",
            "from distutils.spawn import find_executable",
            "from shutil import which as find_executable",
        ),
    ],
)
def test_horovod_s_source_is_mended_or_the_build_stops(
    change: str, file: str, before: str, after: str, tmp_path: Path
) -> None:
    path = tmp_path / "horovod" / file
    path.parent.mkdir(parents=True)
    path.write_text(f"{before}\n")
    for _ in range(2):
        assert run_bash(f"{change} {tmp_path}").returncode == 0
        assert path.read_text() == f"{after}\n"
    path.write_text("import distutils\n")
    done = run_bash(f"{change} {tmp_path}")
    assert done.returncode == 1 and "is not as expected" in done.stderr
    assert change in run_bash("declare -f wheel_key").stdout
