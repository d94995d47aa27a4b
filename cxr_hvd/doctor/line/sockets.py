"""Delay and rate of a line, measured over one TCP connection: echoes of a byte, then bytes both ways at once.

The bytes are random, since some lines compress, and at most 9 MB go each way. Each end measures what it receives.
"""

import hmac
import os
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

NUM_ECHOES = 11
# Each is four times the one before; together 8.4 MB.
EXCHANGE_BYTES = (24 << 10, 96 << 10, 384 << 10, 1536 << 10, 6 << 20)
ENOUGH_S = 0.6
SOCKET_LIMIT_S = 20.0
TOKEN_BYTES = 16
PIECE_BYTES = 1 << 18
MAX_BYTES_PER_S = 1e12

ORDER = struct.Struct("!cI")
RATE = struct.Struct("!d")
ECHO, EXCHANGE, END = b"e", b"x", b"q"


@dataclass(frozen=True)
class LineSpeed:
    """What was measured of a line.

    Attributes:
        delay_s: one way, half of an echo's round trip, in seconds.
        to_bytes_per_s: from this host to the other, while the other way is in use, too.
        from_bytes_per_s: from the other host to this one.
    """

    delay_s: float
    to_bytes_per_s: float
    from_bytes_per_s: float

    @property
    def bytes_per_s(self) -> float:
        """The slower way: an exchange waits for both."""
        return min(self.to_bytes_per_s, self.from_bytes_per_s)


def call(address: str, port: int, token: bytes, limit_s: float) -> socket.socket:
    """Connect to the host that listens, and show the token.

    Raises:
        OSError: there is no way to that address and port.
    """
    line = socket.create_connection((address, port), timeout=limit_s)
    _prepare(line)
    line.sendall(token)
    return line


def listen(address: str) -> socket.socket:
    """Listen on a port that the system chooses; an empty address is all of this host.

    Raises:
        OSError: this host has no such address.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, 0), family=family)


def accept(server: socket.socket, token: bytes, limit_s: float) -> socket.socket | None:
    """Return the connection of the caller that shows the token, or None where none comes in time.

    Blocking: at most `limit_s` seconds.
    """
    deadline = time.monotonic() + limit_s
    while (left_s := deadline - time.monotonic()) > 0:
        server.settimeout(left_s)
        try:
            line, _ = server.accept()
        except OSError:
            return None
        line.settimeout(max(0.1, deadline - time.monotonic()))
        with suppress(OSError):
            if hmac.compare_digest(_receive(line, TOKEN_BYTES), token):
                _prepare(line)
                return line
        line.close()
    return None


def measure(line: socket.socket) -> LineSpeed:
    """Measure a line whose other end runs `answer`; exchanges grow until one takes long enough.

    Raises:
        OSError: the line was cut, or answers nonsense.

    Blocking: a few seconds, whatever the line's rate.
    """
    trips = []
    for _ in range(NUM_ECHOES):
        started = time.monotonic()
        line.sendall(ORDER.pack(ECHO, 0))
        _receive(line, 1)
        trips.append(time.monotonic() - started)
    rates = (0.0, 0.0)
    for num_bytes in EXCHANGE_BYTES:
        started = time.monotonic()
        line.sendall(ORDER.pack(EXCHANGE, num_bytes))
        from_rate = _exchange(line, num_bytes)
        [to_rate] = RATE.unpack(_receive(line, RATE.size))
        if not 0 < to_rate <= MAX_BYTES_PER_S:
            raise OSError("the other host's rate is no number")
        rates = (to_rate, from_rate)
        if time.monotonic() - started > ENOUGH_S:
            break
    line.sendall(ORDER.pack(END, 0))
    return LineSpeed(statistics.median(trips) / 2, *rates)


def answer(line: socket.socket) -> None:
    """Do what `measure` at the other end asks for, until it ends.

    Raises:
        OSError: the line was cut, or asks for something else.
    """
    actions: dict[bytes, Callable[[int], bytes]] = {
        ECHO: lambda _: ECHO,
        EXCHANGE: lambda num_bytes: RATE.pack(_exchange(line, num_bytes)),
    }
    while True:
        order, num_bytes = ORDER.unpack(_receive(line, ORDER.size))
        if order == END:
            return
        if order not in actions or num_bytes > max(EXCHANGE_BYTES):
            raise OSError("the other host asks for something unknown")
        line.sendall(actions[order](num_bytes))


def _exchange(line: socket.socket, num_bytes: int) -> float:
    """Send and receive at once; return the bytes a second that arrive.

    The first quarter is not counted: TCP is slow until it knows the line.
    """
    payload = os.urandom(num_bytes)

    def send() -> None:
        with suppress(OSError):  # the receiving side meets the same
            line.sendall(payload)

    sender = threading.Thread(target=send, daemon=True)
    started = time.monotonic()
    sender.start()
    num_received, num_uncounted = 0, 0
    piece = bytearray(PIECE_BYTES)
    while num_received < num_bytes:
        count = line.recv_into(piece, min(PIECE_BYTES, num_bytes - num_received))
        if not count:
            raise OSError("the other host closed the line")
        num_received += count
        if not num_uncounted and num_received >= num_bytes // 4:
            num_uncounted, started = num_received, time.monotonic()
    elapsed_s = time.monotonic() - started
    sender.join(SOCKET_LIMIT_S)
    return min(MAX_BYTES_PER_S, max(1, num_bytes - num_uncounted) / max(elapsed_s, 1e-6))


def _receive(line: socket.socket, num_bytes: int) -> bytes:
    content = b""
    while len(content) < num_bytes:
        piece = line.recv(num_bytes - len(content))
        if not piece:
            raise OSError("the other host closed the line")
        content += piece
    return content


def _prepare(line: socket.socket) -> None:
    line.settimeout(SOCKET_LIMIT_S)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
