"""The tables of docs/results.md, from what experiments left in runs/: `python -m bench.results`.

`jobs/results.sh` runs the experiments and then this.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.report import describe_machine, write_report
from cxr_hvd.experiment.compare import MEAN_OF_SITES, compare
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
        write_report(document, "results/real", told(compare([real])))
    shifts = {name: compare([shift / name]) for name in SHIFTS if (shift / name).is_dir()}
    if shifts:
        write_report(document, "results/shift", shift_tables(shifts))


def told(comparison: dict[str, Any]) -> str:
    """Return a comparison's tables with what made them."""
    first = comparison["experiments"][0]
    steps = f"{first['num_steps']:,} steps of {first['batch_size']} studies a rank at {first['image_size']} px"
    machine = describe_machine("torch", "horovod", "scikit-learn", "scipy")
    return f"{steps}. Tables made on: {machine}.\n\n{markdown(comparison)}".rstrip()


def shift_tables(shifts: dict[str, dict[str, Any]]) -> str:
    """Return two tables: what each set-up reaches under each shift, and paired differences."""
    lines = [f"| shift | test set | {' | '.join(f'macro AUROC, {name}' for name in SETUPS)} |"]
    lines.append("|---|---|" + "--:|" * len(SETUPS))
    for shift, comparison in shifts.items():
        for site in [each["name"] for each in comparison["sites"]]:
            values = [
                result["macro_auroc"]["value"]
                for name in SETUPS
                for result in comparison["results"]
                if (result["experiment"], result["site"]) == (name, site)
            ]
            lines.append(f"| {shift} | {site} | {' | '.join(f'{value:.3f}' for value in values)} |")
    lines += ["", f"| shift | test set | {' | '.join(f'{a} − {b}' for a, b in PAIRS)} |"]
    lines.append("|---|---|" + "---|" * len(PAIRS))
    for shift, comparison in shifts.items():
        for site in [*(each["name"] for each in comparison["sites"]), MEAN_OF_SITES]:
            found = [
                each["macro_auroc"]
                for a, b in PAIRS
                for each in comparison["differences"]
                if (each["a"], each["b"], each["site"], each["split"]) == (a, b, site, "test")
            ]
            lines.append(f"| {shift} | {site} | {' | '.join(_said(each) for each in found)} |")
    return "\n".join(lines)


def _said(found: dict[str, Any]) -> str:
    if found["low"] is None:
        return f"{found['value']} ({found['note']})"
    return f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}], p {found['p_value']:.2g}"


if __name__ == "__main__":
    typer.run(main)
