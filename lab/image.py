"""Build the project's image and start containers of it, without an engine: buildah and podman.

Base, images, containers, networks and temporary files are in one folder, which is removed at the end. The
machine's container storage is not touched; the build uses the caches of uv and Horovod, as `tools/install.sh`
does. Needs root. Every command runs in a mount namespace of its own, so no mount is left behind.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import janitor
from lab.launch import PROJECT, Finished, run
from lab.packages import need_packages

PROGRAMS = ("buildah", "podman", "debootstrap", "crun", "iptables")
BASE = "docker.io/library/debian:bookworm-slim"
IMAGE = "localhost/cxr_hvd"
OF_THE_MACHINE = ("/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
PYTORCH_INDEX = "https://download.pytorch.org/whl/cpu/"

# Where version 1 and 2 of control groups are both mounted, crun starts nothing unless it sees one of them only.
APART = ["unshare", "--mount", "sh", "-c", 'umount -l /sys/fs/cgroup/unified 2>/dev/null; exec "$0" "$@"']


@dataclass(frozen=True)
class Engine:
    """buildah and podman with all that they keep in one folder."""

    folder: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        """Write the configuration, and link the machine's caches into buildah's cache.

        The limits are low, since root may not raise them everywhere.
        """
        storage = self.folder / "storage.conf"
        storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.folder}/graph"\nrunroot = "{self.folder}/run"\n'
        )
        temporary = self.folder / "tmp"
        caches = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        uv_cache = Path(os.environ.get("UV_CACHE_DIR", caches / "uv"))
        for name in ("buildah-cache", f"buildah-cache-{os.getuid()}"):  # older and newer buildah
            (temporary / name).mkdir(parents=True)
            for identity, place in (("cxr_hvd-uv", uv_cache), ("cxr_hvd-horovod", caches / "cxr_hvd")):
                place.mkdir(parents=True, exist_ok=True)
                (temporary / name / identity).symlink_to(place)
        settings = self.folder / "containers.conf"
        settings.write_text(
            f'[containers]\ncgroups = "disabled"\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n'
            f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{self.folder}/networks"\n'
        )
        places = {"CONTAINERS_STORAGE_CONF": storage, "CONTAINERS_CONF": settings, "TMPDIR": temporary}
        object.__setattr__(self, "environment", {name: str(place) for name, place in places.items()})

    def buildah(self, *arguments: str, limit_s: float = 60) -> Finished:
        """Run buildah, and wait for its end."""
        return run([*APART, "buildah", *arguments], limit_s, **self.environment)

    def podman(self, *arguments: str, limit_s: float = 60) -> Finished:
        """Run podman, and wait for its end."""
        return run([*APART, "podman", *arguments], limit_s, **self.environment)

    def container(self, *arguments: str) -> list[str]:
        """Return the words that start a container; without health checks, which would need systemd."""
        return [*APART, "podman", "run", "--rm", "--no-healthcheck", *arguments]

    def run(
        self, *command: str, options: tuple[str, ...] = ("--network", "none"), limit_s: float = 60
    ) -> Finished:
        """Run a command in a new container, and wait for its end; without a network unless options say so."""
        return run(self.container(*options, IMAGE, *command), limit_s, **self.environment)

    def inspect(self) -> dict[str, Any]:
        """Return the image's metadata."""
        (record,) = json.loads(succeed(self.podman("image", "inspect", IMAGE)).output)
        return dict(record)

    def layers(self) -> list[tuple[int, str]]:
        """Return the bytes of each layer of the image that has any, the base first, and what made it."""
        layers = json.loads(succeed(self.podman("history", "--format", "json", IMAGE)).output)
        return [
            (layer["size"], layer.get("CreatedBy", "")) for layer in reversed(layers) if layer["size"] > 100_000
        ]


def succeed(done: Finished) -> Finished:
    """Return a command that ended well; raise with its last words where it did not."""
    if done.exit_code:
        raise RuntimeError(f"exit code {done.exit_code}: {done.output[-3000:]}")
    return done


def need_tools() -> None:
    """See to it that an image can be built; skip, with the reason, where it cannot."""
    if os.geteuid() != 0:
        pytest.skip("building an image without an engine needs root")
    need_packages((*PROGRAMS, "netavark", "aardvark-dns"), PROGRAMS)


def need_networks() -> None:
    """Skip where podman was there without what makes its networks."""
    if not Path("/usr/lib/podman/netavark").exists():
        pytest.skip("podman has no netavark here: apt-get install netavark aardvark-dns")


