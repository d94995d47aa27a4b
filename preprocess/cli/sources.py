"""The verbs of `cxr-preprocess` that read a source: their options, in one table.

A verb is a source's name, its help and the options that mean something to it; the shared ones are added. Typer
reads options from a function's signature, so `add_verbs` gives each verb a signature of its own.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from preprocess.cli.conversions import run_conversion, write_draft


@dataclass(frozen=True)
class Verb:
    """A source as a verb: name, what it reads, an example, options of its own, and shared ones that it lacks."""

    name: str
    summary: str
    example: str
    root: str = "The folder that holds the data, as published."
    options: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


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
    Verb(
        "images",
        "Read images without labels, for cxr-hvd predict: folders of JPEG, PNG or DICOM, or single images.",
        "cxr-preprocess images scans/ --out scans.h5",
        without=("train", "validate", "test", "split", "seed", "drawn"),
    ),
)

_DicomPipeline = Literal["dicom-voi", "mimic-jpg-compat"]
_SOURCE_OPTIONS: dict[str, tuple[Any, Any]] = {
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
            _DicomPipeline | None,
            typer.Option("--pixels", help="How DICOM becomes gray shades; goes into the study file."),
        ],
        None,
    ),
}
_OPTIONS_OF_IMAGES: dict[str, tuple[Any, Any]] = {
    "paths": (
        Annotated[
            list[Path],
            typer.Argument(
                metavar="PATHS",
                help="Folders, each study in one of its own or with one StudyInstanceUID; or images.",
            ),
        ],
        ...,
    ),
    "table": (
        Annotated[
            Path | None,
            typer.Option("--table", help="CSV with columns path, study[, patient][, view]; paths from PATH on."),
        ],
        None,
    ),
    "pixels": (
        Annotated[
            str | None,
            typer.Option("--pixels", help="How images become gray shades; default: dicom-voi for DICOM."),
        ],
        None,
    ),
}
_SHARED_OPTIONS: dict[str, tuple[Any, Any]] = {
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
    options = {"root": (root, ...), **{name: _SOURCE_OPTIONS[name] for name in verb.options}}
    if verb.name == "images":
        options = dict(_OPTIONS_OF_IMAGES)
    shared = {name: option for name, option in _SHARED_OPTIONS.items() if name not in (*options, *verb.without)}
    options |= shared

    def command(*, draft: Path | None = None, **values: Any) -> None:
        if draft is not None:
            write_draft(values["root"], draft, values["overwrite"])
        else:
            run_conversion(verb.name, **values)

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
