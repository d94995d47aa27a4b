"""Merge several readings of one image, a row a reader: each reader counts once, and the majority decides."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cxr_hvd.errors import DataError
from cxr_hvd.study.labels import ABSENT, BLANK, LABELS, PRESENT, UNCERTAIN
from cxr_hvd.study.layout import Split
from preprocess.records import UNKNOWN_DEMOGRAPHICS, Demographics, ImageRecord
from preprocess.sources.collector import Labels, StudyCollector, differing_label


@dataclass(frozen=True)
class Reading:
    """What one row says. `reader` is blank where the table does not tell readers apart."""

    patient: str
    study: str
    split: Split | None
    labels: Labels
    image: ImageRecord
    reader: str = ""
    demographics: Demographics = UNKNOWN_DEMOGRAPHICS


def merge_by_majority(rows: Iterator[Reading], collector: StudyCollector) -> Iterator[Reading]:
    """Yield one row an image: what more than half of its readers say of a label, uncertain where no half does.

    Readers who leave a label blank are passed over; where all do, it is blank. A row that says once more what a
    reader's earlier row has said is dropped, and counted in `collector`.

    Raises:
        DataError: rows of an image, or of one reader of an image, contradict each other.
    """
    readings: dict[str | Path, list[Reading]] = defaultdict(list)
    for row in rows:
        same = readings[row.image.file]
        if same and _about(same[0]) != _about(row):
            raise DataError(
                f"{row.image.where}: expected patient, study, split and view of {same[0].image.where}, which is "
                "the same image, found others; repair the table"
            )
        earlier = next((reading for reading in same if row.reader and reading.reader == row.reader), None)
        if earlier is None:
            same.append(row)
        elif differing := differing_label(earlier.labels, row.labels):
            raise DataError(
                f"{row.image.where}: expected the labels of {earlier.image.where}, which is the same reader's of "
                f"the same image, found another '{differing}'; repair the table"
            )
        else:
            collector.count_duplicate()
    for same in readings.values():
        labels = tuple(_majority([reading.labels[column] for reading in same]) for column in range(len(LABELS)))
        yield replace(same[0], labels=labels)


def _about(row: Reading) -> tuple[object, ...]:
    return row.patient, row.study, row.split, row.image.view, row.image.is_negative


def _majority(labels: list[float]) -> float:
    given = [label for label in labels if label in (PRESENT, ABSENT, UNCERTAIN)]
    strongest = next((label for label in (PRESENT, ABSENT) if 2 * given.count(label) > len(given)), UNCERTAIN)
    return strongest if given else BLANK
