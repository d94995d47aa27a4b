"""A study file by its studies: the records are the tables, and what is shown of them names nobody."""

import copy
import os
import pickle
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cxr_hvd.config.file import load_config
from cxr_hvd.errors import StudyFileError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split, View
from cxr_hvd.study.study_file import StudyFile
from lab.study_files import SIZE, write_study_file

SPLITS = (Split.TRAIN, Split.TRAIN, Split.VALIDATE, Split.TEST)


@pytest.fixture
def file(tmp_path: Path) -> StudyFile:
    return StudyFile(write_study_file(tmp_path / "north.h5", num_studies=24, splits=SPLITS))


def test_a_record_is_what_the_tables_say(file: StudyFile) -> None:
    studies = list(file)
    assert len(studies) == len(file) == 24
    for index, study in enumerate(studies):
        num = int(file.num_images[index])
        assert study.images.shape == (num, SIZE, SIZE) and study.images.dtype == np.uint8
        np.testing.assert_array_equal(study.images, file.images(index))
        assert tuple(study.labels) == LABELS
        np.testing.assert_array_equal(np.float32(list(study.labels.values())), file.labels[index])
        assert study.views == (View.PA,) * num
        assert study.split is SPLITS[index % 4]


def test_indices_are_those_of_a_list(file: StudyFile) -> None:
    np.testing.assert_array_equal(file[-1].images, file[23].images)
    np.testing.assert_array_equal(file[np.int64(2)].images, file[2].images)
    for outside in (24, -25):
        with pytest.raises(IndexError):
            file[outside]
    with pytest.raises(TypeError):
        file[0:2]  # type: ignore[index]


def test_a_record_with_a_damaged_image_is_refused(file: StudyFile) -> None:
    page = file.images(5)[0].tobytes()
    content = bytearray(file.path.read_bytes())
    content[content.index(page) + 100] ^= 1
    file.path.write_bytes(content)
    with pytest.raises(StudyFileError, match="image 0 of study 5 differs from its digest"):
        file[5]


def test_nothing_that_is_shown_names_a_patient_or_holds_a_pixel(file: StudyFile) -> None:
    shown = [repr(file), file._repr_html_(), *map(repr, file)]
    for text in shown:
        for identifier in [*file.study_ids, *file.patient_ids, str(file.path.parent)]:
            assert identifier not in text
        assert "<img" not in text and "array" not in text
    # Which findings a study has is for `labels`; its repr counts them.
    assert not any(label in text for text in map(repr, file) for label in LABELS)


def test_one_line_says_what_a_file_holds(file: StudyFile) -> None:
    num_images = int(file.num_images.sum())
    assert repr(file) == (
        "StudyFile('north.h5': site north, 24 studies (12 TRAIN, 6 VALIDATE, 6 TEST), "
        f"{num_images} images of 64 x 64 px, {num_images * 4096 / 2**20:.1f} MiB, 14 labels)"
    )
    file.close()
    assert "24 studies" in repr(file)


def test_one_line_says_what_a_study_holds(file: StudyFile) -> None:
    labels = file.labels[0]
    counts = [int(np.sum(labels == value)) for value in (1, 0, -1)]
    views = ", ".join(["PA"] * int(file.num_images[0]))
    assert repr(file[0]) == (
        f"Study(TRAIN, {file.num_images[0]} x 64 x 64 px: {views}; labels: {counts[0]} present, "
        f"{counts[1]} absent, {counts[2]} uncertain, {int(np.isnan(labels).sum())} blank)"
    )


class Cells(HTMLParser):
    """The cells of a table, row by row; fails where a tag is not closed in its order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_the_table_counts_by_split(file: StudyFile) -> None:
    head, *rows = Cells(file._repr_html_()).rows
    counts = {name: [int(cell) for cell in cells] for name, *cells in rows}
    assert head == ["", "TRAIN", "VALIDATE", "TEST", "all"]
    assert counts["patients"] == counts["studies"] == [12, 6, 6, 24]
    assert counts["images"][3] == file.num_images.sum()
    for column, label in enumerate(LABELS):
        is_present = file.labels[:, column] == 1
        expected = [int(is_present[file.splits == split].sum()) for split in Split]
        assert counts[f"{label}: present"] == [*expected, int(is_present.sum())]


def test_names_that_others_chose_are_harmless(tmp_path: Path) -> None:
    path = write_study_file(tmp_path / "a<b>\x1b[1m.h5", site="<script>\x1b[2J\nsouth")
    with StudyFile(path) as file:
        assert repr(file).isprintable()
        html = file._repr_html_()
        assert "<script>" not in html and "<b>" not in html and "\x1b" not in html
        Cells(html)


def test_a_pickled_file_is_opened_again(file: StudyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.path.parent)
    relative = StudyFile(file.path.name)
    content = pickle.dumps(relative)
    assert len(content) < 1000
    monkeypatch.chdir("/")
    for again in (pickle.loads(content), copy.deepcopy(file)):  # noqa: S301, our own bytes
        assert again.digest == file.digest
        np.testing.assert_array_equal(again[3].images, file[3].images)


def test_a_file_that_was_replaced_is_not_opened_again(file: StudyFile) -> None:
    content = pickle.dumps(file)
    write_study_file(file.path.parent / "other.h5", seed=1).replace(file.path)
    with pytest.raises(StudyFileError, match="the file was replaced while it was in use"):
        pickle.loads(content)  # noqa: S301, our own bytes


def test_paths_may_be_text_or_anything_that_has_a_path(file: StudyFile, tmp_path: Path) -> None:
    class Entry(os.PathLike[str]):
        def __fspath__(self) -> str:
            return str(file.path)

    assert StudyFile(str(file.path)).digest == StudyFile(Entry()).digest == file.digest
    config = tmp_path / "D.yaml"
    config.write_text("experiment: D\nsites:\n  north: {data: north.h5}\n  south: {data: south.h5}\n")
    assert load_config(str(config)) == load_config(config)
