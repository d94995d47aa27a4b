"""Staged copies: the same bytes or an error, never anything between; one copy for all ranks of a node."""

import os
import threading
from pathlib import Path

import pytest

from cxr_hvd.data import staging
from cxr_hvd.data.staging import stage
from cxr_hvd.errors import StudyFileError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "site.h5"
    path.write_bytes(bytes(range(256)) * 1000)
    return path


def test_a_copy_has_the_bytes_of_its_source_and_is_for_this_user_alone(source: Path, tmp_path: Path) -> None:
    copy = stage(source, tmp_path / "scratch")
    assert copy.read_bytes() == source.read_bytes() and copy.parent == tmp_path / "scratch"
    assert copy.stat().st_mode & 0o077 == 0 and copy.parent.stat().st_mode & 0o077 == 0


def test_a_whole_copy_is_taken_and_a_damaged_one_made_anew(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = stage(source, tmp_path / "scratch")
    made = copy.stat().st_ino
    assert stage(source, tmp_path / "scratch").stat().st_ino == made
    damaged = bytearray(copy.read_bytes())
    damaged[1234] ^= 1
    copy.write_bytes(damaged)
    assert stage(source, tmp_path / "scratch").read_bytes() == source.read_bytes()
    assert copy.stat().st_ino != made


def test_a_source_that_has_changed_is_copied_again(source: Path, tmp_path: Path) -> None:
    copy = stage(source, tmp_path / "scratch")
    source.write_bytes(b"another one" * 20_000)
    assert stage(source, tmp_path / "scratch") == copy
    assert copy.read_bytes() == source.read_bytes()


def test_a_disk_that_does_not_keep_what_was_written_is_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced_badly(path: Path):  # type: ignore[no-untyped-def]
        from contextlib import contextmanager

        @contextmanager
        def bad():  # type: ignore[no-untyped-def]
            beside = path.with_suffix(".part")
            yield beside
            content = bytearray(beside.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)

        return bad()

    monkeypatch.setattr(staging, "replaced_file", replaced_badly)
    with pytest.raises(StudyFileError, match="that disk is bad"):
        stage(source, tmp_path / "scratch")
    assert not list((tmp_path / "scratch").glob("*.h5"))


def test_a_source_that_changes_meanwhile_is_an_error(source: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match="was changed while it was staged"):
        stage(source, tmp_path / "scratch", on_part=lambda: source.write_bytes(b"new"))


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_cannot_be_staged_is_one_line(source: Path, tmp_path: Path, is_folder: bool) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(StudyFileError, match=r"cannot be staged in .*go without --stage"):
        stage(
            source if is_folder else tmp_path / "none.h5",
            blocked / "scratch" if is_folder else tmp_path / "scratch",
        )


def test_no_link_is_followed_to_a_lock(source: Path, tmp_path: Path) -> None:
    scratch, victim = tmp_path / "scratch", tmp_path / "victim"
    copy = stage(source, scratch)
    victim.write_text("a user's")
    copy.with_suffix(".lock").unlink()
    copy.with_suffix(".lock").symlink_to(victim)
    with pytest.raises(StudyFileError, match="cannot be staged"):
        stage(source, scratch)
    assert victim.read_text() == "a user's"


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "site.h5")
    with pytest.raises(StudyFileError, match="expected a study file"):
        stage(tmp_path / "site.h5", tmp_path / "scratch")


def test_ranks_of_a_node_make_one_copy(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[Path] = []
    made = staging._copy
    monkeypatch.setattr(staging, "_copy", lambda *given: (copies.append(given[1]), made(*given)))
    found: list[Path] = []
    ranks = [threading.Thread(target=lambda: found.append(stage(source, tmp_path / "scratch"))) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(copies) == 1 and len(set(found)) == 1 and len(found) == 4
