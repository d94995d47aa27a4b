"""What a step would cost at many sites: measures collectives on few ranks, fits `partial.cost`, draws it.

`python -m bench.scale --out docs/performance.md --fit cxr_hvd/partial/cost_fit.json --plot docs/scale.svg`.
Every job takes its collectives in turn, round after round; a figure is the lower quartile over rounds, for
neighbours only ever add, and the least would be a call that met Horovod's cycle just in time. Some points are kept
back from the fit and judge it. Needs root for the links; without, stops.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FuncFormatter, LogLocator

from bench.averaging import job
from bench.collectives import PRIVATE, batches, plan_of, take_part
from bench.report import describe_machine, write_report
from cxr_hvd.files import write_text
from cxr_hvd.partial.cost import (
    ALGORITHMS,
    Batch,
    Costs,
    Layout,
    Link,
    Point,
    batch_of,
    batch_s,
    fit,
    predict,
    read_layout,
    read_link,
    relative_error,
    said_s,
)
from cxr_hvd.partial.plan import SharingPlan
from lab.launch import launch
from lab.two_sites import SlowLink, TwoSites, two_sites, why_not

LIMIT_S = 900
CORES = len(os.sched_getaffinity(0))
KEPT_BACK = ("8 MiB", "exchange C", "exchange D")
CABLE = Link(0.0, float("inf"))
DRAWN = ("slow", "medium")
MORE_LINKS = {"5 ms, 1 Gbit/s": read_link(5, 1000)}
EXTRAPOLATED = ("2x1", "4x4", "16x16", "64x16")
READING = """\
How to read it. Errors are the model's, relative to what was measured. Points called fitted made the constants;
those held out did not: one size, the real exchanges of C and D, two links; whole steps were not fitted either.
Crowded are four ranks on fewer cores that talk by TCP: each waits for the others' turns on a core, which the model
does not know and sites with a core for each rank do not have. **Whatever has more than 2 sites or 4 ranks is
extrapolated**: the first number is a step as Open MPI sums by default (halving), the second by a ring, as Gloo
does. Stretch is what a large sum takes to what the line needs for its bytes; the rows of 28 MiB say how far it
carries over from one link to others. One computing time stands for all ranks; in a job the slowest one's counts.

![Step time against sites, for two links](scale.svg)"""
# Okabe and Ito's colours, told apart by all eyes.
COLOURS = {("C", 1): "#D55E00", ("C", 10): "#E69F00", ("D", 1): "#0072B2", ("D", 10): "#56B4E9"}
MARKS = {"C": "o", "D": "s"}
DRAWN_LAYOUTS = (*(Layout(2**power, 1) for power in range(7)), Layout(64, 16))
TICKS = [2**power for power in range(8)]


@dataclass(frozen=True)
class Place:
    """Where a job runs.

    Attributes:
        said: in words.
        layout: its ranks; all of them share this machine's cores.
        slow: delay and rate between its two sites; None on one machine, over a cable and where `gigabit`.
        gigabit: whether the cable is held to 1 Gbit/s.
        role: whether its points are fitted, kept back, or told apart for having more ranks than cores.
    """

    said: str
    layout: Layout
    slow: SlowLink | None = None
    gigabit: bool = False
    role: str = "fitted"

    @property
    def link(self) -> Link:
        if self.slow:
            return read_link(self.slow.delay_ms, self.slow.rate_mbit)
        return read_link(0, 1000) if self.gigabit else CABLE

    def role_of(self, name: str) -> str:
        """Return the role of one of its points."""
        return "held out" if self.role == "fitted" and name in KEPT_BACK else self.role


def crowded(num_sites: int, ranks_per_site: int) -> Layout:
    """Return a layout all of whose ranks share this machine."""
    return Layout(num_sites, ranks_per_site, max(1.0, num_sites * ranks_per_site / CORES))


PLACES = {
    "here 2": Place("one machine", crowded(1, 2)),
    "here 4": Place("one machine", crowded(1, 4)),
    "cable": Place("cable", crowded(2, 1)),
    "slow": Place("20 ms, 100 Mbit/s", crowded(2, 1), SlowLink(20, 100)),
    "medium": Place("5 ms, 200 Mbit/s", crowded(2, 1), SlowLink(5, 200), role="held out"),
    "gigabit": Place("0 ms, 1 Gbit/s", crowded(2, 1), gigabit=True, role="held out"),
    "cable 4": Place("cable", crowded(2, 2), role="crowded"),
}


def main() -> None:
    """Measure, fit, print; write table, constants and plot where told."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="rounds of a job; a third of it over a slow link")
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to, between its marks")
    parser.add_argument("--fit", type=Path, help="a JSON file for the constants and the points")
    parser.add_argument("--plot", type=Path, help="an SVG file for the plot")
    parser.add_argument("--again", type=Path, help="fit and draw the points of this JSON file; measure nothing")
    parser.add_argument("--rank-of", help="what each rank of a job is started with, not for people")
    options = parser.parse_args()
    if options.rank_of:
        take_part(read_layout(options.rank_of), options.rounds, options.fit)
        return
    told = json.loads(options.again.read_text()) if options.again else measure(options.rounds)
    told |= judged(told)
    report = write_up(told)
    print(report)
    if options.out:
        write_report(options.out, "bench/scale.py", report)
    if options.fit:
        write_text(options.fit, json.dumps(told, indent=1) + "\n", 0o644)
    if options.plot:
        write_scale_plot(options.plot, told)