@contextmanager
def engine() -> Iterator[Engine]:
    """Yield an engine that holds a base image and can start containers; remove all at the end.

    Raises:
        RuntimeError: No base can be fetched, or no container starts here.
    """
    with tempfile.TemporaryDirectory(prefix="cxr-image-") as name:
        made = Engine(Path(name))
        environment = [f"{key}={value}" for key, value in made.environment.items()]
        janitor.run_at_end("rm", "-rf", name)
        janitor.run_at_end("env", *environment, "podman", "rm", "--all", "--force")
        try:
            root = made.folder / "root"
            words = ["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(root)]
            succeed(run(words, 300, **made.environment))
            archive = made.folder / "base.tar"
            succeed(run(["tar", "-C", str(root), "-cf", str(archive), "."], 120))
            shutil.rmtree(root)
            succeed(made.podman("import", str(archive), BASE, limit_s=120))
            archive.unlink()
            succeed(run(made.container("--network", "none", BASE, "true"), 60, **made.environment))
            yield made
        finally:
            made.podman("rm", "--all", "--force", limit_s=120)


def build(engine: Engine, context: Path) -> float:
    """Build the image from a folder, and return the seconds that it took."""
    mounts = [word for file in OF_THE_MACHINE if Path(file).exists() for word in ("--volume", f"{file}:{file}:ro")]
    backend = "cpu" if _is_reachable(PYTORCH_INDEX) else ""
    started = time.monotonic()
    succeed(
        engine.buildah(
            *("bud", "--format", "docker", "--isolation", "chroot", "--pull-never", *mounts),
            *("--build-arg", f"TORCH_BACKEND={backend}", "--tag", IMAGE, str(context)),
            limit_s=1200,
        )
    )
    return time.monotonic() - started


def _is_reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def copy_context(destination: Path) -> Path:
    """Copy the working tree as it is now, without environment, history and runs; return the copy."""
    left_out = shutil.ignore_patterns(
        ".git", ".venv", "runs", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info"
    )
    return Path(shutil.copytree(PROJECT, destination, ignore=left_out))


# ---------------------------------------------------------------- compose.yaml without docker compose


@dataclass(frozen=True)
class Composed:
    """The services of a compose file, with its variables filled in."""

    engine: Engine
    services: Mapping[str, Mapping[str, Any]]
    networks: Mapping[str, Any]

    @classmethod
    def read(cls, engine: Engine, file: Path, **variables: str) -> "Composed":
        """Read a file, with `${NAME:-default}` filled in and `$$` turned into a dollar."""

        def fill(match: re.Match[str]) -> str:
            return "$" if match[0] == "$$" else variables.get(match[1], match[2])

        text = re.sub(r"\$\$|\$\{(\w+):-([^}]*)\}", fill, file.read_text())
        document = yaml.safe_load(text)
        return cls(engine, document["services"], document["networks"])

    def create_networks(self) -> None:
        """Create the networks."""
        for name, settings in self.networks.items():
            internal = ["--internal"] if settings.get("internal") else []
            succeed(self.engine.podman("network", "create", *internal, name))

    def command(self, service: str) -> list[str]:
        """Return the command that starts a service; raise ValueError for settings that are not supported here."""
        settings = dict(self.services[service])
        settings.pop("build", None)
        settings.pop("depends_on", None)
        image, command = settings.pop("image"), settings.pop("command")
        options = [
            "--name",
            service,
            "--network",
            settings.pop("network_mode", None) or settings.pop("networks")[0],
        ]
        for key, option in (
            ("hostname", "--hostname"),
            ("shm_size", "--shm-size"),
            ("volumes", "--volume"),
            ("cap_drop", "--cap-drop"),
            ("security_opt", "--security-opt"),
            ("tmpfs", "--tmpfs"),
        ):
            values = settings.pop(key, [])
            for value in [values] if isinstance(values, str) else values:
                options += [option, value.removesuffix(":true")]
        if settings.pop("read_only", False):
            options.append("--read-only")
        if settings:
            raise ValueError(f"{service}: cannot do {', '.join(settings)}")
        return self.engine.container(*options, image, *command)

    def run(self, service: str, limit_s: float) -> Finished:
        """Run a service, and wait for its end."""
        return run(self.command(service), limit_s, **self.engine.environment)

    @contextmanager
    def running(self, service: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Start a service, and end it when the context ends."""
        with subprocess.Popen(
            self.command(service),
            env={**os.environ, **self.engine.environment},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            stderr=sys.stderr,
        ) as process:
            try:
                yield process
            finally:
                process.terminate()
                process.wait(30)
