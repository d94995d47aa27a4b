"""How fast averaging is, and what it costs a training step, beside what a user would write instead: `make bench`.

Two ranks with one thread each take all ways in turn, round after round, in one job; what counts are ratios, given
as the median over rounds with the least and the greatest. Horovod's own ways run in a job of their own, with the
fusion that Horovod has by default and our line to it turns off, beside a way that both jobs have. Bytes are those
that the interfaces of two network namespaces count. Needs root for these; without, their rows are left out.
"""

import argparse
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.report import Figure, describe_machine, ratios, table, write_report
from bench.steps import PRIVATE
from cxr_hvd.config.sections import Model
from cxr_hvd.ledger.writer import Ledger, opening
from cxr_hvd.models.build import build_model
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import Scope, build_plan
from cxr_hvd.study.labels import LABELS
from lab.launch import Finished, launch
from lab.two_sites import TwoSites, two_sites, why_not

Timings = dict[str, dict[str, list[float]]]
LIMIT_S = 400
HOROVODS_FUSION = {"HOROVOD_FUSION_THRESHOLD": str(128 << 20)}
ALL_WIRES = ("float32", "bfloat16", "float16")
OURS = ("weights C float32", "weights D float32", "gradients C float32", "gradients D float32")


def main() -> None:
    """Measure, print the table, and write it where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds")
    parser.add_argument("--only", choices=tuple(SECTIONS), nargs="+", default=list(SECTIONS))
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to, between its marks")
    options = parser.parse_args()
    figures: list[Figure] = []
    for name in options.only:
        reason = why_not() if name == "bytes" else None
        if reason:
            print(f"{name}: left out, {reason}", file=sys.stderr)
            continue
        started = time.monotonic()
        figures += SECTIONS[name](options.rounds)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    machine = describe_machine("torch", "horovod", "mpi4py")
    command = " ".join(["python -m bench.averaging", *sys.argv[1:]])
    report = f"Command: `{command}`. Machine: {machine}.\n\n{table(figures)}"
    print(report)
    if options.out:
        write_report(options.out, "bench/averaging.py", report)


def measure_alone(num_rounds: int) -> list[Figure]:
    """Averaging with no training around it, to one flat Allreduce of C's bytes."""
    ours = [f"weights C {wire}" for wire in ALL_WIRES] + ["weights D float32"]
    timings = job("alone", ["flat", *ours, "gloo"], 2 * num_rounds)
    others = job(
        "alone",
        ["flat", "weights C float32", "horovod grouped", "horovod each"],
        2 * num_rounds,
        **HOROVODS_FUSION,
    )
    flat, full = timings["flat"]["step"], timings["weights C float32"]["step"]
    share = bytes_of("D") / bytes_of("C")
    note = medians({**timings, **{f"{name} (own job)": each for name, each in others.items()}}, 1e3, "ms")
    to_flat = [
        Figure("C averaged alone, to one flat Allreduce of its bytes", ratios(full, flat), 1.15, note, True),
        Figure(
            f"D to C; D has {share:.3f} of the bytes",
            ratios(timings["weights D float32"]["step"], full),
            share + 0.1,
            "",
            True,
        ),
    ]
    for wire in ALL_WIRES[1:]:
        short = timings[f"weights C {wire}"]["step"]
        to_flat.append(Figure(f"C as {wire}, to float32", ratios(short, full), None, ""))
    to_flat.append(
        Figure("torch.distributed over Gloo, flat, to C", ratios(timings["gloo"]["step"], full), None, "")
    )
    for name, said_as in (("horovod grouped", "Horovod, one group"), ("horovod each", "Horovod, each tensor")):
        # Two jobs: what stands between them is the flat Allreduce, which both take in turn with their own.
        to_own_flat = ratios(others[name]["step"], others["flat"]["step"])
        ours_to_flat = statistics.median(ratios(full, flat))
        to_flat.append(Figure(f"{said_as}, to C", [each / ours_to_flat for each in to_own_flat], None, ""))
    copied = ratios(others["weights C float32"]["step"], others["flat"]["step"])
    figure = "C with Horovod's default fusion, to C as it is"
    to_flat.append(Figure(figure, [each / statistics.median(ratios(full, flat)) for each in copied], None, ""))
    return to_flat


def measure_steps(num_rounds: int) -> list[Figure]:
    """A whole training step, to one without any exchange."""
    timings = job("steps", ["none", *OURS, "ddp C", "ddp D"], num_rounds)
    others = job("steps", ["none", "optimizer"], num_rounds, **HOROVODS_FUSION)
    note = medians(
        {**timings, "optimizer": others["optimizer"], "none beside it": others["none"]}, 1e3, "ms a step"
    )
    figures = []
    for name, each in timings.items():
        if name != "none":
            figures.append(
                Figure(f"step, {name}, to none", ratios(each["step"], timings["none"]["step"]), None, note)
            )
            note = ""
    to_none = ratios(others["optimizer"]["step"], others["none"]["step"])
    return [*figures, Figure("step, Horovod's DistributedOptimizer, to none", to_none, None, "")]


def measure_overlap(num_rounds: int) -> list[Figure]:
    """How much of the gradients exchange backward hides, on the machine itself."""
    ways = ["gradients C float32", "late gradients C float32", "gradients D float32", "late gradients D float32"]
    timings = job("steps", ways, num_rounds)
    return [figure for letter in "CD" for figure in hidden(timings, f"gradients {letter} float32")]


