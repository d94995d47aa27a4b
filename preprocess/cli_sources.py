"""The verbs of `cxr-preprocess` that read a source: one table, one function.

A verb is a source's name, its help and the options that mean something to it; the shared ones are added. Typer
reads options from a function's signature, so `add_verbs` gives each verb a signature of its own.
"""

import inspect
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cxr_hvd.errors import UsageError
from cxr_hvd.terminal import say

if TYPE_CHECKING:
    from preprocess.inspect.summary import FileSummary
    from preprocess.job import Outcome
    from preprocess.plan import Job

PROGRAM = "cxr-preprocess"


@dataclass(frozen=True)
class Verb:
    """A source as a verb: name, what it reads, an example, and the options of its own."""

    name: str
    summary: str
    example: str
    root: str = "The folder that holds the data, as published."
    options: tuple[str, ...] = ()


VERBS = (
    Verb(
        "chexpert",
        "Read CheXpert: ROOT is the folder of train.csv (CheXpert-v1.0-small/, Kaggle's archive/), or holds it.",
        "cxr-preprocess chexpert /data --out chexpert.h5 --site chexpert --train 4000 --validate 500 --test 500",
    ),
    Verb(
        "mimic-cxr",
        "Read MIMIC-CXR-JPG: ROOT holds files/ and the tables mimic-cxr-2.x.0-*.csv, plain or .gz.",
        "mpirun -np 8 cxr-preprocess mimic-cxr /data/mimic-cxr-jpg --out mimic.h5 --site mimic",
        options=("labels", "max_unlabelled"),
    ),
    Verb(
        "mimic-cxr-dicom",
        "Read MIMIC-CXR as DICOM: ROOT holds files/ with .dcm and the tables of MIMIC-CXR-JPG.",
        "mpirun -np 8 cxr-preprocess mimic-cxr-dicom /data/mimic-cxr --out mimic.h5 --site mimic "
        "--pixels mimic-jpg-compat",
        options=("labels", "pixels", "max_unlabelled"),
    ),
    Verb(
        "manifest",
        "Read any table of images: CSV or TSV, plain or .gz, with a YAML that says what its columns mean.",
        "cxr-preprocess manifest /data/Data_Entry_2017.csv --columns nih.yaml --out nih.h5 --site nih",
        root="The table; images are looked for beside it.",
        options=("columns", "draft", "out", "site", "pixels", "max_unlabelled"),
    ),
)

_PIXELS = Literal["dicom-voi", "mimic-jpg-compat"]
_OWN: dict[str, tuple[Any, Any]] = {
    "labels": (
        Annotated[Literal["chexpert", "negbio"], typer.Option("--labels", help="Which labeler's table.")],
        "chexpert",
    ),
    "columns": (
        Annotated[
            str | None,
            typer.Option("--columns", help="The YAML, or the name of one that ships with this program."),
        ],
        None,
    ),
    "draft": (
        Annotated[
            Path | None, typer.Option("--draft", help="Only write a YAML to start from, made of TABLE's header.")
        ],
        None,
    ),
    # With --draft, none of the three is asked for.
    "out": (Annotated[Path | None, typer.Option("--out", help="The study file to write; required.")], None),
    "site": (
        Annotated[
            str | None, typer.Option("--site", help="The site's name, as in the training config; required.")
        ],
        None,
    ),
    "max_unlabelled": (
        Annotated[
            str, typer.Option("--max-unlabelled", help="Fail where the labels' table leaves out more studies.")
        ],
        "10%",
    ),
    "pixels": (
        Annotated[
            _PIXELS | None,
            typer.Option("--pixels", help="How DICOM becomes gray shades; goes into the study file."),
        ],
        None,
    ),
}
_SHARED: dict[str, tuple[Any, Any]] = {
    "out": (Annotated[Path, typer.Option("--out", help="The study file to write.")], ...),
    "site": (
        Annotated[str | None, typer.Option("--site", help="The site's name, as in the training config.")],
        None,
    ),
    "train": (Annotated[int | None, typer.Option("--train", help="Training studies to draw.")], None),
    "validate": (Annotated[int | None, typer.Option("--validate", help="Validation studies to draw.")], None),
    "test": (Annotated[int | None, typer.Option("--test", help="Test studies to draw.")], None),
    "split": (
        Annotated[
            Literal["official", "random"] | None,
            typer.Option(
                "--split", help="Keep the source's splits or draw; default: keep where it has all three."
            ),
        ],
        None,
    ),
    "seed": (Annotated[int, typer.Option("--seed", min=0, help="Seed of the draw and of the order.")], 0),
    "drawn": (
        Annotated[Path | None, typer.Option("--drawn", help="Take the studies of an earlier FILE.drawn.csv.")],
        None,
    ),
    "max_bad": (
        Annotated[str, typer.Option("--max-bad", help="Fail at the end where more images cannot be used.")],
        "1%",
    ),
    "key": (
        Annotated[
            Path | None, typer.Option("--key", help="The site's secret key for ids; made where it is missing.")
        ],
        None,
    ),
    "keep_ids": (
        Annotated[bool, typer.Option("--keep-ids", help="Store ids as they are. They may identify patients.")],
        False,
    ),
    "overwrite": (Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file at --out.")], False),
    "as_json": (Annotated[bool, typer.Option("--json", help="Print the result as JSON.")], False),
}


def add_verbs(app: typer.Typer) -> None:
    """Add a command for each verb."""
    for verb in VERBS:
        app.command(verb.name, epilog=f"Example: {verb.example}")(_command(verb))


def _command(verb: Verb) -> Any:
    root = Annotated[Path, typer.Argument(metavar="TABLE" if verb.name == "manifest" else "ROOT", help=verb.root)]
    options = {"root": (root, ...), **{name: _OWN[name] for name in verb.options}}
    options |= {name: option for name, option in _SHARED.items() if name not in options}

    def command(**said: Any) -> None:
        _preprocess(verb, **said)

    required = inspect.Parameter.empty
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=required if default is ... else default,
                annotation=annotation,
            )
            for name, (annotation, default) in options.items()
        ]
    )
    command.__annotations__ = {name: annotation for name, (annotation, _) in options.items()}
    command.__doc__ = verb.summary
    return command


