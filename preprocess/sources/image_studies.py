"""Group images into studies by where they lie, and name each study so that its user finds it again.

A study is the DICOM images of one StudyInstanceUID; of other images, and of DICOM without one, those that lie in
one folder; or an image that was given by itself. It is named by the folder that holds all of it and nothing else,
or by its first image. A StudyInstanceUID is compared, and neither kept nor shown.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cxr_hvd.errors import DataError
from cxr_hvd.study.layout import View
from preprocess.pixels import dicom
from preprocess.records import ImageRecord
from preprocess.sources.image_files import ImageFile, Kind

VIEWS = {"": View.UNKNOWN, "PA": View.PA, "AP": View.AP, "LATERAL": View.LATERAL, "LL": View.LATERAL}
"""DICOM's ViewPosition; others are OTHER."""

# PATH as given, what parts its studies, and the folder or the StudyInstanceUID.
_Key = tuple[Path, str, str]


@dataclass
class ImageStudy:
    """A study without labels, while its images are gathered.

    Attributes:
        study_id: no other study has it: where it lies, or what a table calls it.
        name: what its user finds it by: a path relative to what was given, or what a table calls it.
        images: each with its file.
    """

    study_id: str
    patient_id: str
    name: str
    images: list[tuple[ImageFile, ImageRecord]] = field(default_factory=list)


def group_by_place(files: Sequence[ImageFile]) -> list[ImageStudy]:
    """Return the studies of images, in the order of their first images.

    Raises:
        DataError: two paths hold images of one DICOM study.
    """
    headers = [dicom.study_header(Path(file.file)) if file.kind is Kind.DICOM else ("", "") for file in files]
    uids_in: dict[tuple[Path, str], set[str]] = defaultdict(set)
    for file, (uid, _) in zip(files, headers, strict=True):
        uids_in[file.given, _folder(file)] |= {uid} if uid else set()
    groups: dict[_Key, list[tuple[ImageFile, ImageRecord]]] = {}
    path_of_uid: dict[str, Path] = {}
    for number, (file, (uid, view)) in enumerate(zip(files, headers, strict=True), start=1):
        beside = uids_in[file.given, _folder(file)]
        if not uid and file.kind is not Kind.RASTER and len(beside) == 1:
            [uid] = beside  # what cannot be read is of the study that it lies in
        if uid and path_of_uid.setdefault(uid, file.given) != file.given:
            raise DataError(
                f"{file.given}: expected studies that no other PATH holds, found images of a DICOM study that "
                f"{path_of_uid[uid]} holds, too; give one folder of both, or a --table"
            )
        key = (file.given, "dicom", uid) if uid else (file.given, "folder", _folder(file))
        record = ImageRecord(file.file, VIEWS.get(view, View.OTHER), f"image {number}")
        groups.setdefault(key, []).append((file, record))
    return _named(groups)


def readable(path: str) -> str:
    r"""Return a path as text that can be written as UTF-8; bytes that are none become `\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _named(groups: dict[_Key, list[tuple[ImageFile, ImageRecord]]]) -> list[ImageStudy]:
    keys_below: dict[tuple[Path, str], set[_Key]] = defaultdict(set)
    for key, pairs in groups.items():
        for folder in {_folder(file) for file, _ in pairs}:
            for ancestor in ("", *_ancestors(folder)):
                keys_below[key[0], ancestor].add(key)
    studies = []
    for key, pairs in groups.items():
        first, name = pairs[0][0], pairs[0][0].relative
        if not first.is_alone:
            common = os.path.commonpath([_folder(file) for file, _ in pairs])
            if key[1] == "folder" or len(keys_below[key[0], common]) == 1:
                name = common
        place = readable(first.file if first.is_alone else os.path.normpath(f"{first.root}/{name}"))
        studies.append(ImageStudy(place, place, readable(name or "."), pairs))
    return studies


def _folder(file: ImageFile) -> str:
    """Return the folder that holds an image, relative to the one that was given; `""` is that one."""
    return os.path.dirname(file.relative)  # noqa: PTH120  (text: there may be half a million)


def _ancestors(folder: str) -> list[str]:
    parts = folder.split("/")
    return ["/".join(parts[:number]) for number in range(1, len(parts) + 1)]