def measure(num_rounds: int) -> dict[str, Any]:
    """Run all jobs; return points and whole steps as plain values."""
    links = [place.slow for place in PLACES.values() if place.slow]
    if reason := next(filter(None, map(why_not, [None, *links])), None):
        raise SystemExit(f"bench.scale: {reason}")
    points: list[dict[str, Any]] = []
    for key, place in PLACES.items():
        started = time.monotonic()
        for name, values in collectives_at(place, num_rounds).items():
            quartile = statistics.quantiles(values, n=4, method="inclusive")[0]
            points.append(
                {"place": key, "what": name, "role": place.role_of(name), "seconds": round(quartile, 7)}
                | {"median": round(statistics.median(values), 7), "rounds": len(values)}
            )
        print(f"{key}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    steps = [step for key in ("here 2", *DRAWN) for step in steps_at(key, num_rounds)]
    command = " ".join(["python -m bench.scale", *sys.argv[1:]])
    return {
        "command": command,
        "machine": describe_machine("torch", "horovod"),
        "compute_s": steps[0]["none"],
        "points": points,
        "steps": steps,
    }


def collectives_at(place: Place, num_rounds: int) -> dict[str, list[float]]:
    """Run one job of collectives; return the seconds of each, round by round."""
    with tempfile.TemporaryDirectory(prefix="cxr-bench-") as folder:
        out = Path(folder, "told.json")
        num_rounds = max(3, num_rounds // 3) if place.slow else num_rounds
        command = [sys.executable, "-m", "bench.scale", "--rank-of", str(place.layout)]
        command += ["--rounds", str(num_rounds), "--fit", str(out)]
        if place.layout.num_sites == 1:
            finished = launch(place.layout.num_ranks, command, limit_s=LIMIT_S)
        else:
            with joined(place) as pair:
                finished = pair.mpirun(place.layout.ranks_per_site, command, LIMIT_S)
        if finished.exit_code:
            raise SystemExit(f"the job at {place.said} failed: {finished.output[-3000:]}")
        told: dict[str, list[float]] = json.loads(out.read_text())
        return told


@contextmanager
def joined(place: Place) -> Iterator[TwoSites]:
    """Set up two sites as the place has them."""
    with two_sites(place.slow) as pair:
        for site in pair.sites if place.gigabit else ():
            shape = ["tc", "qdisc", "add", "dev", pair.device, "root", "tbf"]
            shape += ["rate", "1gbit", "burst", "512kb", "latency", "50ms"]
            subprocess.run(["ip", "netns", "exec", site.name, *shape], check=True)
        yield pair


def steps_at(key: str, num_rounds: int) -> list[dict[str, Any]]:
    """Take whole training steps of two ranks, with and without exchange; return lower quartiles."""
    place = PLACES[key]
    ways = {letter: f"weights {letter} float32" for letter in PRIVATE}
    num_rounds = max(3, num_rounds // 3) if place.slow else num_rounds
    if place.layout.num_sites == 1:
        told = job("steps", ["none", *ways.values()], num_rounds)
    else:
        with joined(place) as pair:
            told = job("steps", ["none", *ways.values()], num_rounds, pair)
    quartiles = {way: statistics.quantiles(each["step"], n=4, method="inclusive")[0] for way, each in told.items()}
    return [
        {"place": key, "what": letter, "none": round(quartiles["none"], 5), "seconds": round(quartiles[way], 5)}
        for letter, way in ways.items()
    ]


def point_of(told: Mapping[str, Any]) -> Point:
    """Return a measured point as the model takes it."""
    place = PLACES[told["place"]]
    return Point(batches(place.layout)[told["what"]], place.layout, place.link, told["seconds"])


def judged(told: Mapping[str, Any]) -> dict[str, Any]:
    """Fit the constants; return them with the relative errors of every group of points and of whole steps."""
    points = {role: [] for role in ("fitted", "held out", "crowded")}  # type: dict[str, list[Point]]
    for each in told["points"]:
        points[each["role"]].append(point_of(each))
    costs = fit(points["fitted"])
    errors = {role: [relative_error(costs, point) for point in group] for role, group in points.items()}
    errors["whole steps"] = [step_s(costs, each) / each["seconds"] - 1 for each in told["steps"]]
    return {"costs": asdict(costs), "errors": {group: summed_up(values) for group, values in errors.items()}}


def step_s(costs: Costs, step: Mapping[str, Any]) -> float:
    """Predict a whole step of the bench, which sends no pulse, from one without exchange."""
    place = PLACES[step["place"]]
    # Here two ranks stand for two sites: all that is shared goes between them.
    shared = Batch(batch_of(plan_of(step["what"])).shared)
    return float(step["none"]) + batch_s(costs, shared, place.layout, place.link)


def summed_up(errors: Sequence[float]) -> dict[str, float]:
    """Return number, median and worst of absolute relative errors."""
    sizes = [abs(error) for error in errors]
    return {
        "points": len(sizes),
        "median": round(statistics.median(sizes), 4),
        "worst": round(max(sizes), 4),
    }


def write_up(told: Mapping[str, Any]) -> str:
    """Return the tables in Markdown: constants, errors by group, every point, the extrapolation."""
    costs = Costs(**told["costs"])
    lines = [f"Command: `{told['command']}`. Machine: {told['machine']}.", "", READING, ""]
    lines += ["| constant | value | |", "|---|---|---|", *constants_in_words(costs), ""]
    lines += ["| points | number | median error | worst error |", "|---|---|---|---|"]
    for group, each in told["errors"].items():
        lines.append(f"| {group} | {each['points']} | {each['median']:.0%} | {each['worst']:.0%} |")
    lines += ["", "| what | where | ranks | measured, ms | model, ms | error | |", "|---|---|---|---|---|---|---|"]
    for each in told["points"]:
        place, point = PLACES[each["place"]], point_of(each)
        model_s = batch_s(costs, point.batch, point.layout, point.link)
        lines.append(point_row(each["what"], place, each["seconds"], model_s, each["role"]))
    for each in told["steps"]:
        place = PLACES[each["place"]]
        what = f"whole step, {each['what']} ({each['none'] * 1e3:,.0f} without exchange)"
        lines.append(point_row(what, place, each["seconds"], step_s(costs, each), "held out"))
    return "\n".join([*lines, "", *extrapolation(costs, told["compute_s"])])


def point_row(what: str, place: Place, seconds: float, model_s: float, role: str) -> str:
    """Return a measured point as a row."""
    error = model_s / seconds - 1
    return (
        f"| {what} | {place.said} | {place.layout} | {seconds * 1e3:,.4g} | {model_s * 1e3:,.4g} | {error:+.0%} "
        f"| {role} |"
    )


def constants_in_words(costs: Costs) -> list[str]:
    """Return the rows of the constants."""
    return [
        f"| exchange | {costs.exchange_s * 1e3:.3g} ms | one batch: Horovod's cycle and negotiation |",
        f"| round | {costs.round_s * 1e6:.3g} us | one round of messages, beside the line's delay |",
        f"| copy | {costs.copy_s_per_byte * 1e9:.3g} ns | a byte sent and summed within a site |",
        f"| network stack | {costs.tcp_s_per_byte * 1e9:.3g} ns | a byte out of a site, beside the line's rate |",
        f"| delays, exchange | {costs.exchange_delays:.3g} | one-way delays to agree, a doubling of sites |",
        f"| delays, round | {costs.round_delays:.3g} | one-way delays of a round between sites; at least 1 |",
        f"| stretch | {costs.stretch:.3g} | time that the line is busy, to bytes over rate; at least 1 |",
    ]


def extrapolation(costs: Costs, compute_s: float) -> list[str]:
    """Return the table of predicted steps: all of it beyond 2x1 is extrapolated."""
    sizes = [read_layout(text) for text in EXTRAPOLATED]
    lines = ["| step, s: as Open MPI sums, and by ring | " + " | ".join(EXTRAPOLATED) + " |"]
    lines.append("|---" * (len(sizes) + 1) + "|")
    for said, link in ({PLACES[key].said: PLACES[key].link for key in DRAWN} | MORE_LINKS).items():
        for letter, every in COLOURS:
            plan = plan_of(letter, every)
            cells = []
            for size in sizes:
                steps = [predict(costs, plan, size, link, compute_s, name).step_s for name in ALGORITHMS]
                cells.append(" to ".join(dict.fromkeys(said_s(step) for step in steps)))
            lines.append(f"| {said}: {letter}, every {every} | " + " | ".join(cells) + " |")
    return lines


def write_scale_plot(path: Path, told: Mapping[str, Any]) -> None:
    """Draw step time against sites for two links: solid where measured, dashed beyond, shaded up to a ring's."""
    costs, compute_s = Costs(**told["costs"]), told["compute_s"]
    matplotlib.rcParams |= {"svg.hashsalt": "scale", "font.size": 9}
    drawing = Drawing(figsize=(10, 5), layout="constrained")
    panels = drawing.subplots(1, len(DRAWN), sharey=True)
    for panel, key in zip(panels, DRAWN, strict=True):
        for (letter, every), colour in COLOURS.items():
            plan = plan_of(letter, every)
            draw_line(panel, costs, plan, PLACES[key].link, compute_s, colour, f"{letter}, every {every}")
        for step in told["steps"]:
            if step["place"] == key:
                # Lines stand on one computing time, and this job may have had another.
                at = step["seconds"] - step["none"] + compute_s
                label = f"{step['what']}, every 1, measured"
                panel.plot(
                    2, at, MARKS[step["what"]], color="black", ms=6, mfc="none", ls="", label=label, zorder=5
                )
        panel.axhline(compute_s, color="grey", lw=0.8, ls=":", label="no exchange")
        panel.set(xscale="log", yscale="log", title=f"link {PLACES[key].said}", xlabel="sites x ranks at each")
        panel.set_xticks(TICKS, [str(layout) for layout in DRAWN_LAYOUTS])
        panel.yaxis.set_major_locator(LogLocator(10, (1, 3)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("a step, seconds")
    panels[0].legend(loc="upper left", frameon=False)
    drawing.suptitle(
        "Solid: up to the size that was measured. Dashed: extrapolated, summed as Open MPI does by default. "
        "Shaded, whiskers: up to what a ring takes.",
        fontsize=9,
    )
    drawing.savefig(path, format="svg", metadata={"Date": None})


def draw_line(
    panel: Axes, costs: Costs, plan: SharingPlan, link: Link, compute_s: float, colour: str, label: str
) -> None:
    """Draw one plan over sites of one rank each, and the largest size beside them."""
    halving, ring = (
        np.array([predict(costs, plan, each, link, compute_s, name).step_s for each in DRAWN_LAYOUTS])
        for name in ALGORITHMS
    )
    panel.plot(TICKS[:2], halving[:2], color=colour, lw=2, label=label)
    panel.plot(TICKS[1:-1], halving[1:-1], color=colour, lw=1.5, ls="--")
    panel.fill_between(TICKS[:-1], halving[:-1], ring[:-1], color=colour, alpha=0.12, lw=0)
    panel.errorbar(
        TICKS[-1] * (1 + 0.06 * list(COLOURS.values()).index(colour)),
        halving[-1],
        yerr=[[0], [ring[-1] - halving[-1]]],
        fmt="D",
        color=colour,
        ms=4,
        lw=0.8,
        capsize=2,
    )


if __name__ == "__main__":
    main()
