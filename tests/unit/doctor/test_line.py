"""The line to another host: what is measured over a socket, and what every failure on the way is told as.

The other host is this one: a program in the place of ssh runs there what ssh would.
"""

import json
import socket
import sys
import threading
from pathlib import Path

import pytest

from cxr_hvd import __version__
from cxr_hvd.doctor.line import peer as examination
from cxr_hvd.doctor.line import sockets, verdicts
from cxr_hvd.doctor.line.peer import AGENT, PeerReport, examine_peer, launcher_words, read_peer
from cxr_hvd.doctor.line.sockets import EXCHANGE_BYTES, LineSpeed
from cxr_hvd.doctor.verdicts import Finding
from lab.launch import BIN, run

TOKEN = b"0123456789abcdef"
RUNS_IT = 'shift; exec sh -c "$*"'
SMALL = 1_000_000


def examine(
    script: str, monkeypatch: pytest.MonkeyPatch, folder: Path, host: str = "localhost", **more: str
) -> PeerReport:
    """Examine a line where a shell script stands in the place of ssh; no ranks."""
    agent = folder / "agent"
    agent.write_text(f"#!/bin/sh\n{script}\n")
    agent.chmod(0o755)
    monkeypatch.setenv(AGENT, str(agent))
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    peer = read_peer(host, more.get("python"), more.get("interface"))
    return examine_peer(peer, SMALL, 0.26, launches=False)


def test_both_ends_measure_and_no_more_than_9_mb_go_each_way() -> None:
    here, there = socket.socketpair()
    answering = threading.Thread(target=sockets.answer, args=(there,))
    answering.start()
    speed = sockets.measure(here)
    answering.join(10)
    assert not answering.is_alive()
    assert 0 < speed.delay_s < 0.1 and speed.bytes_per_s > 1e6
    assert sum(EXCHANGE_BYTES) < 9e6


@pytest.mark.parametrize("order", [b"?", b"x"])
def test_nobody_is_asked_for_more_than_is_foreseen(order: bytes) -> None:
    here, there = socket.socketpair()
    here.sendall(sockets.ORDER.pack(order, max(EXCHANGE_BYTES) + 1))
    with pytest.raises(OSError, match="unknown"):
        sockets.answer(there)


def test_a_caller_without_the_token_is_turned_away() -> None:
    with sockets.listen("127.0.0.1") as server:
        port = server.getsockname()[1]
        stranger = socket.create_connection(("127.0.0.1", port))
        stranger.sendall(b"x" * len(TOKEN))
        partner = sockets.call("127.0.0.1", port, TOKEN, 2.0)
        line = sockets.accept(server, TOKEN, 5.0)
        assert line is not None
        line.sendall(b"!")
        assert partner.recv(1) == b"!" and stranger.recv(1) == b""
        assert sockets.accept(server, TOKEN, 0.1) is None


def test_a_line_is_measured_and_settings_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = examine(RUNS_IT, monkeypatch, tmp_path)
    assert [finding.status for finding in report.findings] == ["ok"] * 6, report.findings
    names = ["program at localhost", "ports", "line", "launch", "settings", "a step"]
    assert [finding.name for finding in report.findings] == names
    assert report.speed and report.advice and report.speed.delay_s < 0.1
    numbers = json.loads(json.dumps(report.to_dict()))
    assert numbers["line"]["delay_s"] == report.speed.delay_s
    assert numbers["advice"]["settings"] == list(report.advice.settings)


PROGRAM = {"version": __version__, "has_horovod": True, "daemon": "orted"}
CLOSED = json.dumps(PROGRAM | {"address": "127.0.0.1", "caller": "127.0.0.1", "port": 1})
NONSENSE = json.dumps(PROGRAM | {"address": "nowhere at all", "caller": "", "port": 1})
TIMED_OUT = json.dumps({"called": False, "error": "Connection timed out"})
IS_CLOSED = f"read -r order; echo 'Welcome to hospital-b'; echo '{CLOSED}'; read -r order; echo '{TIMED_OUT}'"


