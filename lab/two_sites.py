"""Two sites on one machine: two network namespaces joined by a cable or by a slow link, with jobs across them.

Messages between ranks of different sites go through a network interface with counters. Names are new for each
pair, so several test runs can work at the same time; all is taken down at the end, whatever happens. Needs root
and `ip`. There is no sshd: mpirun reaches the other site through a small script.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab import janitor
from lab.commands import output_of
from lab.launch import PROJECT, Finished, environment, run

SET_HOST_NAME = 'hostname "$0" && exec "$@"'


@dataclass(frozen=True)
class SlowLink:
    """Delay one way, rate each way, and the largest packet."""

    delay_ms: float = 20.0
    rate_mbit: float = 100.0
    mtu: int = 1500


@dataclass(frozen=True)
class Traffic:
    """The counters of an interface, headers included."""

    received_bytes: int
    received_packets: int
    sent_bytes: int
    sent_packets: int

    def since(self, earlier: "Traffic") -> "Traffic":
        """Return the difference to an earlier reading."""
        return Traffic(
            self.received_bytes - earlier.received_bytes,
            self.received_packets - earlier.received_packets,
            self.sent_bytes - earlier.sent_bytes,
            self.sent_packets - earlier.sent_packets,
        )


def traffic_in(table: str, device: str) -> Traffic:
    """Read one interface's counters in the text of /proc/net/dev."""
    for line in table.splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == device:
            numbers = [int(number) for number in counters.split()]
            return Traffic(numbers[0], numbers[1], numbers[8], numbers[9])
    raise LookupError(f"no {device} in:\n{table}")


def traffic_here(device: str) -> Traffic:
    """Read the counters of an interface in the namespace that this process is in."""
    return traffic_in(Path("/proc/net/dev").read_text(), device)


@dataclass(frozen=True)
class Site:
    """One namespace: its name, its address on the way to the other, and its host name, as a rule the same name."""

    name: str
    address: str
    host: str

    def command(self, *command: str) -> list[str]:
        """Return a command that runs the given one at this site."""
        return [
            "ip",
            "netns",
            "exec",
            self.name,
            "unshare",
            "--uts",
            "sh",
            "-c",
            SET_HOST_NAME,
            self.host,
            *command,
        ]


@dataclass(frozen=True)
class TwoSites:
    """A pair of sites that stands until its context ends."""

    sites: tuple[Site, Site]
    device: str
    agent: Path

    def run(self, site: int, command: list[str], limit_s: float = 120, **more: str) -> Finished:
        """Run a command at one site, and wait for its end."""
        return run(self.sites[site].command(*command), limit_s, **more)

    def mpirun(self, ranks_per_site: int, command: list[str], limit_s: float = 120, **more: str) -> Finished:
        """Run so many ranks of one MPI job at each site; ranks of the first site come first."""
        hosts = ",".join(f"{site.address}:{ranks_per_site}" for site in self.sites)
        settings = {
            "plm": "rsh",
            "plm_rsh_agent": str(self.agent),
            "pml": "ob1",
            "btl": "vader,tcp,self",
            "btl_tcp_if_include": self.device,
            "oob_tcp_if_include": self.device,
        }
        prefix = ["mpirun", "--allow-run-as-root", "--bind-to", "none", "--host", hosts]
        prefix += ["-np", str(2 * ranks_per_site)]
        for name, value in settings.items():
            prefix += ["--mca", name, value]
        # For torch.distributed over Gloo, where a rank uses it beside MPI.
        sockets = {"GLOO_SOCKET_IFNAME": self.device, "MASTER_ADDR": self.sites[0].address}
        return self.run(0, [*prefix, *command], limit_s, **(sockets | more))

    def traffic(self, site: int) -> Traffic:
        """Read the counters of the interface that leads to the other site."""
        table = output_of(["ip", "netns", "exec", self.sites[site].name, "cat", "/proc/net/dev"])
        return traffic_in(table, self.device)


