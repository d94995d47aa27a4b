"""Capture the packets on a device of a host, so that a test can search them.

Run as `python -m lab.packets DEVICE FILE` at a host, the module writes the packets to a file.
"""

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.launch import PROJECT, environment
from lab.two_hosts import TwoHosts

SETTLED_AFTER_S = 0.3
SOL_PACKET, PACKET_STATISTICS, SO_RCVBUFFORCE, ETH_P_ALL = 263, 6, 33, 3


class Packets:
    """The bytes that a device carried during `captured`."""

    def __init__(self) -> None:
        self.content = b""

    def hold(self, pattern: bytes) -> bool:
        """Return whether some packet holds these bytes in clear."""
        return pattern in self.content


@contextmanager
def captured(both: TwoHosts, device: str, host: int = 0) -> Iterator[Packets]:
    """Capture every packet of a host's device while the body runs; the result can be read after it.

    Raises:
        RuntimeError: a packet was lost.
    """
    packets = Packets()
    with tempfile.TemporaryDirectory(prefix="cxr-capture-") as folder:
        path = Path(folder, "packets")
        command = both.hosts[host].as_root(sys.executable, "-m", "lab.packets", device, str(path))
        with subprocess.Popen(
            command, cwd=PROJECT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as capture:
            assert capture.stdout is not None and capture.stderr is not None
            try:
                if capture.stdout.readline().strip() != "up":
                    raise RuntimeError(f"the capture did not start: {capture.stderr.read()[-500:]}")
                yield packets
                time.sleep(SETTLED_AFTER_S)
                capture.send_signal(signal.SIGTERM)
                lost, complaint = capture.communicate(timeout=20)
            finally:
                capture.kill()
            if lost.strip() != "0":
                raise RuntimeError(f"the capture lost {lost.strip()} packets: {complaint[-500:]}")
        packets.content = path.read_bytes()


def main() -> None:
    """Write packets of a device to a file until SIGTERM; print "up" at the start, the number lost at the end."""
    device, path = sys.argv[1:]
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as tap,
        Path(path).open("wb") as file,
    ):
        tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 29)
        tap.bind((device, 0))
        signal.signal(signal.SIGTERM, lambda *_: tap.setblocking(False))
        os.nice(-15)
        print("up", flush=True)
        tap.settimeout(0.2)
        while True:
            try:
                file.write(tap.recv(1 << 18))
            except TimeoutError:
                continue
            except BlockingIOError:
                break
        print(struct.unpack("II", tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1])


if __name__ == "__main__":
    main()
