"""Measure a link between two hosts from both ends: round trip, and rate of a stream once it has got going.

`python -m tests.lab.link_probe ADDRESS listen` at one end, `... ADDRESS call` at the other, with the address
of the one that listens. The one that calls prints {"round_trip_s": ..., "bytes_per_s": ...}.
"""

import json
import socket
import statistics
import sys
import time

PORT = 40077
ROUND_TRIPS = 7
STREAM_BYTES = 16 << 20
UNCOUNTED_BYTES = 6 << 20


def listen(address: str) -> None:
    """Echo single bytes, then send the stream."""
    with socket.create_server((address, PORT)) as server:
        server.settimeout(20)
        caller, _ = server.accept()
        with caller:
            for _ in range(ROUND_TRIPS):
                caller.sendall(caller.recv(1))
            caller.sendall(bytes(STREAM_BYTES))
            caller.recv(1)


def call(address: str) -> None:
    """Time single bytes there and back, then the stream; its start, where TCP is still slow, is left out."""
    with _connect(address) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = []
        for _ in range(ROUND_TRIPS):
            started = time.monotonic()
            peer.sendall(b".")
            peer.recv(1)
            trips.append(time.monotonic() - started)
        received, counted_from, started = 0, 0, 0.0
        while received < STREAM_BYTES:
            received += len(peer.recv(1 << 20))
            if not counted_from and received >= UNCOUNTED_BYTES:
                counted_from, started = received, time.monotonic()
        rate = (received - counted_from) / (time.monotonic() - started)
        peer.sendall(b".")
    print(json.dumps({"round_trip_s": statistics.median(trips), "bytes_per_s": rate}))


def _connect(address: str) -> socket.socket:
    give_up_at = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection((address, PORT), timeout=20)
        except OSError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    {"listen": listen, "call": call}[sys.argv[2]](sys.argv[1])
