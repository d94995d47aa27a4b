"""What training costs between two hosts that have nothing but ssh and a line in common: real jobs, real launchers.

Two namespaces, two users, an sshd each (`lab.two_hosts`), a rank and a core each. Experiments C and D, averaged
in every step and in every tenth, started by mpirun and by horovodrun over Gloo, over a cable and over a slow link.
Jobs take turns, round after round; seconds are those in `metrics.jsonl`, without the first step, and bytes are
those that the interfaces count, of the whole job, its start included. Needs root.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.report import Figure, describe_machine, ratios, table, write_report
from lab.commands import output_of
from lab.launch import PROJECT
from lab.study_files import write_study_file
from lab.two_hosts import TwoHosts, horovodrun, mpirun, two_hosts, why_not
from lab.two_sites import SlowLink

SITES = "chexpert", "mimic"
LINKS: dict[str, SlowLink | None] = {"cable": None, "20 ms, 100 Mbit/s": SlowLink(delay_ms=20, rate_mbit=100)}
LAUNCHERS = "mpirun", "gloo"
STEPS = {1: {"cable": 13, "20 ms, 100 Mbit/s": 6}, 10: {"cable": 21, "20 ms, 100 Mbit/s": 21}}
QUICK = ("model.image_size=32", "training.batch_size=4", "training.precision=fp32", "checkpoints.every_steps=1000")
LIMIT_S = 240


@dataclass
class Way:
    """What was measured of one way to train: seconds a step, bytes sent by the interface, and by the ledger."""

    seconds: list[float] = field(default_factory=list)
    wire: list[float] = field(default_factory=list)
    ledger: list[float] = field(default_factory=list)


Key = tuple[str, int, str]


def main() -> None:
    """Measure, print the table, and write it where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to, between its marks")
    options = parser.parse_args()
    if reason := why_not(LINKS["20 ms, 100 Mbit/s"]):
        raise SystemExit(reason)
    figures: list[Figure] = []
    for name, link in LINKS.items():
        started = time.monotonic()
        with two_hosts(link) as both:
            prepare(both)
            figures += figures_of(name, measure(both, name, options.rounds))
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    machine = describe_machine("torch", "horovod")
    command = " ".join(["python -m bench.two_hosts", *sys.argv[1:]])
    report = f"Command: `{command}`. Machine: {machine}.\n\n{table(figures)}"
    print(report)
    if options.out:
        write_report(options.out, "bench/two_hosts.py", report)


def prepare(both: TwoHosts) -> None:
    """Give each host its study file and the shipped configs, which name it."""
    for host, site in zip(both.hosts, SITES, strict=True):
        write_study_file(host.home / f"{site}.h5", site=site)
        for letter in "CD":
            shutil.copy(PROJECT / "jobs" / "configs" / f"{letter}.yaml", host.home)
        output_of(["chown", "-R", f"{host.user}:", str(host.home)])


def measure(both: TwoHosts, link: str, num_rounds: int) -> dict[Key, Way]:
    """Run every way once a round, in an order that turns."""
    keys = [(letter, every, launcher) for letter in "CD" for every in STEPS for launcher in LAUNCHERS]
    ways = {key: Way() for key in keys}
    for number in range(num_rounds):
        turn = number * 3 % len(keys)
        for key in [*keys[turn:], *keys[:turn]]:
            run_once(both, link, key, ways[key])
    return ways


def run_once(both: TwoHosts, link: str, key: Key, way: Way) -> None:
    """Run one job, and add what it took."""
    letter, every, launcher = key
    num_steps = STEPS[every][link]
    words = ["cxr-hvd", "train", f"{letter}.yaml", "--overwrite"]
    for setting in (*QUICK, f"sharing.every={every}", f"training.max_steps={num_steps}"):
        words += ["--set", setting]
    if launcher == "mpirun":
        command = mpirun([words, words], both.device)
    else:
        command = horovodrun(words, f"--{launcher}", "--network-interfaces", both.device)
    before = both.traffic()[0]
    job = both.run(0, command, LIMIT_S)
    if job.exit_code:
        raise SystemExit(f"{key} failed: {job.output[-3000:]}")
    way.wire.append(both.traffic()[0].since(before).sent_bytes)
    folder = both.hosts[0].home / "runs" / letter / SITES[0]
    verified = both.run(0, ["cxr-hvd", "ledger", "verify", f"runs/{letter}", "--json"], 60)
    way.ledger.append(json.loads(verified.output)["sites"][0]["sent_bytes"])
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()][1:]
    steps = [row["data_s"] + row["compute_s"] + row["averaging_s"] for row in rows]
    way.seconds += [statistics.mean(steps[at : at + every]) for at in range(0, len(steps) - every + 1, every)]


def figures_of(link: str, ways: dict[Key, Way]) -> list[Figure]:
    """Say seconds and bytes of each way, and what differs by launcher and by how often sites average."""
    figures = []
    for (letter, every, launcher), way in ways.items():
        steps = STEPS[every][link]
        note = f"{statistics.median(way.wire) / steps / 1e6:.2f} MB a step each way; "
        note += f"wire to ledger {statistics.median(ratios(way.wire, way.ledger)):.3f}"
        figures.append(Figure(f"{link}: s a step, {letter}, every {every}, {launcher}", way.seconds, None, note))
    for letter in "CD":
        for every in STEPS:
            by_launcher = [ways[letter, every, launcher].seconds for launcher in reversed(LAUNCHERS)]
            figures.append(
                Figure(f"{link}: gloo to mpirun, {letter}, every {every}", spread(*by_launcher), None, "")
            )
        for launcher in LAUNCHERS:
            by_every = [ways[letter, every, launcher].seconds for every in (1, 10)]
            name = f"{link}: every 1 to every 10, {letter}, {launcher}"
            figures.append(Figure(name, spread(*by_every), None, ""))
    return figures


def spread(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """Divide what was measured in different jobs: the median, and what the quartiles make of it at most."""
    low, middle, high = statistics.quantiles(of, n=4)
    lower, median, upper = statistics.quantiles(to, n=4)
    return [low / upper, middle / median, high / lower]


if __name__ == "__main__":
    main()