def hidden(timings: Timings, name: str) -> list[Figure]:
    """Compare an exchange begun during backward to the same one begun after it."""
    early, late = timings[name], timings[f"late {name}"]
    waits = ratios(early["exchange"], late["exchange"])
    steps = [
        (after - during) / exchange
        for after, during, exchange in zip(late["step"], early["step"], late["exchange"], strict=True)
    ]
    compute = statistics.median(late["step"]) - statistics.median(late["exchange"])
    hideable = min(1.0, compute / statistics.median(late["exchange"]))
    note = (
        f"all that a step computes could hide {hideable:.0%}; "
        f"exchange after backward {statistics.median(late['exchange']) * 1e3:,.0f} ms, "
        f"waited after an early start {statistics.median(early['exchange']) * 1e3:,.0f} ms; step "
        f"{statistics.median(late['step']) * 1e3:,.0f} and {statistics.median(early['step']) * 1e3:,.0f} ms"
    )
    return [
        Figure(f"share of {name} hidden behind backward", [1 - each for each in waits], 0.7, note),
        Figure(f"of {name}, by which the whole step is shorter", steps, None, ""),
    ]


def measure_bytes(num_rounds: int) -> list[Figure]:
    """What leaves a site in a step by its interface, to theory and to the ledger."""
    names = [*OURS, "weights C bfloat16", "weights D bfloat16", "gradients C bfloat16"]
    with two_sites() as pair:
        timings = job("bytes", names, num_rounds, pair)
    figures = []
    for name, each in timings.items():
        to_theory = [wire / each["theory"][0] for wire in each["wire"]]
        wire, ledger = statistics.median(each["wire"]), statistics.median(ratios(each["ledger"], each["wire"]))
        note = f"{wire / 1e6:.2f} MB a step each way; ledger to interface {ledger:.4f}"
        figures.append(Figure(f"bytes on the wire to theory, {name}", to_theory, 1.02, note, True))
    for name in ("weights C", "weights D", "gradients C"):
        short_to_full = ratios(timings[f"{name} bfloat16"]["wire"], timings[f"{name} float32"]["wire"])
        figures.append(Figure(f"bytes of bfloat16 to float32, {name}", short_to_full, 0.51, "", True))
    return figures


def measure_ledger(num_rounds: int) -> list[Figure]:
    """What it costs to write down what leaves, to a training step: D's collectives, noted as `comm` notes them."""
    timings = job("steps", ["none"], num_rounds)
    plan = build_plan(tensor_specs(build_model(Model(), len(LABELS), seed=1)), PRIVATE["D"])
    shared = [buffer for buffer in plan.buffers() if buffer.scope is Scope.SHARED]
    costs = []
    with tempfile.TemporaryDirectory(prefix="cxr-bench-") as folder:
        ledger = Ledger()
        record = Path(folder, "plan.json")
        record.write_text("{}")
        ledger.open(Path(folder, "ledger.jsonl"), opening("bench", 0, 2, 0, 1, record, step=0))
        for _ in timings["none"]["step"]:
            started = time.perf_counter()
            for step in range(1000):
                ledger.begin_step(step)
                ledger.note("status", "", (1, 5), "float64", 40, "all", 2, "allgather")
                for each in shared:
                    shape = (each.num_elements,)
                    ledger.note(each.purpose, each.name, shape, each.dtype, each.num_bytes, "all", 2, "allreduce")
            costs.append((time.perf_counter() - started) / 1000)
        ledger.close()
    note = f"{statistics.median(costs) * 1e6:.1f} us a step"
    return [
        Figure(
            "what the ledger costs, to a step without", ratios(costs, timings["none"]["step"]), 0.005, note, True
        )
    ]


def job(
    kind: str,
    ways: list[str],
    num_rounds: int,
    pair: TwoSites | None = None,
    num_ranks: int = 2,
    module: str = "bench.exchanges",
    **more: str,
) -> Timings:
    """Run one job, of two ranks on the machine itself or one at each site; return its timings."""
    with tempfile.TemporaryDirectory(prefix="cxr-bench-") as folder, socket.socket() as free:
        out = Path(folder, "timings.json")
        free.bind(("", 0))
        settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        settings |= {"OMPI_MCA_mpi_yield_when_idle": "1", **more}
        free.close()
        command = [sys.executable, "-m", module, kind, "--ways", ",".join(ways)]
        command += ["--rounds", str(num_rounds), "--out", str(out)]
        finished: Finished
        if pair:
            del settings["MASTER_ADDR"]
            finished = pair.mpirun(1, command, LIMIT_S, BENCH_DEVICE=pair.device, **settings)
        else:
            finished = launch(num_ranks, command, limit_s=LIMIT_S, **settings)
        if finished.exit_code:
            raise SystemExit(f"the job {kind} failed: {finished.output[-3000:]}")
        timings: Timings = json.loads(out.read_text())
        return timings


def bytes_of(letter: str) -> int:
    """Return the bytes that an experiment shares."""
    specs = tensor_specs(build_model(Model(), len(LABELS), seed=1))
    return build_plan(specs, PRIVATE[letter]).bytes_per_exchange()


def medians(timings: Timings, factor: float, unit: str) -> str:
    """Say the medians."""
    return ", ".join(
        f"{name} {statistics.median(each['step']) * factor:,.1f}" for name, each in timings.items()
    ) + (f" {unit}")


SECTIONS: dict[str, Callable[[int], list[Figure]]] = {
    "alone": measure_alone,
    "steps": measure_steps,
    "overlap": measure_overlap,
    "bytes": measure_bytes,
    "ledger": measure_ledger,
}


if __name__ == "__main__":
    main()
