"""Read images that nobody has labelled, without any table, or with one that says which are of one study.

All labels are blank, and all studies are for the test split, in the order of their paths.
"""

import hashlib
from collections import Counter
from pathlib import Path

from cxr_hvd.errors import DataError, UsageError
from cxr_hvd.study.labels import BLANK, LABELS
from cxr_hvd.study.layout import MAX_IMAGES, Split
from preprocess.pixels.pipelines import PIPELINES, RASTER
from preprocess.records import ImageName, SourceOptions, StudyListing, StudyRecord
from preprocess.sources.image_files import Kind, find_images
from preprocess.sources.image_studies import ImageStudy, group_by_place, readable
from preprocess.sources.study_table import read_table


def read_studies(root: Path, options: SourceOptions) -> StudyListing:
    """Find the images in `options.paths` and group them into studies; of DICOM files the headers are read.

    Args:
        root: where the search begins, for messages.

    Raises:
        DataError: a path is not as expected, or no image is of a kind that the pixel pipeline reads.
        UsageError: there is no such pixel pipeline, or a table stands beside several paths.
    """
    if options.pixels not in (None, *PIPELINES):
        raise UsageError(
            f"--pixels: expected {', '.join(PIPELINES)}, found '{options.pixels}', which no image is made by here"
        )
    notes, num_duplicates = [], 0
    if options.table is not None:
        studies, num_duplicates = read_table(options.table, options.paths)
    else:
        files, num_others = find_images(options.paths)
        studies = group_by_place(files)
        if num_others:
            notes.append(f"{num_others:,} files that are no JPEG, PNG or DICOM image were passed over")
    pixels = _choose_pipeline(root, studies, options.pixels)
    large = [study for study in studies if len(study.images) > MAX_IMAGES]
    reasons = [
        f"expected at most {MAX_IMAGES} images in a study, found {len(study.images):,}; give each study a folder, "
        "or name the studies by --table"
        for study in large
    ]
    if len(large) == len(studies):
        raise DataError(f"{root}: {reasons[0]}")
    if large:
        notes.append(f"{len(large):,} studies of more than {MAX_IMAGES} images are set aside")
    return StudyListing(
        studies=tuple(_record(study) for study in studies if len(study.images) <= MAX_IMAGES),
        sha256=_digest(studies),
        num_duplicates=num_duplicates,
        notes=tuple(notes),
        pixels=pixels,
        names=tuple(
            ImageName(record.where, readable(str(file.given)), readable(file.relative), study.name, study.study_id)
            for study in studies
            for file, record in study.images
        ),
        set_aside=tuple(
            (record.where, reason)
            for study, reason in zip(large, reasons, strict=True)
            for _, record in study.images
        ),
    )


def _record(study: ImageStudy) -> StudyRecord:
    return StudyRecord(
        patient_id=study.patient_id,
        study_id=study.study_id,
        split=Split.TEST,
        labels=(BLANK,) * len(LABELS),
        images=tuple(record for _, record in study.images),
    )


def _digest(studies: list[ImageStudy]) -> str:
    """SHA-256 over the paths of the images and the names of their studies: there may be no table."""
    digest = hashlib.sha256()
    for study in studies:
        for file, record in study.images:
            digest.update(f"{readable(file.relative)}\n{study.name}\n{int(record.view)}\n".encode())
    return digest.hexdigest()


def _choose_pipeline(root: Path, studies: list[ImageStudy], wanted: str | None) -> str:
    """Return the pipeline that was asked for, or the one that reads the images.

    Raises:
        DataError: it reads none of them, or there are images of two kinds and none was asked for.
    """
    counts = Counter(file.kind for study in studies for file, _ in study.images)
    if wanted is None:
        if counts[Kind.RASTER] and counts[Kind.DICOM]:
            raise DataError(
                f"{root}: expected images of one kind, found {counts[Kind.RASTER]:,} JPEG or PNG and "
                f"{counts[Kind.DICOM]:,} DICOM files; choose by --pixels, and those that it does not read are set "
                "aside"
            )
        return "dicom-voi" if counts[Kind.DICOM] else RASTER
    reads, other = (Kind.RASTER, Kind.DICOM) if wanted == RASTER else (Kind.DICOM, Kind.RASTER)
    if counts[other] and not counts[reads]:
        others = [name for name in PIPELINES if (name == RASTER) == (other is Kind.RASTER)]
        raise DataError(
            f"{root}: expected {reads} images, which pixel pipeline {wanted} reads, found {counts[other]:,} "
            f"{other} files; --pixels {' or '.join(others)} reads them"
        )
    return wanted
