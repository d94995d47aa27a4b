"""Two institutions on one machine: two hosts, each with its own user, data, and an sshd as the only way in.

A host is a network namespace of `lab.two_sites` in which an sshd listens (port 2222, keys only). Its user owns a
home of mode 0700, which holds the site's study file and its runs. The first host's user may log in at the second
host as that host's user, and nobody else may anywhere. Users, keys and names are made anew for each pair, and all
is taken down at the end, whatever happened. Needs root and openssh-server.

Users must be able to read this checkout and its Python. What lies below a folder that is closed to them (/root,
as a rule) is mounted into a private view of the file system that each host has; the folder itself stays closed.
"""

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab import two_sites as sites
from lab.launch import BIN, PROJECT, Finished, run
from lab.two_sites import Site, SlowLink, Traffic, TwoSites, end_all, output_of, two_sites
from tests.helpers import janitor
from tests.helpers.packages import install

HOST_NAMES = "hospital-a", "hospital-b"
TUNNEL_NAMES = "tunnel-a", "tunnel-b"
TUNNEL = "10.79.0"
PORT = 2222
UP_WITHIN_S = 10.0

SSHD = """\
Port {port}
HostKey {folder}/host_key
PidFile none
UsePAM no
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
AllowUsers {user}
AuthorizedKeysFile .ssh/authorized_keys
PrintMotd no
LogLevel ERROR
"""
SSH = """\
Host {names}
    User {user}
    Port {port}
    IdentityFile {home}/.ssh/id_ed25519
    StrictHostKeyChecking yes
    BatchMode yes
    LogLevel ERROR
"""


@dataclass(frozen=True)
class Host:
    """One institution's machine: where it is, whose it is, and the process of its sshd, which holds its view."""

    site: Site
    user: str
    home: Path
    sshd: int

    def command(self, *command: str) -> list[str]:
        """Return a command that runs the given one as this host's user, in its home, as after a login."""
        own = [f"HOME={self.home}", f"USER={self.user}", f"LOGNAME={self.user}", "LANG=C.UTF-8", "COLUMNS=200"]
        own += [f"PATH={BIN}:/usr/local/bin:/usr/bin:/bin", "OMP_NUM_THREADS=1"]
        user = [f"--reuid={self.user}", f"--regid={self.user}", "--init-groups"]
        return [*self.as_root("setpriv", *user), "env", "-i", "-C", str(self.home), *own, *command]

    def as_root(self, *command: str) -> list[str]:
        """Return a command that runs the given one at this host as root."""
        return ["nsenter", "--target", str(self.sshd), "--mount", "--uts", "--net", *command]


@dataclass(frozen=True)
class TwoHosts:
    """A pair of hosts that stands until its context ends."""

    pair: TwoSites
    hosts: tuple[Host, Host]

    @property
    def device(self) -> str:
        """The interface that leads to the other host, at both."""
        return self.pair.device

    def run(self, host: int, command: Sequence[str], limit_s: float = 120) -> Finished:
        """Run a command at one host as its user, in its home, and wait for its end."""
        return run(self.hosts[host].command(*command), limit_s)

    def start(self, host: int, command: Sequence[str], output: Path) -> "subprocess.Popen[bytes]":
        """Start a command at one host as its user, and do not wait; to be ended by `end` or by itself."""
        with output.open("wb") as file:
            own = self.hosts[host].command(*command)
            return subprocess.Popen(
                own, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )

    def ranks(self, host: int) -> list[int]:
        """Return the process ids of the ranks of `cxr-hvd` that run at a host."""
        pids = []
        for pid in output_of(["ip", "netns", "pids", self.hosts[host].site.name]).split():
            with contextlib.suppress(OSError):
                words = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
                if len(words) > 1 and words[1].endswith(b"/cxr-hvd"):
                    pids.append(int(pid))
        return pids

    def traffic(self) -> tuple[Traffic, Traffic]:
        """Read both interfaces' counters."""
        return self.pair.traffic(0), self.pair.traffic(1)


