"""Blocks, their folder and identifiers: what the ranks leave behind, and what the merge makes of it."""

import os
from pathlib import Path

import numpy as np
import pytest

from cxr_hvd.errors import DataError, StudyFileError, UsageError
from cxr_hvd.secret import create_key
from cxr_hvd.study.layout import Split, View
from cxr_hvd.study.study_file import StudyFile
from lab.study_files import header
from preprocess import identifiers
from preprocess.parallel.blocks import fill_block, is_whole, plan_blocks
from preprocess.parallel.merge import Merger
from preprocess.parallel.work_folder import WorkFolder
from preprocess.plan import created_now
from preprocess.quarantine import parse_share
from preprocess.records import BadImageError, ImageRecord, StudyRecord
from preprocess.selection import Selection

SIZE = 8
NUM_IMAGES = [3, 1, 20, 2, 2, 7, 1, 20, 20, 4]


def _selection(num_images: list[int]) -> Selection:
    """Studies whose images are named by number, `bad` where the number is divisible by 27."""
    numbers = iter(range(1, 1000))
    studies = [
        StudyRecord(
            patient_id=f"p{index}",
            study_id=f"s{index}",
            split=None,
            labels=(0.0,) * 14,
            images=tuple(
                ImageRecord(Path(str(number)), View(number % 5), f"row {number}")
                for _, number in zip(range(num), numbers, strict=False)
            ),
        )
        for index, num in enumerate(num_images)
    ]
    return Selection(tuple(studies), tuple(Split(index % 3) for index in range(len(studies))), "all")


def _load(image: ImageRecord) -> np.ndarray:
    number = int(str(image.path))
    if number % 27 == 0:
        raise BadImageError(image.where, "torn")
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)


def _fill(folder: WorkFolder, selection: Selection, blocks: list[range]) -> None:
    for number, block in enumerate(blocks):
        studies = [selection.studies[index] for index in block]
        fill_block(folder.block(number), folder.digest, studies, _load, lambda: None)


def _merger(folder: WorkFolder, selection: Selection, blocks: list[range], advance: list[int]) -> Merger:
    return Merger(folder, header(image_size=SIZE), selection, blocks, identifiers.keep_id, advance.append)


def test_the_merge_puts_every_good_image_where_it_belongs(tmp_path: Path) -> None:
    selection, advanced = _selection([*NUM_IMAGES, 1]), list[int]()
    blocks = plan_blocks([*NUM_IMAGES, 1])
    folder = WorkFolder(tmp_path / "out.h5", "a" * 64).open()
    _fill(folder, selection, blocks)
    assert folder.block(0).stat().st_mode & 0o777 == 0o600 and folder.path.stat().st_mode & 0o777 == 0o700
    with _merger(folder, selection, blocks, advanced) as merger:
        merger.merge_while(lambda block: block < 1)
        assert merger.num_studies == len(blocks[0])
        merger.merge_while(lambda block: True)
        folder.publish(merger.complete())
        folder.remove()
    assert advanced == [*NUM_IMAGES, 1]
    # Images 27 and 54 are bad, and the last study's only image, the 81st.
    assert merger.bad == [(f"row {number}", "torn") for number in range(27, 82, 27)]
    assert merger.num_left_out == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]
    with StudyFile(tmp_path / "out.h5") as file:
        assert len(file) == len(NUM_IMAGES) == merger.num_studies
        for index, study in enumerate(selection.studies[:-1]):
            good = [image for image in study.images if int(str(image.path)) % 27]
            assert file.num_images[index] == len(good)
            assert file.views[index, : len(good)].tolist() == [image.view for image in good]
            images_NHW = file.images(index)
            file.check_images(index, images_NHW)
            np.testing.assert_array_equal(images_NHW, np.stack([_load(image) for image in good]))


