"""The other end of `cxr-hvd doctor --peer`, started there by ssh: `python -m cxr_hvd.doctor.line.probe`.

It takes orders from standard input and answers on standard output, a JSON object a line. It ends after one
measurement, or when standard input does. It listens for a few seconds, and talks to nobody without the token.
"""

import fcntl
import json
import os
import shutil
import socket
import struct
import sys
from importlib.util import find_spec
from typing import Any

from cxr_hvd import __version__
from cxr_hvd.doctor.line import sockets

CONNECT_LIMIT_S = 5.0
ACCEPT_LIMIT_S = 8.0
MAX_LINE = 4096
SIOCGIFADDR = 0x8915
DAEMONS = ("orted", "prted", "hydra_pmi_proxy")


def address_of(interface: str) -> str:
    """Return the IPv4 address of a network interface of this host.

    Raises:
        OSError: there is no such interface, or it has no address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("256s", interface.encode()[:15])
        return socket.inet_ntoa(fcntl.ioctl(any_socket.fileno(), SIOCGIFADDR, request)[20:24])


def main() -> None:
    """Say what is here, try both ways, and answer one measurement."""
    order = _read()
    token, interface = bytes.fromhex(order["token"]), order["interface"]
    # CLIENT PORT SERVER PORT, where sshd started this.
    connection = os.environ.get("SSH_CONNECTION", "").split()
    caller, address = (connection[0], connection[2]) if len(connection) == 4 else ("", "")
    try:
        address = address_of(interface) if interface else address
        server = sockets.listen(address)
    except OSError as error:
        _say({"error": f"{interface or address}: {error.strerror or error}"})
        return
    with server:
        here = {"version": __version__, "has_horovod": find_spec("horovod") is not None}
        daemon = next((name for name in DAEMONS if shutil.which(name)), None)
        port = server.getsockname()[1]
        _say(here | {"daemon": daemon, "address": address, "caller": caller, "port": port})
        line = sockets.accept(server, token, ACCEPT_LIMIT_S)
    order = _read()
    try:
        sockets.call(order["address"], int(order["port"]), token, CONNECT_LIMIT_S).close()
        _say({"called": True})
    except OSError as error:
        _say({"called": False, "error": error.strerror or str(error)})
    if line is not None:
        with line:
            sockets.answer(line)


def _read() -> dict[str, Any]:
    text = sys.stdin.readline(MAX_LINE)
    if not text:
        sys.exit(0)  # the other end is gone
    order: dict[str, Any] = json.loads(text)
    return order


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
