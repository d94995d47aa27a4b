"""The tables of docs/results.md, from what experiments left in runs/: `python -m bench.results`.

`jobs/results.sh` runs the experiments and then this.
"""

from pathlib import Path
from typing import Annotated

import typer

from bench.report import describe_machine, write_report
from cxr_hvd.experiment.compare import compare
from cxr_hvd.experiment.comparison import Comparison, PairedEstimate
from cxr_hvd.experiment.differences import MEAN_OF_SITES
from cxr_hvd.report.text_tables import markdown

SHIFTS = ("none", "label", "acquisition", "concept")
SETUPS = ("A", "C", "D")
PAIRS = (("C", "A"), ("D", "A"), ("D", "C"))


def main(
    document: Annotated[Path, typer.Option(help="Where the tables go, between their marks.")] = Path(
        "docs/results.md"
    ),
    real: Annotated[Path, typer.Option(help="The experiment on real X-rays.")] = Path("runs/real"),
    shift: Annotated[Path, typer.Option(help="Experiments on phantoms, one folder a shift.")] = Path("runs/shift"),
) -> None:
    """Write the tables of experiments into a document."""
    if real.is_dir():
        write_report(document, "results/real", describe(compare([real])))
    shifts = {name: compare([shift / name]) for name in SHIFTS if (shift / name).is_dir()}
    if shifts:
        write_report(document, "results/shift", shift_tables(shifts))


def describe(comparison: Comparison) -> str:
    """Return a comparison's tables with what made them."""
    first = comparison.experiments[0]
    steps = f"{first.num_steps:,} steps of {first.batch_size} studies a rank at {first.image_size} px"
    machine = describe_machine("torch", "horovod", "scikit-learn", "scipy")
    return f"{steps}. Tables made on: {machine}.\n\n{markdown(comparison)}".rstrip()


def shift_tables(shifts: dict[str, Comparison]) -> str:
    """Return two tables: what each set-up reaches under each shift, and paired differences."""
    lines = [f"| shift | test set | {' | '.join(f'macro AUROC, {name}' for name in SETUPS)} |"]
    lines.append("|---|---|" + "--:|" * len(SETUPS))
    for shift, comparison in shifts.items():
        aurocs = {(result.experiment, result.site): result.macro_auroc for result in comparison.results}
        for site in comparison.sites:
            values = [aurocs[name, site.name].value for name in SETUPS if (name, site.name) in aurocs]
            lines.append(f"| {shift} | {site.name} | {' | '.join(f'{value:.3f}' for value in values)} |")
    lines += ["", f"| shift | test set | {' | '.join(f'{a} − {b}' for a, b in PAIRS)} |"]
    lines.append("|---|---|" + "---|" * len(PAIRS))
    for shift, comparison in shifts.items():
        pairs = {(pair.a, pair.b, pair.site): pair for pair in comparison.differences if pair.split == "test"}
        for place in [*(site.name for site in comparison.sites), MEAN_OF_SITES]:
            cells = [_as_text(pairs[a, b, place].macro_auroc) for a, b in PAIRS if (a, b, place) in pairs]
            lines.append(f"| {shift} | {place} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _as_text(estimate: PairedEstimate) -> str:
    if estimate.low is None:
        return f"{estimate.value} ({estimate.note})"
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}], p {estimate.p_value:.2g}"


if __name__ == "__main__":
    typer.run(main)
