"""All sources: real sites are read whole, repeated rows are counted, a missing folder is refused in one line."""

from pathlib import Path

import pytest

from cxr_hvd.errors import DataError
from preprocess.records import SourceOptions
from preprocess.sources import SOURCES
from tests.helpers.synthetic import Rows, write_chexpert, write_mimic_cxr


@pytest.mark.parametrize(
    ("source", "folder", "num_studies", "num_images"),
    [("chexpert", "site-nih", 567, 704), ("mimic-cxr", "site-guangzhou/mimic-cxr-jpg", 1953, 3586)],
)
def test_real_sites_are_read_whole(
    real_data: Path, source: str, folder: str, num_studies: int, num_images: int
) -> None:
    studies = SOURCES[source](real_data / folder, SourceOptions()).studies
    assert (len(studies), sum(len(study.images) for study in studies)) == (num_studies, num_images)


def test_a_missing_root_is_one_line(tmp_path: Path) -> None:
    for source in ("chexpert", "mimic-cxr", "mimic-cxr-dicom"):
        with pytest.raises(DataError, match="expected"):
            SOURCES[source](tmp_path / "nowhere", SourceOptions())


def test_duplicate_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    write_chexpert(tmp_path / "a")
    write_chexpert(tmp_path / "b", change=lambda rows: [*rows, rows[1], rows[4], rows[1]])
    plain, twice = (SOURCES["chexpert"](tmp_path / name, SourceOptions()) for name in ("a", "b"))
    assert (plain.num_duplicates, twice.num_duplicates) == (0, 3)
    assert [len(study.images) for study in twice.studies] == [len(study.images) for study in plain.studies]

    def doubled(tables: dict[str, Rows]) -> dict[str, Rows]:
        return {kind: [*rows, rows[1]] for kind, rows in tables.items()}

    # A label row and an image row; the split table only answers questions.
    write_mimic_cxr(tmp_path / "c", change=doubled)
    assert SOURCES["mimic-cxr"](tmp_path / "c", SourceOptions()).num_duplicates == 2