@contextmanager
def two_sites(link: SlowLink | None = None, host_names: tuple[str, str] | None = None) -> Iterator[TwoSites]:
    """Set up two sites joined by a cable or, where one is given, by a slow link; take all down at the end."""
    tag = secrets.token_hex(3)
    names = f"cxr-{tag}-a", f"cxr-{tag}-b"
    network = "10.78.0" if link else "10.77.0"
    hosts = host_names or names
    sites = Site(names[0], f"{network}.1", hosts[0]), Site(names[1], f"{network}.2", hosts[1])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cxr-sites-")))
        janitor.run_at_end("rm", "-rf", folder)
        for site in sites:
            janitor.run_at_end("ip", "netns", "delete", site.name)
            janitor.run_at_end("sh", "-c", janitor.end_processes_of_namespace(site.name))
            _ip("netns", "add", site.name)
            stack.callback(_remove, site.name)
            _ip("-n", site.name, "link", "set", "lo", "up")
            known = Path("/etc/netns", site.name)
            janitor.run_at_end("rm", "-rf", known)
            known.mkdir(parents=True)
            stack.callback(shutil.rmtree, known, ignore_errors=True)
            lines = ["127.0.0.1 localhost", *(f"{entry.address} {entry.host}" for entry in sites)]
            (known / "hosts").write_text("\n".join(lines) + "\n")
        if link:
            stack.enter_context(_slow_link(names, link))
        else:
            _join(names)
        yield TwoSites(sites, "tun0" if link else "eth0", _write_agent(folder, sites))


def why_not(link: SlowLink | None = None) -> str | None:
    """Return the reason why two sites cannot be set up here, or None where they can."""
    if os.geteuid() != 0:
        return "two sites need root"
    missing = [name for name in ("ip", "unshare", "mpirun") if shutil.which(name) is None]
    if missing:
        return f"two sites need {', '.join(missing)}"
    if link and not Path("/dev/net/tun").exists():
        return "a slow link needs /dev/net/tun"
    try:
        with two_sites(link):
            return None
    except (OSError, RuntimeError) as error:
        return f"two sites cannot be set up here: {error}"


def need_two_sites(link: SlowLink | None = None) -> None:
    """Skip, with the reason, where two sites cannot be set up."""
    import pytest

    if reason := why_not(link):
        pytest.skip(reason)


def _join(names: tuple[str, str]) -> None:
    _ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
    for number, name in enumerate(names, 1):
        _ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")


@contextmanager
def _slow_link(names: tuple[str, str], link: SlowLink) -> Iterator[None]:
    numbers = [str(link.delay_ms), str(link.rate_mbit), str(link.mtu)]
    with subprocess.Popen(
        [sys.executable, "-m", "lab.slow_link", *names, *numbers],
        cwd=PROJECT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as carrier:
        assert carrier.stdout is not None and carrier.stderr is not None
        try:
            if carrier.stdout.readline().strip() != "up":
                raise RuntimeError(f"the slow link did not start: {carrier.stderr.read()[-500:]}")
            yield
        finally:
            carrier.kill()


def _write_agent(folder: Path, sites: tuple[Site, Site]) -> Path:
    """Write the script that mpirun calls instead of ssh: AGENT HOST COMMAND..., the command for a shell."""
    chosen = "\n".join(f"  {site.address}|{site.host}) name={site.name} host={site.host} ;;" for site in sites)
    agent = folder / "agent"
    agent.write_text(
        f'#!/bin/sh\ncase "$1" in\n{chosen}\n  *) echo "no site $1" >&2; exit 1 ;;\nesac\nshift\n'
        f'exec ip netns exec "$name" unshare --uts sh -c \'hostname "$0" && eval "$1"\' "$host" "$*"\n'
    )
    agent.chmod(0o755)
    return agent


def end_all(name: str) -> None:
    """End what still runs in a namespace of ours."""
    for pid in output_of(["ip", "netns", "pids", name]).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), 9)


def _remove(name: str) -> None:
    end_all(name)
    _ip("netns", "delete", name)


def _ip(*arguments: str) -> None:
    output_of(["ip", *arguments])
