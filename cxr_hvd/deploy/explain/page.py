"""The folder of an explanation: a page, its pictures, and its numbers as JSON.

It shows images of patients: its owner alone may read it. What comes from a file is escaped, nothing is fetched.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cxr_hvd.deploy.explain.explain import LabelMap, StudyMaps
from cxr_hvd.deploy.explain.pictures import gray_png, overlay_png
from cxr_hvd.deploy.explain.sanity import ALIKE
from cxr_hvd.deploy.rendering import render_page
from cxr_hvd.deploy.trained_network import TrainedNetwork
from cxr_hvd.errors import CxrHvdError, UsageError
from cxr_hvd.files import replaced_folder, write_text
from cxr_hvd.record import Finite, Name, Record, Text

PAGE, NUMBERS, PICTURES = "index.html", "maps.json", "pictures"
WORDS = {"grad-cam": "Grad-CAM", "occlusion": "occlusion"}

REPORT_STYLE = Path(__file__).parents[2] / "report" / "templates" / "report.css"


class MapRecord(Record):
    """A map as `maps.json` lists it.

    Attributes:
        file, study, label, method: of what it is.
        probability, threshold: of the label.
        correlations: of each image's map with that of a network with fresh weights, -1 to 1.
        pictures: of each image, relative to the folder.
    """

    file: Text
    study: Text
    label: Name
    method: Name
    probability: Finite
    threshold: Finite | None
    correlations: list[Finite | None]
    pictures: list[Text]


class Explanation(Record):
    """`maps.json`.

    Attributes:
        maps_schema: of this record.
        network: which network was asked.
        mean_correlation: by method, over all maps that have one; None where none has.
        maps: one a study, label and method.
    """

    maps_schema: Literal[1] = 1
    network: Text
    mean_correlation: dict[Name, Finite | None]
    maps: list[MapRecord]


@dataclass(frozen=True)
class ShownStudy:
    """A study on the page: its plain pictures and its maps.

    Attributes:
        pictures: of each image without a map.
        captions: of each image.
        maps: of its labels.
    """

    file: str
    study: str
    pictures: list[str]
    captions: list[str]
    maps: list[MapRecord]


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that is there, unless it is an earlier explanation and `overwrite`."""
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not (folder / NUMBERS).is_file() or not overwrite:
        raise UsageError(
            f"--out {folder}: expected a new folder, found something; choose another, or add --overwrite to "
            "replace an earlier explanation"
        )


def write_explanation(folder: Path, network: TrainedNetwork, studies: Iterator[StudyMaps]) -> Explanation:
    """Write the maps of studies into a folder, whole or not at all; return its numbers.

    Raises:
        CxrHvdError: it cannot be written.
    """
    shown = []
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replaced_folder(folder) as beside:
            (beside / PICTURES).mkdir(mode=0o700)
            for number, study in enumerate(studies, start=1):
                shown.append(_draw(study, beside, number))
            records = [record for study in shown for record in study.maps]
            explanation = Explanation(
                network=str(network),
                mean_correlation={method: _mean(records, method) for method in WORDS if _has(records, method)},
                maps=records,
            )
            write_text(beside / PAGE, build_page(network, explanation, shown))
            write_text(beside / NUMBERS, explanation.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise CxrHvdError(f"{folder}: cannot write the maps ({error.strerror or error})") from error
    return explanation


def build_page(network: TrainedNetwork, explanation: Explanation, studies: Sequence[ShownStudy]) -> str:
    """Return the page as HTML."""
    return render_page(
        "explain.html",
        REPORT_STYLE,
        network=network,
        explanation=explanation,
        studies=studies,
        words=WORDS,
        alike=ALIKE,
    )


def _draw(study: StudyMaps, folder: Path, number: int) -> ShownStudy:
    """Write the pictures of one study."""

    def write(name: str, content: bytes) -> str:
        (folder / PICTURES / name).write_bytes(content)
        return f"{PICTURES}/{name}"

    images = range(len(study.images_MHW))
    return ShownStudy(
        file=study.file,
        study=study.study,
        pictures=[write(f"{number}-{image + 1}.png", gray_png(study.images_MHW[image])) for image in images],
        captions=[f"image {image + 1}, view {study.views[image]}" for image in images],
        maps=[
            MapRecord(
                file=study.file,
                study=study.study,
                label=one.label,
                method=one.method,
                probability=one.probability,
                threshold=one.threshold,
                correlations=list(one.correlations),
                pictures=[
                    write(
                        f"{number}-{image + 1}-{one.method}-{one.label.lower().replace(' ', '-')}.png",
                        overlay_png(study.images_MHW[image], one.maps_MHW[image], _is_signed(one)),
                    )
                    for image in images
                ],
            )
            for one in study.maps
        ],
    )


def _is_signed(one: LabelMap) -> bool:
    return one.method == "occlusion"


def _has(records: Sequence[MapRecord], method: str) -> bool:
    return any(record.method == method for record in records)


def _mean(records: Sequence[MapRecord], method: str) -> float | None:
    values = [
        value
        for record in records
        if record.method == method
        for value in record.correlations
        if value is not None
    ]
    return float(np.mean(values)) if values else None
