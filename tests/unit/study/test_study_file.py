"""The study file: written then read is the same, and whatever breaks the contract is refused."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cxr_hvd.errors import StudyFileError
from cxr_hvd.study.flow import Flow, StudyCounts
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import MAX_IMAGES, UNKNOWN_AGE, Sex, Split, StudyRow, View
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.study.study_writer import StudyFileWriter
from lab.study_files import header, write_study_file
from preprocess.inspect.verify import verify_digests
from preprocess.parallel.progress import Silence

SIZE = 16


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(num_images=st.lists(st.integers(1, MAX_IMAGES), min_size=1, max_size=6), seed=st.integers(0, 2**31))
def test_written_then_read_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, num_images: list[int], seed: int
) -> None:
    path = tmp_path_factory.mktemp("file") / "study.h5"
    rng = np.random.default_rng(seed)
    rows = [
        StudyRow(
            study_id=f"s{index}é",
            patient_id=f"p{index // 2}",
            split=Split(index // 2 % 3),
            views=tuple(View(view) for view in rng.integers(0, 5, num)),
            labels=tuple(rng.choice([1.0, 0.0, -1.0, np.nan], len(LABELS)).tolist()),
            sex=Sex(int(rng.integers(0, 4))),
            age=int(rng.choice([0, 17, 89, 90, UNKNOWN_AGE])),
        )
        for index, num in enumerate(num_images)
    ]
    images = [rng.integers(0, 256, (num, SIZE, SIZE), dtype=np.uint8) for num in num_images]
    writer = StudyFileWriter(path, header(image_size=SIZE), len(rows) + 3)
    for row, images_NHW in zip(rows, images, strict=True):
        writer.append(row, images_NHW)
    writer.close()
    with StudyFile(path) as file:
        assert file.header == header(image_size=SIZE)
        for index, row in enumerate(rows):
            np.testing.assert_array_equal(file.images(index), images[index])
            file.check_images(index, images[index])
            assert tuple(file.views[index, : len(row.views)]) == row.views
            np.testing.assert_array_equal(file.labels[index], np.float32(row.labels))
        assert list(file.study_ids) == [row.study_id for row in rows]
        assert list(file.patient_ids) == [row.patient_id for row in rows]
        assert list(file.splits) == [row.split for row in rows]
        assert list(file.sexes) == [row.sex for row in rows]
        assert list(file.ages) == [row.age for row in rows]


def test_a_file_of_schema_1_opens_and_knows_neither_sex_nor_age(tmp_path: Path) -> None:
    """Its digest is over its own tables, whatever a later schema may hold beside them."""
    writer = StudyFileWriter(tmp_path / "a.h5", header(), 1)
    writer.append(StudyRow("s", "p", Split.TRAIN, (View.PA,), (0.0,) * 14), np.zeros((1, 64, 64), np.uint8))
    digest = writer.close()
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        assert not {"sex", "age"} & set(file)  # nothing is written where nothing is known
        file.attrs["schema"] = 1
    with StudyFile(tmp_path / "a.h5") as read:
        assert (read.digest, list(read.sexes), list(read.ages)) == (digest, [Sex.UNKNOWN], [UNKNOWN_AGE])
        assert (read[0].sex, read[0].age, read.header.flow) == (Sex.UNKNOWN, None, None)


def test_ages_of_90_and_more_are_one(tmp_path: Path) -> None:
    path = write_study_file(tmp_path / "a.h5")
    with StudyFile(path) as file, h5py.File(path, locking=False) as plain:
        assert file.ages.max() == 90 and file.ages[13] == 90 and 7 * 13 > 90
        assert plain["sex"].dtype.metadata["enum"] == {"UNKNOWN": 0, "FEMALE": 1, "MALE": 2, "OTHER": 3}


def test_what_was_left_out_stands_in_the_file_and_in_its_digest(tmp_path: Path) -> None:
    counts = StudyCounts(patients=2, studies=3, images=4)
    digests = []
    for unusable in (1, 2):
        flow = Flow(
            unlabelled_studies=1,
            labelled=counts,
            drawn=counts,
            unusable_images={"one that is damaged": unusable},
            emptied_studies=0,
        )
        writer = StudyFileWriter(tmp_path / f"{unusable}.h5", header(), 1)
        writer.append(StudyRow("s", "p", Split.TRAIN, (View.PA,), (0.0,) * 14), np.zeros((1, 64, 64), np.uint8))
        writer.close(flow)
        with StudyFile(tmp_path / f"{unusable}.h5") as file:
            assert file.header.flow == flow
            digests.append(file.digest)
    assert digests[0] != digests[1]


def test_studies_are_grouped_by_their_views_sex_and_age(tmp_path: Path) -> None:
    views = [
        (View.PA, View.LATERAL),
        (View.AP,),
        (View.AP, View.PA),
        (View.LATERAL,),
        (View.UNKNOWN, View.LATERAL),
    ]
    ages = [17, 18, 64, 65, UNKNOWN_AGE]
    writer = StudyFileWriter(tmp_path / "a.h5", header(), len(views))
    for index, (of_study, age) in enumerate(zip(views, ages, strict=True)):
        row = StudyRow(f"s{index}", f"p{index}", Split.TEST, of_study, (0.0,) * 14, Sex(index % 4), age)
        writer.append(row, np.zeros((len(of_study), 64, 64), np.uint8))
    writer.close()
    with StudyFile(tmp_path / "a.h5") as file:
        members = file.groups(Split.TEST).members()
        assert not file.groups(Split.TRAIN).members()
    assert {
        kind: {name: np.flatnonzero(is_in).tolist() for name, is_in in of_kind.items()}
        for kind, of_kind in members.items()
    } == {
        "view": {
            "frontal, PA": [0],
            "frontal, AP": [1],
            "frontal, PA and AP": [2],
            "lateral alone": [3],
        },
        "sex": {"female": [1], "male": [2], "other": [3]},
        "age": {"0 to 17 years": [0], "18 to 39 years": [1], "40 to 64 years": [2], "65 years and more": [3]},
    }


def test_any_reader_sees_zero_padded_images(tmp_path: Path) -> None:
    path = write_study_file(tmp_path / "a.h5", 3)
    with h5py.File(path, locking=False) as plain, StudyFile(path) as file:
        assert plain["images"].shape == (3, 20, 64, 64)
        for index, num in enumerate(file.num_images):
            dense = plain["images"][index]
            np.testing.assert_array_equal(dense[:num], file.images(index))
            assert not dense[num:].any()
        assert plain["images"].id.get_storage_size() == int(file.num_images.sum()) * 64 * 64
        assert plain["split"].dtype.metadata["enum"] == {"TRAIN": 0, "VALIDATE": 1, "TEST": 2}
        assert [name.decode() if isinstance(name, bytes) else name for name in plain.attrs["label_names"]] == list(
            LABELS
        )


def _drop_complete(file: h5py.File) -> None:
    del file.attrs["complete"]


def _other_schema(file: h5py.File) -> None:
    file.attrs["schema"] = 99


def _other_label(file: h5py.File) -> None:
    file["labels"][0, 0] = 1 - (file["labels"][0, 0] == 1)


def _impossible_label(file: h5py.File) -> None:
    file["labels"][0, 0] = 3


def _soft_link(file: h5py.File) -> None:
    file.move("labels", "kept")
    file["labels"] = h5py.SoftLink("/kept")


def _external_link(file: h5py.File) -> None:
    del file["labels"]
    file["labels"] = h5py.ExternalLink("other.h5", "/labels")


def _virtual(file: h5py.File) -> None:
    shape = file["images"].shape
    del file["images"]
    layout = h5py.VirtualLayout(shape, np.uint8)
    layout[:] = h5py.VirtualSource("/etc/passwd", "images", shape)
    file.create_virtual_dataset("images", layout)


def _external_data(file: h5py.File) -> None:
    shape = file["num_images"].shape
    del file["num_images"]
    file.create_dataset("num_images", shape, np.uint8, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def _filtered(file: h5py.File) -> None:
    images = file["images"][:]
    del file["images"]
    file.create_dataset("images", data=images, chunks=(1, 1, 64, 64), compression="gzip")


def _other_chunks(file: h5py.File) -> None:
    images = file["images"][:]
    del file["images"]
    file.create_dataset("images", data=images, chunks=(1, 20, 64, 64))


def _too_many_images(file: h5py.File) -> None:
    file["num_images"][0] = 21


def _no_images(file: h5py.File) -> None:
    file["num_images"][0] = 0


def _wide_type(file: h5py.File) -> None:
    labels = file["labels"][:]
    del file["labels"]
    file["labels"] = labels.astype(np.float64)


def _other_sex(file: h5py.File) -> None:
    file["sex"][0] = 9


def _older_than_90(file: h5py.File) -> None:
    file["age"][0] = 91


def _other_flow(file: h5py.File) -> None:
    file.attrs["flow"] = '{"unlabelled_studies": "many"}'


def _crossing_patient(file: h5py.File) -> None:
    file["patient_id"][1] = file["patient_id"][0]


def _replace(file: h5py.File, name: str, *arguments: Any, **options: Any) -> None:
    del file[name]
    file.create_dataset(name, *arguments, **options)


def _declared_long(file: h5py.File) -> None:
    _replace(file, "num_images", (8_000_000_000,), np.uint8, chunks=(1 << 20,))


def _declared_long_everywhere(file: h5py.File) -> None:
    images = (8_000_000_000, 20, 64, 64)
    _replace(file, "images", images, np.uint8, chunks=(1, 1, 64, 64))
    _replace(file, "num_images", images[:1], np.uint8, chunks=(1 << 20,), fillvalue=1)


def _declared_wide(file: h5py.File) -> None:
    _replace(file, "study_id", file["study_id"].shape, h5py.string_dtype("utf-8", 1 << 30), chunks=(1,))


def _text_of_any_length(file: h5py.File) -> None:
    ids = [name.decode() for name in file["study_id"][:]]
    _replace(file, "study_id", data=ids, dtype=h5py.string_dtype())


def _huge_images(file: h5py.File) -> None:
    file.attrs["image_size"] = 60_000
    _replace(file, "images", (24, 20, 60_000, 60_000), np.uint8, chunks=(1, 1, 60_000, 60_000))


def _many_labels(file: h5py.File) -> None:
    file.attrs["label_names"] = ["x"] * 3000


def _scalar(file: h5py.File) -> None:
    _replace(file, "images", data=np.uint8(1))


BROKEN: dict[Callable[[h5py.File], None], str] = {
    _drop_complete: "expected attribute complete = 1, found none: its writer was interrupted",
    _other_schema: "expected schema 1 to 2, found schema 99",
    _other_label: "damaged",
    _impossible_label: "expected labels of 1, 0, -1 and NaN",
    _soft_link: "expected dataset labels inside this file",
    _external_link: "expected dataset labels inside this file",
    _virtual: "expected dataset images inside this file",
    _external_data: "expected dataset num_images inside this file",
    _declared_long: r"expected num_images of shape \(24,\)",
    _declared_long_everywhere: "8,000,000,000 bytes declared in a smaller one",
    _declared_wide: "bytes declared in a smaller one",
    _text_of_any_length: "expected study_id of type fixed-length text",
    _huge_images: "expected images of 1 to 4096 px",
    _many_labels: "expected up to 1000 label names",
    _scalar: "not a study file of schema 1 to 2",
    _filtered: "expected images without a filter",
    _other_chunks: "expected images with chunks",
    _too_many_images: "num_images|studies of 1 to 20|digests of shape",
    _no_images: "studies of 1 to 20|digests of shape",
    _wide_type: "expected labels of type float32, found float64",
    _other_sex: "expected known sexes",
    _older_than_90: "expected ages of 0 to 90 years, or 255 for unknown",
    _other_flow: "expected attribute flow of numbers and reasons",
    _crossing_patient: "expected splits disjoint by patient",
}


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda function: function.__name__.strip("_"))
def test_a_broken_file_is_refused(tmp_path: Path, break_it: Callable[[h5py.File], None]) -> None:
    path = write_study_file(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        break_it(file)
    with pytest.raises(StudyFileError, match=BROKEN[break_it]) as caught:
        StudyFile(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    content = write_study_file(tmp_path / "north.h5", num_studies=3).read_bytes()
    rng, path = np.random.default_rng(0), tmp_path / "damaged.h5"
    # The file's structure lies at both ends; h5py makes errors of its own kinds of what it finds there.
    structure = np.r_[:3000, len(content) - 9000 : len(content)]
    for _ in range(100):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[rng.choice(structure, rng.integers(1, 5))] = rng.choice([0, 1, 127, 255, rng.integers(256)])
        path.write_bytes(damaged.tobytes())
        try:
            with StudyFile(path) as file:
                for index in range(len(file)):
                    file.images(index)
        except StudyFileError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "north.h5")
    with pytest.raises(StudyFileError, match="found a folder, a FIFO or a device"):
        StudyFile(tmp_path / "north.h5")


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(content)
    with pytest.raises(StudyFileError, match="not a readable HDF5 file"):
        StudyFile(path)


def test_a_truncated_or_missing_file_is_refused(tmp_path: Path) -> None:
    path = write_study_file(tmp_path / "a.h5")
    path.write_bytes(path.read_bytes()[:-5000])
    for named in (path, tmp_path / "none.h5"):
        with pytest.raises(StudyFileError):
            StudyFile(named)


def test_a_flipped_bit_in_the_pixels_is_found_and_the_study_named(tmp_path: Path) -> None:
    path = write_study_file(tmp_path / "a.h5")
    assert verify_digests(path, Silence())[0] == 24
    with StudyFile(path) as file:
        page = file.images(5)[0].tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(page) + 1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(StudyFileError, match="image 0 of study 5 differs from its digest"):
        verify_digests(path, Silence())


def test_the_digest_knows_the_content_and_not_the_time(tmp_path: Path) -> None:
    first = write_study_file(tmp_path / "a.h5", seed=1)
    later = write_study_file(tmp_path / "b.h5", seed=1, created="2027-01-01T00:00:00+00:00")
    other = write_study_file(tmp_path / "c.h5", seed=2)
    digests = [StudyFile(path).digest for path in (first, later, other)]
    assert digests[0] == digests[1] != digests[2]


def test_the_writer_refuses_what_no_reader_would_take(tmp_path: Path) -> None:
    writer = StudyFileWriter(tmp_path / "a.h5", header(), 5)
    for num_views, num_images in ((21, 21), (0, 0), (1, 2)):
        row = StudyRow("s", "p", Split.TRAIN, (View.PA,) * num_views, (0.0,) * 14)
        with pytest.raises(ValueError, match=f"of {num_views} views has {num_images} images"):
            writer.append(row, np.zeros((num_images, 64, 64), np.uint8))
    with pytest.raises(StudyFileError, match="1 or more studies"):
        writer.close()