def test_a_block_is_used_again_only_where_it_is_whole_and_of_this_job(tmp_path: Path) -> None:
    selection = _selection(NUM_IMAGES)
    block = plan_blocks(NUM_IMAGES)[0]
    studies = [selection.studies[index] for index in block]
    path = tmp_path / "one.block"
    assert not is_whole(path, "job", studies, SIZE * SIZE)
    fill_block(path, "job", studies, _load, lambda: None)
    assert is_whole(path, "job", studies, SIZE * SIZE)
    assert not is_whole(path, "other job", studies, SIZE * SIZE)
    assert not is_whole(path, "job", studies[:-1], SIZE * SIZE)
    content = path.read_bytes()
    for position in (0, SIZE * SIZE * 5 + 3, len(content) - 30, len(content) - 3):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        assert not is_whole(path, "job", studies, SIZE * SIZE)
    for length in (0, 7, 1000, len(content) - 1):
        path.write_bytes(content[:length])
        assert not is_whole(path, "job", studies, SIZE * SIZE)


def test_a_missing_or_foreign_block_leaves_the_earlier_file(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    out.write_bytes(b"earlier")
    selection, blocks = _selection(NUM_IMAGES), plan_blocks(NUM_IMAGES)
    folder = WorkFolder(out, "a" * 64).open()
    other = WorkFolder(out, "b" * 64)
    _fill(other, selection, blocks)
    other.block(0).rename(folder.block(0))
    for number, error in ((0, StudyFileError), (1, DataError)):
        with _merger(folder, selection, blocks, []) as merger, pytest.raises(error):
            merger._next = number
            merger.merge_while(lambda block: True)
    assert folder.leave()
    assert out.read_bytes() == b"earlier"


def test_the_lock_is_one_jobs_alone_and_ends_with_it(tmp_path: Path) -> None:
    first = WorkFolder(tmp_path / "out.h5", "a" * 64).open()
    with pytest.raises(UsageError, match=r"expected to write it alone, found another job at it \(process \d+ on"):
        WorkFolder(tmp_path / "out.h5", "b" * 64).open()
    WorkFolder(tmp_path / "other.h5", "b" * 64).open().remove()
    assert not first.leave()
    assert list(tmp_path.iterdir()) == []
    (second := WorkFolder(tmp_path / "out.h5", "b" * 64).open()).block(0).touch()
    assert second.leave()
    third = WorkFolder(tmp_path / "out.h5", "c" * 64).open()
    assert not second.block(0).exists()
    third.remove()


@pytest.mark.parametrize("is_link", [True, False])
def test_a_work_folder_that_somebody_planted_is_not_used(
    is_link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = WorkFolder(tmp_path / "out.h5", "ab" * 32)
    (tmp_path / "theirs").mkdir(mode=0o755)
    if is_link:
        folder.path.symlink_to(tmp_path / "theirs")
    else:
        folder.path.mkdir()
        monkeypatch.setattr(os, "geteuid", lambda: folder.path.stat().st_uid + 1)
    with pytest.raises(UsageError, match="of this user"):
        folder.open()
    assert not list((tmp_path / "theirs").iterdir())


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot write the study file here"):
        WorkFolder(tmp_path / "none" / "out.h5", "a" * 64).open()


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.02", 0.02), ("0", 0.0), ("100%", 1.0)])
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["", "%", "one", "1%%", "2", "-1%", "nan", "101%"])
def test_no_shares(text: str) -> None:
    with pytest.raises(UsageError, match="--max-bad: expected a share"):
        parse_share(text)


def test_the_time_of_writing_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert created_now() == "1970-01-01T00:00:00+00:00"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        created_now()


def test_keyed_hashes_tell_kinds_and_keys_apart(tmp_path: Path) -> None:
    create_key(tmp_path / "a.key")
    hashed = identifiers.keyed_hash(identifiers.load_key(tmp_path / "a.key"))
    other = identifiers.keyed_hash(bytes(32))
    hashes = {hashed("patient", "1"), hashed("study", "1"), hashed("patient", "2"), other("patient", "1")}
    assert len(hashes) == 4
    with pytest.raises(UsageError, match="cannot make a key"):
        create_key(tmp_path / "a.key")
    (tmp_path / "short").write_bytes(b"short")
    (tmp_path / "short").chmod(0o600)
    with pytest.raises(DataError, match="found 5"):
        identifiers.load_key(tmp_path / "short")
