"""Shards and identifiers: what the ranks leave behind, and what the merge makes of it."""

from pathlib import Path

import numpy as np
import pytest

from cxr_hvd.errors import CxrHvdError, DataError, StudyFileError, UsageError
from cxr_hvd.study.study_file import Split, StudyFile, StudyRow, View
from preprocess import identifiers, write
from tests.study_files import header

SIZE = 8


def _rows(num_images: list[int]) -> list[StudyRow]:
    return [
        StudyRow(f"s{index}", f"p{index}", Split(index % 3), (View.PA,) * num, (0.0,) * 14)
        for index, num in enumerate(num_images)
    ]


def _write_shards(out: Path, images: list[np.ndarray], owners: list[int]) -> None:
    for rank in range(max(owners) + 1):
        with write.ShardWriter(out, rank) as shard:
            for one, owner in zip(images, owners, strict=True):
                if owner == rank:
                    shard.add(one)


@pytest.mark.parametrize("num_ranks", [1, 2, 5])
def test_the_merge_puts_every_image_where_it_belongs(tmp_path: Path, num_ranks: int) -> None:
    num_images = [3, 1, 20, 2, 2, 7, 1]
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (num, SIZE, SIZE), dtype=np.uint8) for num in num_images]
    owners, out = write.partition(num_images, num_ranks), tmp_path / "out.h5"
    _write_shards(out, images, owners)
    assert write.shard_path(out, 0).stat().st_mode & 0o777 == 0o600
    advanced: list[int] = []
    write.merge(out, header(image_size=SIZE), _rows(num_images), owners, advanced.append)
    assert advanced == num_images
    with StudyFile(out) as file:
        for index, one in enumerate(images):
            np.testing.assert_array_equal(file.images(index), one)


def test_a_short_or_missing_shard_leaves_the_earlier_file(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    out.write_bytes(b"earlier")
    _write_shards(out, [np.zeros((2, SIZE, SIZE), np.uint8)], [0])
    for num_images, error in (([3], StudyFileError), ([1, 1], CxrHvdError)):
        with pytest.raises(error):
            write.merge(
                out, header(image_size=SIZE), _rows(num_images), list(range(len(num_images))), lambda num: None
            )
        assert out.read_bytes() == b"earlier"
        assert sorted(path.name for path in tmp_path.iterdir()) == [".out.h5.shard-0", "out.h5"]


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot write the study file here"):
        write.ShardWriter(tmp_path / "none" / "out.h5", 0)


def test_the_time_of_writing_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert write.created_now() == "1970-01-01T00:00:00+00:00"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        write.created_now()


def test_keyed_hashes_tell_kinds_and_keys_apart(tmp_path: Path) -> None:
    identifiers.create_key(tmp_path / "a.key")
    hashed = identifiers.keyed_hash(identifiers.load_key(tmp_path / "a.key"))
    other = identifiers.keyed_hash(bytes(32))
    told = {hashed("patient", "1"), hashed("study", "1"), hashed("patient", "2"), other("patient", "1")}
    assert len(told) == 4
    with pytest.raises(UsageError, match="cannot make a key"):
        identifiers.create_key(tmp_path / "a.key")
    (tmp_path / "short").write_bytes(b"short")
    with pytest.raises(DataError, match="found 5"):
        identifiers.load_key(tmp_path / "short")
