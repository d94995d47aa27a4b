"""`cxr-preprocess`: the command line. It parses, calls one function, and prints.

Heavy imports stand inside the verbs, so that `--help` is quick.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxr_hvd.errors import UsageError, reported

if TYPE_CHECKING:
    from cxr_hvd.study.study_file import Split

PROGRAM = "cxr-preprocess"

app = typer.Typer(
    name=PROGRAM,
    help="Turn hospital files into one study file that cxr-hvd trains on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Root = Annotated[Path, typer.Argument(metavar="ROOT", help="The folder that holds the data, as published.")]
Out = Annotated[Path, typer.Option("--out", help="The study file to write.")]
Site = Annotated[str | None, typer.Option("--site", help="The site's name, as in the training config.")]
Train = Annotated[int | None, typer.Option("--train", help="Training studies to draw.")]
Validate = Annotated[int | None, typer.Option("--validate", help="Validation studies to draw.")]
Test = Annotated[int | None, typer.Option("--test", help="Test studies to draw.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the draw and of the order.")]
Key = Annotated[
    Path | None, typer.Option("--key", help="The site's secret key for ids; made where it is missing.")
]
KeepIds = Annotated[bool, typer.Option("--keep-ids", help="Store ids as they are. They may identify patients.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file at --out.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command(
    epilog="Example: cxr-preprocess chexpert /data --out chexpert.h5 --train 4000 --validate 500 --test 500"
)
def chexpert(
    root: Root,
    out: Out,
    site: Site = None,
    train: Train = None,
    validate: Validate = None,
    test: Test = None,
    seed: Seed = 0,
    key: Key = None,
    keep_ids: KeepIds = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Read CheXpert: ROOT holds CheXpert-v1.0/ or CheXpert-v1.0-small/, or is it."""
    _preprocess(
        "chexpert", root, out, site or "chexpert", (train, validate, test), seed, key, keep_ids, overwrite, as_json
    )


@app.command(
    "mimic-cxr",
    epilog="Example: mpirun -np 8 cxr-preprocess mimic-cxr /data/mimic-cxr-jpg --out mimic.h5 --site mimic",
)
def mimic_cxr(
    root: Root,
    out: Out,
    site: Site = None,
    train: Train = None,
    validate: Validate = None,
    test: Test = None,
    seed: Seed = 0,
    key: Key = None,
    keep_ids: KeepIds = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Read MIMIC-CXR-JPG: ROOT holds files/ and the tables mimic-cxr-2.x.0-*.csv, plain or .gz."""
    _preprocess(
        "mimic-cxr",
        root,
        out,
        site or "mimic-cxr",
        (train, validate, test),
        seed,
        key,
        keep_ids,
        overwrite,
        as_json,
    )


@app.command(epilog="Example: cxr-preprocess phantom /tmp/phantom --layout chexpert --studies 600 --seed 1")
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    layout: Annotated[str, typer.Option("--layout", help="chexpert or mimic-cxr.")] = "chexpert",
    studies: Annotated[int, typer.Option("--studies", min=1, help="Number of studies.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of all that is drawn.")] = 0,
) -> None:
    """Draw synthetic radiographs in a published layout, to try everything without a hospital's data."""
    from preprocess import run
    from preprocess.sources import phantom as drawing

    if run.is_under_launcher():
        raise UsageError("phantom uses all cores by itself: run it without mpirun")
    num_images = drawing.write_phantom(out, layout, studies, seed)
    print(f"{out}: {studies:,} synthetic studies, {num_images:,} images, in the layout of {layout}")


@app.command(epilog="Example: cxr-preprocess inspect chexpert.h5 mimic.h5")
def inspect(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Study files.")], as_json: AsJson = False
) -> None:
    """Show what study files hold: splits, images per study, views, labels. No pixel is read."""
    from preprocess import inspection

    described = [inspection.describe(path) for path in files]
    if as_json:
        print(json.dumps(described, indent=2))
        return
    for one in described:
        inspection.print_tables(one)


@app.command(epilog="Example: cxr-preprocess verify chexpert.h5")
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A study file.")], as_json: AsJson = False
) -> None:
    """Recompute the digests of a study file's tables and of every image."""
    from preprocess import inspection
    from preprocess.progress import build_progress

    progress = build_progress(is_leader=True)
    progress.start("checking images", inspection.describe(file)["images"])
    try:
        num_studies, num_images = inspection.verify(file, progress.advance)
    finally:
        progress.stop()
    if as_json:
        print(json.dumps({"file": str(file), "studies": num_studies, "images": num_images, "whole": True}))
    else:
        print(f"{file}: whole: {num_studies:,} studies, {num_images:,} images, all as they were written")


def _preprocess(
    source: str,
    root: Path,
    out: Path,
    site: str,
    counts: tuple[int | None, int | None, int | None],
    seed: int,
    key: Path | None,
    keep_ids: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Run one job on all ranks; the leader prints the result."""
    from preprocess import identifiers, inspection, run
    from preprocess.job import Job, preprocess
    from preprocess.progress import build_progress

    with run.opened_ranks(PROGRAM) as ranks:
        is_leader = ranks.rank == 0
        key_path = None if keep_ids else key or identifiers.default_key_path(site)
        job = Job(source, root, out, site, seed, _counts(counts), key_path, overwrite)
        outcome = preprocess(job, ranks, build_progress(is_leader))
        # Leader only, and every rank waits: what is printed last is the result.
        described = run.together(ranks, lambda: inspection.describe(out) if is_leader else {})
    if is_leader:
        _print_outcome(outcome, described, as_json)


def _counts(counts: tuple[int | None, int | None, int | None]) -> dict["Split", int] | None:
    from cxr_hvd.study.study_file import Split

    wanted = {split: count for split, count in zip(Split, counts, strict=True) if count is not None}
    return wanted or None


def _print_outcome(outcome: Any, described: dict[str, Any], as_json: bool) -> None:
    from preprocess import inspection

    rate = outcome.num_images / outcome.load_s
    if as_json:
        print(json.dumps({**described, "images_per_s": round(rate, 1), **vars(outcome)}, indent=2))
        return
    inspection.print_tables(described)
    if outcome.num_unlabelled:
        print(f"left out: {outcome.num_unlabelled:,} studies without a label row")
    print(
        f"splits: {outcome.rule}. {outcome.num_images:,} images read at {rate:,.0f} images/s; "
        f"{outcome.total_s:.1f} s in all"
    )


def main() -> None:
    """Run `cxr-preprocess`; exit code 0 done, 1 failed, 2 bad usage."""
    with reported(PROGRAM):
        app()


if __name__ == "__main__":
    main()
