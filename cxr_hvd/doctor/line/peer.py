"""The examination of the line to another host: ssh, the program there, ports, delay and rate, two ranks.

Each question is asked only where the one before was answered. The first that fails is a finding that names what
was expected, what was found and what to do.
"""

import json
import os
import re
import secrets
import select
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cxr_hvd.doctor import questions
from cxr_hvd.doctor.line import sockets, verdicts
from cxr_hvd.doctor.line.advice import LineAdvice, advise, choose_line
from cxr_hvd.doctor.line.probe import ACCEPT_LIMIT_S, CONNECT_LIMIT_S, MAX_LINE, address_of
from cxr_hvd.doctor.line.sockets import LineSpeed
from cxr_hvd.doctor.verdicts import Finding
from cxr_hvd.errors import UsageError
from cxr_hvd.launch.slow_line import SEND_ONLY
from cxr_hvd.partial.cost import Link

AGENT = "OMPI_MCA_plm_rsh_agent"
"""Names the program that Open MPI uses instead of ssh; so does this module."""

HOST = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,252})(?::[0-9]{1,5})?")
INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")
START_LIMIT_S = 30.0
CALL_LIMIT_S = ACCEPT_LIMIT_S + CONNECT_LIMIT_S + 5.0
RANKS_LIMIT_S = 90.0
EXCHANGE_S = 1.0
MAX_EXCHANGE_BYTES = 6 << 20
MIN_EXCHANGE_BYTES = 1 << 14


@dataclass(frozen=True)
class Peer:
    """The other host, and how to reach its program.

    Attributes:
        host: as ssh and the launcher know it.
        python: the interpreter there that has this program installed.
        interface: the network interface of the line, by the same name at both hosts; empty: any.
    """

    host: str
    python: str
    interface: str = ""


@dataclass
class PeerReport:
    """What was found out about a line; None where it was not reached."""

    findings: list[Finding] = field(default_factory=list)
    speed: LineSpeed | None = None
    ranks: dict[str, float] | None = None
    advice: LineAdvice | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain values."""
        return {
            "line": self.speed and asdict(self.speed),
            "ranks": self.ranks,
            "advice": self.advice and asdict(self.advice) | {"settings": list(self.advice.settings)},
        }


class Unanswered(Exception):
    """The peer's program ended, or gave no answer in time."""


def read_peer(host: str, python: str | None, interface: str | None) -> Peer:
    """Check the options of `doctor --peer`.

    Raises:
        UsageError: one is no name of a host, a program or an interface.
    """
    match = HOST.fullmatch(host)
    if not match:
        raise UsageError(f"--peer {host[:60]}: expected the name or IPv4 address of a host, such as hospital-b")
    if interface is not None and not INTERFACE.fullmatch(interface):
        raise UsageError(f"--interface {interface[:60]}: expected a network interface such as wg0")
    if python is not None and not (python.isprintable() and python.strip() and not python.startswith("-")):
        raise UsageError("--peer-python: expected the path of a Python interpreter at the other host")
    return Peer(match[1], python or sys.executable, interface or "")


def examine_peer(peer: Peer, exchange_bytes: int, compute_s: float, launches: bool = True) -> PeerReport:
    """Measure the line to another host, and choose settings for it.

    Args:
        peer: the other host.
        exchange_bytes: of one exchange in float32.
        compute_s: a step without any exchange, in seconds.
        launches: also start a rank at each end by a launcher.

    Blocking: 5 to 30 s; at most about two and a half minutes, since every question has a time limit.
    """
    report = PeerReport()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        program = _started(peer, errors)
        try:
            _ask_program(peer, program, report)
        except Unanswered:
            report.findings.append(verdicts.judge_start(peer.host, peer.python, *_last_words(program, errors)))
        finally:
            program.kill()  # at the other end, standard input ends: so does the program
            program.wait()
    if report.speed is None:
        return report
    report.findings.append(verdicts.judge_speed(peer.host, report.speed))
    link = Link(report.speed.delay_s, report.speed.bytes_per_s)
    if launches:
        finding, report.ranks = ask_ranks(peer, link)
        report.findings.append(finding)
    report.advice = advise(link, exchange_bytes, compute_s)
    report.findings += verdicts.show_advice(report.advice)
    return report


def _ask_program(peer: Peer, program: "subprocess.Popen[bytes]", report: PeerReport) -> None:
    token = secrets.token_bytes(sockets.TOKEN_BYTES)
    _order(program, {"token": token.hex(), "interface": peer.interface})
    here = _answer(program, ("address", "caller", "port"), START_LIMIT_S)
    if "error" in here:
        report.findings.append(verdicts.judge_interface(peer.host, peer.interface, str(here["error"])))
        return
    report.findings.append(verdicts.judge_program(peer.host, here, shutil.which("mpirun") is not None))
    address, port = str(here["address"]) or peer.host, int(here["port"])
    line, refusal = None, ""
    try:
        line = sockets.call(address, port, token, CONNECT_LIMIT_S)
        own_address = line.getsockname()[0]
    except OSError as error:
        refusal = error.strerror or str(error)
        own_address = str(here["caller"]) or socket.gethostname()
    if peer.interface:
        try:
            own_address = address_of(peer.interface)
        except OSError as error:
            report.findings.append(verdicts.judge_interface("this host", peer.interface, str(error.strerror)))
            return
    with sockets.listen(own_address) as server:
        _order(program, {"address": own_address, "port": server.getsockname()[1]})
        caller = sockets.accept(server, token, CALL_LIMIT_S if line is None else CONNECT_LIMIT_S)
        if caller:
            caller.close()
    called = _answer(program, ("called",), CALL_LIMIT_S)
    back = "" if caller else str(called.get("error", "no connection arrived"))
    report.findings.append(verdicts.judge_ports(peer.host, refusal, back))
    if line is not None:
        with line:
            try:
                report.speed = sockets.measure(line) if caller else None
            except OSError as error:
                report.findings.append(verdicts.judge_cut(peer.host, error.strerror or str(error)))


