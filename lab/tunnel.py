"""A WireGuard tunnel between two hosts, by the kernel or, where it has none, by a process at each."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lab.commands import output_of, running, wait_until
from lab.packages import install
from lab.two_hosts import TUNNEL, TwoHosts


def need_wireguard() -> None:
    """Skip, with the reason, where WireGuard's tools are not here and cannot be installed."""
    if reason := install(("wg", "wireguard-go"), ("wireguard-tools", "wireguard-go")):
        pytest.skip(f"a tunnel needs wireguard-tools and wireguard-go: {reason}")
    if not Path("/dev/net/tun").exists():
        pytest.skip("a tunnel needs /dev/net/tun")


@contextmanager
def wireguard(both: TwoHosts) -> Iterator[str]:
    """Join the hosts by an encrypted tunnel as well, as `tunnel-a` and `tunnel-b`; yield its device."""
    private = [output_of(["wg", "genkey"]).strip() for _ in both.hosts]
    public = [output_of(["wg", "pubkey"], key + "\n").strip() for key in private]
    with ExitStack() as stack:
        for number, host in enumerate(both.hosts):
            other = 1 - number
            if subprocess.run(
                host.as_root("ip", "link", "add", "wg0", "type", "wireguard"), capture_output=True, check=False
            ).returncode:  # not in this kernel: the same in a process
                stack.enter_context(running(host.as_root("wireguard-go", "-f", "wg0")))
                wait_until(
                    lambda host=host: Path("/proc", str(host.sshd), "net/dev").read_text().count("wg0:"), "wg0"
                )
            else:
                stack.callback(output_of, host.as_root("ip", "link", "del", "wg0"))
            peer = ["peer", public[other], "allowed-ips", f"{TUNNEL}.{other + 1}/32"]
            peer += ["endpoint", f"{both.hosts[other].site.address}:51820"]
            setting = ["wg", "set", "wg0", "listen-port", "51820", "private-key", "/dev/stdin", *peer]
            output_of(host.as_root(*setting), private[number] + "\n")
            output_of(host.as_root("ip", "addr", "add", f"{TUNNEL}.{number + 1}/24", "dev", "wg0"))
            output_of(host.as_root("ip", "link", "set", "wg0", "up"))
        yield "wg0"