def _preprocess(verb: Verb, **said: Any) -> None:
    """Run one job on all ranks; the leader prints the result."""
    from preprocess.inspect.summary import summarize
    from preprocess.job import preprocess
    from preprocess.parallel import ranks as run
    from preprocess.parallel.progress import build_progress

    as_json: bool = said.pop("as_json")
    draft: Path | None = said.pop("draft", None)
    if draft is not None:
        _draft(said["root"], draft, said["overwrite"])
        return
    with run.opened_ranks(PROGRAM) as ranks:
        job = _job(verb, **said)
        is_leader = ranks.rank == 0
        outcome = preprocess(job, ranks, build_progress(is_leader))
        # Leader only, and every rank waits: what is printed last is the result.
        summary = run.together(ranks, lambda: summarize(job.out) if is_leader else None)
    if outcome is not None and summary is not None:
        _print_outcome(job, outcome, summary, as_json)


def _draft(table: Path, draft: Path, overwrite: bool) -> None:
    """Write a YAML of columns to start from."""
    from preprocess.parallel import ranks as run
    from preprocess.sources.draft import MISSING, write_draft

    if run.is_under_launcher():
        raise UsageError("--draft: expected one process, found an MPI launcher; run it without mpirun")
    write_draft(table, draft, overwrite)
    print(f"{draft}: a draft of the columns of {table}; check every line and replace {MISSING}")


def _job(
    verb: Verb,
    *,
    root: Path,
    out: Path | None,
    site: str | None,
    train: int | None,
    validate: int | None,
    test: int | None,
    split: str | None,
    seed: int,
    drawn: Path | None,
    max_bad: str,
    key: Path | None,
    keep_ids: bool,
    overwrite: bool,
    labels: Literal["chexpert", "negbio"] = "chexpert",
    columns: str | None = None,
    max_unlabelled: str = "10%",
    pixels: str | None = None,
) -> "Job":
    from cxr_hvd.study.layout import Split
    from preprocess import identifiers
    from preprocess.pixels.load import PIXELS
    from preprocess.plan import Job
    from preprocess.quarantine import parse_share
    from preprocess.records import SourceOptions

    if keep_ids and key is not None:
        raise UsageError("--keep-ids: expected it without --key, found both; choose one")
    if out is None:
        raise UsageError("--out: expected the study file to write, found none; add --out FILE")
    if not site and verb.name == "manifest":
        raise UsageError("--site: expected the site's name as in the training config, found none; add --site NAME")
    site = site or verb.name
    counts = {part: count for part, count in zip(Split, (train, validate, test), strict=True) if count is not None}
    pipeline = pixels or ("dicom-voi" if verb.name == "mimic-cxr-dicom" else PIXELS)
    return Job(
        source=verb.name,
        root=root,
        out=out,
        site=site,
        seed=seed,
        counts=counts or None,
        way=split,
        drawn=drawn,
        key=None if keep_ids else key or identifiers.default_key_path(site),
        overwrite=overwrite,
        options=SourceOptions(
            labels=labels,
            columns=Path(columns) if columns is not None else None,
            max_unlabelled=parse_share(max_unlabelled, "--max-unlabelled"),
        ),
        pipeline=pipeline,
        max_bad=parse_share(max_bad),
    )


def _print_outcome(job: "Job", outcome: "Outcome", summary: "FileSummary", as_json: bool) -> None:
    from preprocess.balance import print_balance
    from preprocess.drawn import drawn_path
    from preprocess.inspect.tables import print_summary
    from preprocess.quarantine import quarantine_path

    rate = outcome.num_images / outcome.load_s if outcome.load_s else 0.0
    if as_json:
        print(json.dumps({**asdict(summary), "images_per_s": round(rate, 1), **vars(outcome)}, indent=2))
        return
    print_summary(summary)
    print_balance(outcome.balance)
    for note in outcome.notes:
        print(f"note: {note}")
    if outcome.num_duplicates:
        print(f"left out: {outcome.num_duplicates:,} rows that say once more what another row says")
    if outcome.num_unlabelled:
        print(f"left out: {outcome.num_unlabelled:,} studies without a label row")
    if outcome.num_bad:
        say(
            f"left out: {outcome.num_bad:,} images that cannot be used, and {outcome.num_left_out:,} studies "
            f"without a good image: {quarantine_path(job.out)}"
        )
    if outcome.num_resumed:
        print(f"taken over from an earlier run: {outcome.num_resumed:,} of {outcome.num_blocks:,} blocks")
    say(
        f"splits: {outcome.rule}; the list: {drawn_path(job.out)}. {outcome.num_images:,} images read at "
        f"{rate:,.0f} images/s; {outcome.total_s:.1f} s in all"
    )