def _started(peer: Peer, errors: Any) -> "subprocess.Popen[bytes]":
    """Start the peer's program by ssh, or by the program that Open MPI uses instead."""
    agent = shlex.split(os.environ.get(AGENT, "ssh").partition(":")[0]) or ["ssh"]
    options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10"] if Path(agent[0]).name == "ssh" else []
    command = f"{shlex.quote(peer.python)} -m cxr_hvd.doctor.line.probe"
    try:
        return subprocess.Popen(
            [*agent, *options, peer.host, command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    except OSError as error:
        raise UsageError(f"--peer starts a program there by {agent[0]}: {error.strerror}; install it") from error


def _order(program: "subprocess.Popen[bytes]", order: Mapping[str, object]) -> None:
    assert program.stdin is not None
    try:
        program.stdin.write(json.dumps(order).encode() + b"\n")
        program.stdin.flush()
    except OSError as error:
        raise Unanswered from error


def _answer(program: "subprocess.Popen[bytes]", keys: Sequence[str], limit_s: float) -> dict[str, Any]:
    """Return the next JSON object with these keys, or with an `error`; other lines are skipped.

    Raises:
        Unanswered: none comes in time.
    """
    assert program.stdout is not None
    deadline = time.monotonic() + limit_s
    text = b""
    while len(text) < 16 * MAX_LINE:
        if not select.select([program.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise Unanswered
        piece = os.read(program.stdout.fileno(), 1)
        if not piece:
            raise Unanswered
        text += piece
        if piece == b"\n":
            with suppress(ValueError):
                value = json.loads(text)
                if isinstance(value, dict) and ("error" in value or set(keys) <= set(value)):
                    return _checked(value)
            text = b""
    raise Unanswered


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer of the peer whose addresses are addresses; a `ValueError` where one is not."""
    for name in ("address", "caller"):
        if answer.get(name):
            ip_address(str(answer[name]))
    int(answer.get("port", 0))
    return answer


def _last_words(program: "subprocess.Popen[bytes]", errors: Any) -> tuple[int | None, str]:
    """Return the exit code of the peer's program, or None where it has not ended, and its last line."""
    code: int | None
    try:
        code = program.wait(1.0)
    except subprocess.TimeoutExpired:
        code = None
    errors.seek(0)
    lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
    return code, lines[-1] if lines else ""


def ask_ranks(peer: Peer, link: Link) -> tuple[Finding, dict[str, float] | None]:
    """Start a rank at each end by the launcher that is here; return the finding and the times."""
    num_bytes = int(min(MAX_EXCHANGE_BYTES, max(MIN_EXCHANGE_BYTES, link.bytes_per_s * EXCHANGE_S)))
    words = launcher_words(peer, num_bytes, choose_line(link))
    if not words:
        name = f"a rank here, one at {peer.host}"
        return Finding(name, "fail", "neither mpirun nor horovodrun is on PATH", "cxr-hvd doctor"), None
    status, output = questions.run_bounded(words, RANKS_LIMIT_S)
    times = None
    for text in re.findall(r"\{[^{}]*\"num_ranks\"[^{}]*\}", output):
        with suppress(ValueError):
            times = json.loads(text)
    lines = output.strip().splitlines()
    if status != 0 or times is None:
        why = questions.describe_failure(status, lines, RANKS_LIMIT_S)
        return verdicts.judge_ranks(peer.host, Path(words[0]).name, why, None, 0.0), None
    times |= {"exchange_bytes": num_bytes}
    line_s = num_bytes / link.bytes_per_s + link.delay_s
    return verdicts.judge_ranks(peer.host, Path(words[0]).name, "", times, line_s), times


def launcher_words(peer: Peer, num_bytes: int, line: str) -> list[str]:
    """Return the command that starts one rank here and one at the peer; empty where there is no launcher."""
    here = socket.gethostname()
    module = ["-m", "cxr_hvd.doctor.line.ranks", str(num_bytes)]
    mpirun = questions.mpirun_command(questions.ask_mpirun())
    if mpirun:
        settings = {"pml": "ob1", "btl": "tcp,self"}
        if line == "slow":
            settings[SEND_ONLY[0].removeprefix("OMPI_MCA_")] = SEND_ONLY[1]
        if peer.interface:
            settings |= {"btl_tcp_if_include": peer.interface, "oob_tcp_if_include": peer.interface}
        common = [*mpirun[: mpirun.index("-np")], "--bind-to", "none"]
        common += [word for name, value in settings.items() for word in ("--mca", name, value)]
        at_peer = ["-np", "1", "-host", peer.host, peer.python, *module]
        return [*common, "-np", "1", "-host", here, sys.executable, *module, ":", *at_peer]
    horovodrun = questions.horovodrun_command()
    if not horovodrun:
        return []
    interface = ["--network-interfaces", peer.interface] if peer.interface else []
    return [*horovodrun, *interface, "-H", f"{here}:1,{peer.host}:1", peer.python, *module]