def mpirun(commands: Sequence[Sequence[str]], device: str, names: Sequence[str] = HOST_NAMES) -> list[str]:
    """Return the words that start one rank at each host by mpirun, each with its own command."""
    settings = {
        "pml": "ob1",
        "btl": "tcp,self",
        "btl_tcp_if_include": device,
        "oob_tcp_if_include": device,
        "mpi_yield_when_idle": "1",  # both hosts have the same cores
    }
    words = ["mpirun", "--bind-to", "none", *(word for pair in settings.items() for word in ("--mca", *pair))]
    for number, (name, command) in enumerate(zip(names, commands, strict=True)):
        words += [":"] * number + ["-np", "1", "-host", name, "-x", "PATH", "-x", "OMP_NUM_THREADS", *command]
    return words


def horovodrun(command: Sequence[str], *options: str, names: Sequence[str] = HOST_NAMES) -> list[str]:
    """Return the words that start one rank at each host by horovodrun, all with the same command."""
    return ["horovodrun", *options, "-np", "2", "-H", ",".join(f"{name}:1" for name in names), *command]


@contextmanager
def two_hosts(link: SlowLink | None = None) -> Iterator[TwoHosts]:
    """Set up two hosts joined by a cable or, where one is given, by a slow link; take all down at the end."""
    with ExitStack() as stack:
        pair = stack.enter_context(two_sites(link, HOST_NAMES))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cxr-hosts-")))
        janitor.run_at_end("rm", "-rf", folder)
        folder.chmod(0o755)
        users = pair.sites[0].name, pair.sites[1].name
        homes = folder / "a", folder / "b"
        for user, home in zip(users, homes, strict=True):
            stack.enter_context(_user(user, home))
        stack.callback(lambda: [end_all(site.name) for site in pair.sites])
        _write_keys(folder, pair, users, homes)
        hosts = []
        for number, site in enumerate(pair.sites):
            with Path("/etc/netns", site.name, "hosts").open("a") as known:
                known.writelines(f"{TUNNEL}.{at} {name}\n" for at, name in enumerate(TUNNEL_NAMES, 1))
            sshd = stack.enter_context(_sshd(site, users[number], folder))
            hosts.append(Host(site, users[number], homes[number], sshd))
        both = TwoHosts(pair, (hosts[0], hosts[1]))
        for number in (0, 1):
            probe = both.run(number, [sys.executable, "-c", "import cxr_hvd.errors, yaml"], 30)
            if probe.exit_code:
                raise RuntimeError(f"a user cannot run Python from {PROJECT}: {probe.output.strip()[-300:]}")
        yield both


def why_not(link: SlowLink | None = None) -> str | None:
    """Say why two hosts cannot be set up here, or None where they can."""
    if reason := sites.why_not(link):
        return reason.replace("two sites", "two hosts")
    missing = [name for name in ("setpriv", "nsenter", "useradd", "userdel") if shutil.which(name) is None]
    if missing:
        return f"two hosts need {', '.join(missing)}"
    if reason := install(("sshd", "ssh"), ("openssh-server", "openssh-client")):
        return f"two hosts need openssh-server: {reason}"
    try:
        with two_hosts(link):
            return None
    except (OSError, RuntimeError) as error:
        return f"two hosts cannot be set up here: {error}"


def need_two_hosts(link: SlowLink | None = None) -> None:
    """Skip, with the reason, where two hosts cannot be set up."""
    import pytest

    if reason := why_not(link):
        pytest.skip(reason)


@contextmanager
def _user(name: str, home: Path) -> Iterator[None]:
    """Make a user that nobody can log in as by a password, and its home of mode 0700."""
    janitor.run_at_end("userdel", "--force", name)
    output_of(
        ["useradd", "--no-create-home", "--no-log-init", "--home-dir", str(home), "--shell", "/bin/sh", name]
    )
    try:
        output_of(["usermod", "-p", "*", name])  # not locked, and no password fits
        home.mkdir(mode=0o700)
        (home / ".ssh").mkdir(mode=0o700)
        for each in (home, home / ".ssh"):
            shutil.chown(each, name, name)
        uid = home.stat().st_uid
        yield
    finally:
        _remove_user(name)
        for left in (path for path in Path("/tmp").glob("ompi.*") if path.name.endswith(f".{uid}")):
            shutil.rmtree(left, ignore_errors=True)


