"""Files are whole or absent."""

from pathlib import Path

import pytest

from cxr_hvd.atomic import point_link, replaced_file, write_text


def test_an_error_leaves_the_earlier_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "earlier")
    with pytest.raises(RuntimeError), replaced_file(path) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_replaces_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "earlier")
    write_text(path, "later")
    assert path.read_text() == "later"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_moves_in_one_step(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        point_link(tmp_path / "latest", tmp_path / name)
        assert (tmp_path / "latest").readlink() == Path(name)