@pytest.mark.parametrize(
    ("script", "name", "words"),
    [
        ("echo 'u@b: Permission denied (publickey).' >&2; exit 255", "ssh to", "Permission denied (publickey)"),
        ("echo 'sh: 1: python: not found' >&2; exit 127", "program at", "expected Python at"),
        ("echo 'No module named cxr_hvd' >&2; exit 1", "program at", "expected cxr_hvd in"),
        ("exit 0", "program at", "no word"),
        (f"echo '{NONSENSE}'", "program at", "no word"),
        (IS_CLOSED, "ports", "from localhost to here (Connection timed out)"),
    ],
)
def test_what_fails_is_named_with_what_mends_it(
    script: str, name: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(examination, "CONNECT_LIMIT_S", 0.3)
    monkeypatch.setattr(examination, "CALL_LIMIT_S", 0.3)
    report = examine(script, monkeypatch, tmp_path)
    failed = [finding for finding in report.findings if finding.status == "fail"]
    [finding] = failed
    assert finding.name.startswith(name) and words in finding.detail, finding
    assert finding.mend and "\n" not in finding.detail
    assert report.speed is None and report.advice is None


def test_one_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(examination, "START_LIMIT_S", 0.3)
    [finding] = examine("exec sleep 60", monkeypatch, tmp_path).findings
    assert finding.status == "fail" and "expected an answer" in finding.detail


def test_an_interface_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    [finding] = examine(RUNS_IT, monkeypatch, tmp_path, interface="wg77").findings
    assert finding.status == "fail" and "wg77" in finding.detail


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        (verdicts.judge_program("b", PROGRAM | {"version": "0.0.1"}, True), "the same at all sites"),
        (verdicts.judge_program("b", PROGRAM | {"has_horovod": False}, True), "make setup at b"),
        (verdicts.judge_program("b", PROGRAM | {"daemon": None}, True), "orted"),
        (verdicts.judge_cut("b", "Connection reset by peer"), "ping b"),
        (verdicts.judge_ports("b", "timed out", ""), "--interface wg0"),
        (verdicts.judge_ranks("b", "mpirun", "no answer within 90 s", None, 0.0), "--interface wg0"),
        (verdicts.judge_ranks("b", "mpirun", "", {"num_ranks": 1}, 1.0), "at both hosts"),
    ],
)
def test_every_failure_has_its_way_out(finding: Finding, words: str) -> None:
    assert finding.status == "fail" and words in str(finding.mend)


def test_what_is_in_order_is_said_in_units_of_networks() -> None:
    assert verdicts.judge_program("b", PROGRAM | {"daemon": None}, False).status == "ok"
    told = verdicts.judge_speed("b", LineSpeed(0.02, 12.5e6, 1.25e9)).detail
    assert told == "20 ms one way; 100 Mbit/s to b and 10 Gbit/s from it, at once"
    times = {"num_ranks": 2.0, "exchange_s": 1.2, "exchange_bytes": 6e6, "status_s": 0.08}
    assert "1.20 of what the line needs" in verdicts.judge_ranks("b", "mpirun", "", times, 1.0).detail


def test_ranks_are_started_as_training_will_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "hospital-a")
    monkeypatch.setattr(examination.questions, "ask_mpirun", lambda: {"path": "mpirun", "version": "Open MPI 4.1"})
    peer = read_peer("hospital-b:4", "/opt/python", "wg0")
    words = " ".join(launcher_words(peer, 100, "slow"))
    assert "--mca btl_tcp_flags 1" in words and "--mca btl_tcp_if_include wg0" in words
    assert words.endswith("-np 1 -host hospital-b /opt/python -m cxr_hvd.doctor.line.ranks 100")
    assert f"-np 1 -host hospital-a {sys.executable}" in words
    assert "btl_tcp_flags" not in " ".join(launcher_words(peer, 100, "fast"))
    monkeypatch.setattr(examination.questions, "ask_mpirun", lambda: {"error": "none"})
    monkeypatch.setattr(examination.questions, "horovodrun_command", lambda: ["horovodrun", "--gloo", "-np", "2"])
    assert launcher_words(peer, 100, "slow")[4:8] == [
        "--network-interfaces",
        "wg0",
        "-H",
        "hospital-a:1,hospital-b:1",
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["--peer", "-oProxyCommand=x"],
        ["--peer", "a b"],
        ["--peer", "b", "--interface", "wg0; true"],
        ["--peer", "b", "--peer-python=-x"],
        ["--peer", "b", "--compute-s", "nan"],
        ["--interface", "wg0"],
    ],
)
def test_wrong_usage_is_one_line(words: list[str]) -> None:
    done = run([str(BIN / "cxr-hvd"), "doctor", *words], 30)
    assert done.exit_code == 2 and len(done.output.splitlines()) == 1, done.output
    assert done.lines("cxr-hvd: error:")
