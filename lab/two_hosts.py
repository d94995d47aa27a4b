"""Two institutions on one machine: two hosts, each with a user, data, and an sshd as the only way in.

A host is a network namespace of `lab.two_sites` in which an sshd listens (port 2222, keys only). Its user owns a
home of mode 0700, which holds the site's study file and its runs. The first host's user may log in at the second
host as that host's user; there is no other login. Users, keys and names are new for each pair, and all is taken
down at the end, whatever happens. Needs root and openssh-server.
"""

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab import janitor
from lab import two_sites as sites
from lab.commands import output_of
from lab.host import PORT, Host, running_sshd, user_with_home
from lab.launch import PROJECT, Finished, run
from lab.packages import install
from lab.two_sites import SlowLink, Traffic, TwoSites, end_all, two_sites

HOST_NAMES = "hospital-a", "hospital-b"
TUNNEL_NAMES = "tunnel-a", "tunnel-b"
TUNNEL = "10.79.0"

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
            words = self.hosts[host].command(*command)
            return subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
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
            stack.enter_context(user_with_home(user, home))
        stack.callback(lambda: [end_all(site.name) for site in pair.sites])
        _write_keys(folder, pair, users, homes)
        hosts = []
        for number, site in enumerate(pair.sites):
            with Path("/etc/netns", site.name, "hosts").open("a") as known:
                known.writelines(f"{TUNNEL}.{at} {name}\n" for at, name in enumerate(TUNNEL_NAMES, 1))
            sshd = stack.enter_context(running_sshd(site, users[number], folder))
            hosts.append(Host(site, users[number], homes[number], sshd))
        both = TwoHosts(pair, (hosts[0], hosts[1]))
        for number in (0, 1):
            probe = both.run(number, [sys.executable, "-c", "import cxr_hvd.errors, yaml"], 30)
            if probe.exit_code:
                raise RuntimeError(f"a user cannot run Python from {PROJECT}: {probe.output.strip()[-300:]}")
        yield both


def why_not(link: SlowLink | None = None) -> str | None:
    """Return the reason why two hosts cannot be set up here, or None where they can."""
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