def _remove_user(name: str) -> None:
    """Remove a user whose processes were ended; the kernel may need a moment for them."""
    for is_last in (False, False, False, True):
        try:
            output_of(["userdel", *(["--force"] if is_last else []), name])
            return
        except RuntimeError:
            if is_last:
                raise
            time.sleep(0.5)


def _write_keys(folder: Path, pair: TwoSites, users: tuple[str, str], homes: tuple[Path, Path]) -> None:
    """Make one host key for both, and let the first user in at the second host."""
    for path in (folder / "host_key", homes[0] / ".ssh" / "id_ed25519"):
        output_of(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)])
    names = [pair.sites[1].host, pair.sites[1].address, TUNNEL_NAMES[1], f"{TUNNEL}.2"]
    key = (folder / "host_key.pub").read_text()
    known = "".join(f"[{name}]:{PORT} {key}" for name in names)
    allowed = (homes[0] / ".ssh" / "id_ed25519.pub").read_text()
    config = SSH.format(names=" ".join(names), user=users[1], port=PORT, home=homes[0])
    for home, name, text in (
        (homes[0], "known_hosts", known),
        (homes[0], "config", config),
        (homes[1], "authorized_keys", allowed),
    ):
        (home / ".ssh" / name).write_text(text)
    for user, home in zip(users, homes, strict=True):
        for path in (home / ".ssh").iterdir():
            path.chmod(0o600)
            shutil.chown(path, user, user)


@contextmanager
def _sshd(site: Site, user: str, folder: Path) -> Iterator[int]:
    """Run an sshd at a site, with a view of the file system of its own; yield its process id."""
    config = folder / f"sshd-{site.host}"
    config.write_text(SSHD.format(port=PORT, folder=folder, user=user))
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    script = "\n".join(["set -e", *_view([PROJECT, Path(sys.prefix), Path(sys.base_prefix), folder])])
    command = site.command("sh", "-c", f'{script}\nexec "$0" "$@"', sshd, "-D", "-e", "-f", str(config))
    with running(command) as process:
        listening = f":{PORT:04X} "
        wait_until(lambda: listening in Path("/proc", str(process.pid), "net/tcp").read_text(), "an sshd", process)
        yield process.pid


def _view(needed: Iterable[Path]) -> list[str]:
    """Return the shell's lines that make paths reachable for everybody, where a folder above them is closed.

    Inside a private view: a closed folder is covered by an empty one that is open, with the needed ones in it.
    """
    lines = ["mount -t tmpfs -o mode=755 tmpfs /run", "mkdir /run/sshd"]
    resolved = sorted({path.resolve() for path in needed})
    tops = [path for path in resolved if not any(above in resolved for above in path.parents)]
    closed: dict[Path, list[Path]] = {}
    for path in tops:
        above = [each for each in reversed(path.parents) if not each.stat().st_mode & 0o001]
        if above:
            closed.setdefault(above[0], []).append(path)
    for root, below in closed.items():
        staged = [(f"/run/staged-{number}", path) for number, path in enumerate(below)]
        lines += [f"mkdir {stage} && mount --bind '{path}' {stage}" for stage, path in staged]
        lines += [f"mount -t tmpfs -o mode=755 tmpfs '{root}'"]
        lines += [f"mkdir -p '{path}' && mount --move {stage} '{path}' && rmdir {stage}" for stage, path in staged]
    return lines


@contextmanager
def running(command: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command beside the body, and end it."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            yield process
        except RuntimeError as error:
            said.seek(0)
            raise RuntimeError(f"{error}: {said.read().decode(errors='replace').strip()[-300:]}") from error
        finally:
            process.kill()
            process.wait()


def wait_until(is_up: Callable[[], object], what: str, process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Wait until something is up."""
    deadline = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        with contextlib.suppress(OSError):
            if is_up():
                return
        time.sleep(0.02)
    raise RuntimeError(f"{what} did not start")


def told(command: list[str], said: str) -> str:
    """Return what a command prints that is told something."""
    return subprocess.run(command, input=said + "\n", capture_output=True, text=True, check=True).stdout
