"""The verdicts on a line: turn what was measured, or what failed, into findings with what mends it. Pure."""

from collections.abc import Mapping

from cxr_hvd import __version__
from cxr_hvd.doctor.line.advice import LineAdvice
from cxr_hvd.doctor.line.sockets import LineSpeed
from cxr_hvd.doctor.verdicts import Finding
from cxr_hvd.launch.slow_line import SEND_ONLY
from cxr_hvd.terminal import shown

SSH_FAILED, NOT_FOUND = 255, (126, 127)
WORTH_COMPARING_S = 0.1
PORTS = "let every TCP port between the two hosts through, both ways, or name the tunnel with --interface wg0"


def judge_start(host: str, python: str, code: int | None, last_line: str) -> Finding:
    """Judge that the peer's program did not start or went silent, by ssh's exit code and last line."""
    words = shown(last_line) or "no word"
    if code == SSH_FAILED:
        mend = f"ssh {host} true  (by key, and with its host key in known_hosts)"
        return Finding(f"ssh to {host}", "fail", f"expected a login without a question, found: {words}", mend)
    if code is None:
        detail = f"ssh reached it, or still tries; expected an answer in time, found {words}"
        return Finding(f"program at {host}", "fail", detail, f"ssh {host} true")
    if code in NOT_FOUND or "No such file" in last_line:
        detail = f"expected Python at {python}, found: {words}"
        mend = "name its path there: --peer-python /opt/cxr_hvd/.venv/bin/python"
        return Finding(f"program at {host}", "fail", detail, mend)
    detail = f"expected cxr_hvd in {python}, found: {words} (exit status {code})"
    return Finding(f"program at {host}", "fail", detail, f"install it there, as here; version {__version__}")


def judge_program(host: str, here: Mapping[str, object], needs_daemon: bool) -> Finding:
    """Judge what the peer has: this program in the same version, Horovod, and the launcher's daemon."""
    name, version = f"program at {host}", shown(here.get("version"))
    daemon = here.get("daemon")
    detail = f"cxr_hvd {version}, reached by ssh"
    if version != __version__:
        mend = f"install version {__version__} there, or this one's here: the same at all sites"
        return Finding(name, "fail", f"{detail}; expected {__version__}, as here", mend)
    if not here.get("has_horovod"):
        return Finding(name, "fail", f"{detail}, without Horovod", f"make setup at {host}")
    if needs_daemon and not daemon:
        mend = f"have ssh's shell at {host} find orted: PATH in ~/.bashrc, or mpirun --prefix"
        return Finding(name, "fail", f"{detail}; expected Open MPI's orted on its PATH, found none", mend)
    return Finding(name, "ok", detail)


def judge_interface(host: str, interface: str, error: str) -> Finding:
    """Judge that a host has no such interface or address."""
    detail = f"expected an interface {interface or '(any)'} with an IPv4 address, found: {shown(error)}"
    return Finding(f"interface of {host}", "fail", detail, "ip -4 addr  (at both hosts)")


def judge_ports(host: str, there: str, back: str) -> Finding:
    """Judge whether ports that the system chooses can be reached: at the peer, and here."""
    closed = [f"from here to {host} ({shown(there)})"] * bool(there)
    closed += [f"from {host} to here ({shown(back)})"] * bool(back)
    if closed:
        detail = f"ssh gets through, a port that the system chose does not: {', nor '.join(closed)}"
        return Finding("ports", "fail", detail, PORTS)
    return Finding("ports", "ok", f"open from here to {host} and back")


def judge_cut(host: str, error: str) -> Finding:
    """Judge a line that broke while it was measured."""
    return Finding("line", "fail", f"cut while it was measured: {shown(error)}", f"ping {host}")


def judge_speed(host: str, speed: LineSpeed) -> Finding:
    """Show what was measured of a line."""
    to_rate, from_rate = (show_rate(rate) for rate in (speed.to_bytes_per_s, speed.from_bytes_per_s))
    detail = f"{speed.delay_s * 1e3:.3g} ms one way; {to_rate} to {host} and {from_rate} from it, at once"
    return Finding("line", "ok", detail)


def judge_ranks(
    host: str, launcher: str, failure: str, times: Mapping[str, float] | None, line_s: float
) -> Finding:
    """Judge the job of one rank at each end."""
    name = f"a rank here, one at {host}"
    if times is None:
        mend = "name the line's interface: --interface wg0; see docs/slow-line.md"
        return Finding(name, "fail", f"{launcher}: {shown(failure)}", mend)
    if times["num_ranks"] != 2:
        detail = f"{launcher}: expected 2 ranks in one job, found {times['num_ranks']:.0f}"
        return Finding(name, "fail", detail, "cxr-hvd doctor  (at both hosts)")
    megabytes = times["exchange_bytes"] / 1e6
    detail = f"{launcher}: {megabytes:.3g} MB in {times['exchange_s']:.2g} s"
    if line_s > WORTH_COMPARING_S:
        detail += f", {times['exchange_s'] / line_s:.2f} of what the line needs"
    return Finding(name, "ok", f"{detail}; status in {times['status_s']:.2g} s")


def show_advice(advice: LineAdvice) -> list[Finding]:
    """Say the settings and what they are expected to cost."""
    launch = {
        "slow": f"--set line=slow (jobs render --machine ssh has it), or export {'='.join(SEND_ONLY)}",
        "fast": "as on one machine: --set line=fast in jobs render --machine ssh",
    }[advice.line]
    sharing = " ".join(f"--set {setting}" for setting in advice.settings) or "the defaults: every step, float32"
    expected = f"{advice.step_s:.2g} s expected, {advice.compute_s:.2g} without any exchange"
    if advice.overlap:
        expected += f", {advice.plain_step_s:.2g} with all of it in every step (estimated)"
    findings = [Finding("launch", "ok", launch), Finding("settings", "ok", sharing)]
    if advice.keeps_up:
        return [*findings, Finding("a step", "ok", expected)]
    mend = "more private blocks (sharing.private), or a smaller network"
    return [*findings, Finding("a step", "warn", f"{expected}: the line carries too little", mend)]


def show_rate(bytes_per_s: float) -> str:
    """Return a rate as networks are sold: Mbit/s or Gbit/s."""
    megabits = bytes_per_s * 8 / 1e6
    return f"{megabits / 1e3:.3g} Gbit/s" if megabits >= 1e3 else f"{megabits:.3g} Mbit/s"
