"""A slow link between two network namespaces: a constant delay and a constant rate each way, without tc netem.

Run as `python -m lab.slow_link A B DELAY_MS RATE_MBIT MTU` by root. Gives each namespace a `tun0` (10.78.0.1 and
10.78.0.2), prints "up", and carries packets between them; the devices disappear when it ends.
"""

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x1, 0x1000
QUEUE_BYTES = 4 << 20
PACKETS_AT_ONCE = 64


@dataclass
class Direction:
    """One way of the link: packets under way, each with the time at which it arrives."""

    source: int
    to: int
    bytes_per_s: float
    delay_s: float
    free_at: float = 0.0
    under_way: deque[tuple[float, bytes]] = field(default_factory=deque)

    def take(self) -> None:
        """Read what the sender has ready; what finds the queue full is lost, as on a real link."""
        for _ in range(PACKETS_AT_ONCE):
            try:
                packet = os.read(self.source, 1 << 16)
            except BlockingIOError:
                return
            now = time.monotonic()
            if (self.free_at - now) * self.bytes_per_s > QUEUE_BYTES:
                continue
            self.free_at = max(self.free_at, now) + len(packet) / self.bytes_per_s
            self.under_way.append((self.free_at + self.delay_s, packet))

    def deliver(self) -> None:
        """Write the packets whose time has come."""
        now = time.monotonic()
        while self.under_way and self.under_way[0][0] <= now:
            with contextlib.suppress(OSError):
                os.write(self.to, self.under_way.popleft()[1])


def open_tun(namespace: str, address: str, mtu: int) -> int:
    """Make a tun device, move it into the namespace as `tun0`, and return the end that stays here."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = f"t{namespace[-13:]}"
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    for arguments in (
        ["link", "set", name, "netns", namespace],
        ["-n", namespace, "link", "set", name, "name", "tun0"],
        ["-n", namespace, "addr", "add", f"{address}/24", "dev", "tun0"],
        ["-n", namespace, "link", "set", "tun0", "mtu", str(mtu), "txqueuelen", "5000", "up"],
    ):
        subprocess.run(["ip", *arguments], check=True)
    return device


def carry(directions: list[Direction]) -> None:
    """Carry packets for ever."""
    poll = select.epoll()
    by_source = {direction.source: direction for direction in directions}
    for source in by_source:
        poll.register(source, select.EPOLLIN)
    while True:
        arrivals = [direction.under_way[0][0] for direction in directions if direction.under_way]
        wait_s = max(0.0, min(arrivals) - time.monotonic()) if arrivals else -1
        for source, _ in poll.poll(wait_s):
            by_source[source].take()
        for direction in directions:
            direction.deliver()


def main() -> None:
    """Set up both devices and carry packets."""
    name_a, name_b, delay_ms, rate_mbit, mtu = sys.argv[1:]
    end_a = open_tun(name_a, "10.78.0.1", int(mtu))
    end_b = open_tun(name_b, "10.78.0.2", int(mtu))
    bytes_per_s, delay_s = float(rate_mbit) * 1e6 / 8, float(delay_ms) / 1e3
    os.nice(-15)  # the link is a machine of its own: busy ranks must not slow it
    print("up", flush=True)
    carry([Direction(end_a, end_b, bytes_per_s, delay_s), Direction(end_b, end_a, bytes_per_s, delay_s)])


if __name__ == "__main__":
    main()
