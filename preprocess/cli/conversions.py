"""Run a conversion, or write a draft of columns, for the verbs that read a source; print the result."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cxr_hvd.errors import UsageError
from cxr_hvd.terminal import say

if TYPE_CHECKING:
    from preprocess.convert import ConversionResult
    from preprocess.inspect.summary import FileSummary
    from preprocess.plan import Conversion

PROGRAM = "cxr-preprocess"


def run_conversion(source: str, *, as_json: bool, **options: Any) -> None:
    """Convert a site's folder on all ranks; the leader prints the result.

    Args:
        source: the verb. as_json: print JSON. options: of the command line, as `_build_conversion` names them.
    """
    from preprocess.convert import convert_site
    from preprocess.inspect.summary import summarize
    from preprocess.parallel.progress import build_progress
    from preprocess.parallel.ranks import open_ranks, run_phase

    with open_ranks(PROGRAM) as ranks:
        conversion = _build_conversion(source, **options)
        result = convert_site(conversion, ranks, build_progress(ranks.is_leader))
        # Leader only, and every rank waits: what is printed last is the result.
        summary = run_phase(ranks, lambda: summarize(conversion.out) if ranks.is_leader else None)
    if result is not None and summary is not None:
        _print_result(conversion.out, result, summary, as_json, has_names=source == "images")


def write_draft(table: Path, draft: Path, overwrite: bool) -> None:
    """Write a YAML of columns to start from."""
    from preprocess.parallel.ranks import is_under_launcher
    from preprocess.sources import draft as drafts

    if is_under_launcher():
        raise UsageError("--draft: expected one process, found an MPI launcher; run it without mpirun")
    drafts.write_draft(table, draft, overwrite)
    print(f"{draft}: a draft of the columns of {table}; check every line and replace {drafts.MISSING}")


def _build_conversion(
    source: str,
    *,
    out: Path | None,
    site: str | None,
    max_bad: str,
    key: Path | None,
    keep_ids: bool,
    overwrite: bool,
    root: Path | None = None,
    paths: Sequence[Path] = (),
    table: Path | None = None,
    train: int | None = None,
    validate: int | None = None,
    test: int | None = None,
    split: str | None = None,
    seed: int = 0,
    drawn: Path | None = None,
    labels: Literal["chexpert", "negbio"] = "chexpert",
    columns: str | None = None,
    max_unlabelled: str = "10%",
    pixels: str | None = None,
) -> "Conversion":
    from cxr_hvd.study.layout import Split
    from preprocess.identifiers import default_key_path
    from preprocess.pixels.pipelines import RASTER
    from preprocess.plan import Conversion
    from preprocess.quarantine import parse_share
    from preprocess.records import SourceOptions

    if keep_ids and key is not None:
        raise UsageError("--keep-ids: expected it without --key, found both; choose one")
    if out is None:
        raise UsageError("--out: expected the study file to write, found none; add --out FILE")
    if not site and source == "manifest":
        raise UsageError("--site: expected the site's name as in the training config, found none; add --site NAME")
    site = site or source
    counts = {Split.TRAIN: train, Split.VALIDATE: validate, Split.TEST: test}
    given_counts = {split: count for split, count in counts.items() if count is not None}
    pipeline = pixels or ("dicom-voi" if source == "mimic-cxr-dicom" else RASTER)
    return Conversion(
        source=source,
        root=root or paths[0],
        out=out,
        site=site,
        seed=seed,
        counts=given_counts or None,
        way="listed" if source == "images" else split,
        drawn=drawn,
        key=None if keep_ids else key or default_key_path(site),
        overwrite=overwrite,
        options=SourceOptions(
            labels=labels,
            columns=Path(columns) if columns is not None else None,
            max_unlabelled=parse_share(max_unlabelled, "--max-unlabelled"),
            paths=tuple(paths),
            table=table,
            pixels=pixels if source == "images" else None,
        ),
        pipeline=pipeline,
        max_bad=parse_share(max_bad),
        refuses_blank=source == "images",
    )


def _print_result(
    out: Path, result: "ConversionResult", summary: "FileSummary", as_json: bool, has_names: bool
) -> None:
    from preprocess.balance import print_balance
    from preprocess.drawn import drawn_path
    from preprocess.image_list import image_list_path
    from preprocess.inspect.tables import print_summary
    from preprocess.quarantine import quarantine_path

    rate = result.num_images / result.load_s if result.load_s else 0.0
    if as_json:
        print(json.dumps({**asdict(summary), "images_per_s": round(rate, 1), **vars(result)}, indent=2))
        return
    print_summary(summary)
    if not has_names:
        print_balance(result.balance)
    for note in result.notes:
        print(f"note: {note}")
    if result.num_duplicates:
        print(f"left out: {result.num_duplicates:,} rows that say once more what another row says")
    if result.num_unlabelled:
        print(f"left out: {result.num_unlabelled:,} studies without a label row")
    if result.num_bad:
        say(
            f"left out: {result.num_bad:,} images that cannot be used, and {result.num_left_out:,} studies "
            f"without a good image: {quarantine_path(out)}"
        )
    if result.num_resumed:
        print(f"taken over from an earlier run: {result.num_resumed:,} of {result.num_blocks:,} blocks")
    lists = f"splits: {result.rule}; the list: {drawn_path(out)}"
    if has_names:
        lists = f"where each image lies: {image_list_path(out)}"
    say(f"{lists}. {result.num_images:,} images read at {rate:,.0f} images/s; {result.total_s:.1f} s in all")
