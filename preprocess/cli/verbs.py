"""The verbs of `cxr-preprocess`: each parses, calls one function, and prints.

Heavy imports stand inside the verbs, so that `--help` is quick. The verbs that read a source are made from a
table (sources.py), for they share most of their options.
"""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cxr_hvd.errors import UsageError, reported, say_exit_codes
from cxr_hvd.files import check_output, keep_private
from cxr_hvd.terminal import say
from preprocess.cli import sources
from preprocess.cli.conversions import PROGRAM

DUPLICATES_FOUND = 3  # of `compare`, so that a script tells it from a file that was refused

app = typer.Typer(
    name=PROGRAM,
    help="Turn hospital files into one study file that cxr-hvd trains on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
sources.add_verbs(app)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Degree = partial(typer.Option, metavar="DEGREE")


@app.command(epilog="Example: cxr-preprocess phantom b --layout chexpert --studies 600 --seed 2 --label-shift 0.5")
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    layout: Annotated[str, typer.Option("--layout", help="chexpert or mimic-cxr.")] = "chexpert",
    studies: Annotated[int, typer.Option("--studies", min=1, help="Number of studies.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of all that is drawn.")] = 0,
    label_shift: Annotated[float, Degree("--label-shift", help="0 to 1: how common each finding is.")] = 0.0,
    acquisition_shift: Annotated[float, Degree("--acquisition-shift", help="0 to 1: how films look.")] = 0.0,
    concept_shift: Annotated[float, Degree("--concept-shift", help="0 to 1: what readers call a finding.")] = 0.0,
) -> None:
    """Draw synthetic radiographs in a published layout, to try everything without a hospital's data.

    Hospitals of one layout and two seeds differ in their patients alone. Each shift adds a difference of one kind.
    """
    from preprocess.parallel.ranks import is_under_launcher
    from preprocess.phantom.hospital import Shift
    from preprocess.phantom.phantom import write_phantom

    if is_under_launcher():
        raise UsageError("phantom uses all cores by itself: run it without mpirun")
    shift = Shift(label=label_shift, acquisition=acquisition_shift, concept=concept_shift)
    num_images = write_phantom(out, layout, studies, seed, shift)
    counts = f"{studies:,} synthetic studies, {num_images:,} images"
    say(f"{out}: {counts}, in the layout of {layout}{shift.described()}")


@app.command(epilog="Example: cxr-preprocess inspect chexpert.h5 mimic.h5 --html sites.html")
def inspect(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Study files.")],
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write a page with images: one file, nothing else needed.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which studies the page shows.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier page.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what study files hold; side by side, how far apart the sites are."""
    from preprocess.inspect.inspection import inspect_files
    from preprocess.inspect.tables import print_distances, print_summary

    if html is not None:
        check_output(html, overwrite, "--html")
    inspection = inspect_files(files, seed)
    if html is not None:
        from preprocess.inspect.page import write_page

        write_page(html, inspection, seed)
    if as_json:
        print(json.dumps(inspection.as_json(), indent=2))
        return
    for file in inspection.files:
        print_summary(file.summary, file.shades)
    print_distances(inspection.distances)
    if html is not None:
        say(f"{html}: open it in a browser; it shows images of patients, so keep it as you keep those")


@app.command(epilog="Example: cxr-preprocess verify chexpert.h5")
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A study file.")], as_json: AsJson = False
) -> None:
    """Recompute the digests of a study file's tables and of every image, on all cores."""
    from preprocess.inspect.verify import verify_digests
    from preprocess.parallel.progress import build_progress

    progress = build_progress(is_leader=True)
    try:
        num_studies, num_images = verify_digests(file, progress)
    finally:
        progress.stop()
    if as_json:
        print(json.dumps({"file": str(file), "studies": num_studies, "images": num_images, "whole": True}))
    else:
        say(f"{file}: whole: {num_studies:,} studies, {num_images:,} images, all as they were written")


@app.command(epilog="Example: cxr-preprocess compare chexpert.h5 mimic.h5")
def compare(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Study files of one pixel pipeline.")],
    as_json: AsJson = False,
) -> None:
    """Find images that occur twice, within and across study files: one patient at two sites.

    Exit code 3: images were found that occur twice; 0: none were.
    """
    from preprocess.inspect.duplicates import find_duplicates, print_duplicates

    duplicates = find_duplicates(files)
    if as_json:
        print(json.dumps(duplicates.as_json(), indent=2))
    else:
        print_duplicates(duplicates)
    if duplicates.places:
        raise typer.Exit(DUPLICATES_FOUND)


say_exit_codes(app.registered_commands)


def main() -> None:
    """Run `cxr-preprocess`; exit codes are those of `EXIT_CODES`, and `DUPLICATES_FOUND`."""
    keep_private()
    with reported(PROGRAM):
        app()
