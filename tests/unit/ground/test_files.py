"""Files are whole or absent, and nobody's link or FIFO is written to."""

import os
from pathlib import Path

import pytest

from cxr_hvd.errors import UsageError
from cxr_hvd.files import create_private, part_beside, point_link, replaced_file, replaced_folder, write_text


def test_an_error_leaves_the_earlier_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "earlier")
    with pytest.raises(RuntimeError), replaced_file(path) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_earlier_folder_and_nothing_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for content in ("earlier", "later"):
        with replaced_folder(folder) as beside:
            (beside / "in").mkdir()
            (beside / "in" / "file").write_text(content)
        assert (folder / "in" / "file").read_text() == content and folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(RuntimeError), replaced_folder(folder) as beside:
        (beside / "half").write_text("half")
        raise RuntimeError
    assert [path.name for path in folder.iterdir()] == ["in"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_written_file_replaces_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "earlier")
    write_text(path, "later")
    assert path.read_text() == "later"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_is_its_owners_alone_however_it_is_filled(tmp_path: Path) -> None:
    path, before = tmp_path / "file", os.umask(0)
    try:
        with replaced_file(path) as beside, beside.open("w") as file:
            file.write("patients")
            assert beside.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_no_link_is_followed_and_no_name_beside_can_be_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, victim = tmp_path / "file", tmp_path / "victim"
    assert len({part_beside(path) for _ in range(100)}) == 100
    # What if it could: a link that somebody planted there.
    monkeypatch.setattr("cxr_hvd.files.secrets.token_hex", lambda _: "guessed")
    part_beside(path).symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_text(path, "patients")
    with pytest.raises(FileExistsError):
        point_link(path, tmp_path / "target")
    with pytest.raises(FileExistsError):
        create_private(part_beside(path))
    assert not victim.exists() and not path.exists()


def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("a user's")
    path = tmp_path / "file"
    for make in (os.mkfifo, Path.mkdir, lambda path: path.symlink_to(tmp_path / "victim")):
        make(path)
        before = path.lstat()
        with pytest.raises(UsageError, match="not replaced"):
            write_text(path, "new")
        assert os.path.samestat(path.lstat(), before)
        path.rmdir() if path.is_dir() else path.unlink()
    assert (tmp_path / "victim").read_text() == "a user's"


def test_a_link_moves_in_one_step(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        point_link(tmp_path / "latest", tmp_path / name)
        assert (tmp_path / "latest").readlink() == Path(name)
