"""How a difference between ranks is named, and how a rank alone agrees with itself."""

import pytest

from cxr_hvd.comm.communicator import allgather_text, together
from cxr_hvd.comm.contract import first_difference, flat_items
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology
from cxr_hvd.errors import DataError


def test_a_difference_names_item_sites_and_values() -> None:
    topology = Topology(0, ("north", "south"), (0, 1, 1))
    statements = [{"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "1", "b": "3", "c": "4"}]
    said = first_difference(topology, statements)
    assert said.startswith(
        "the sites differ on b: '2' at site north, rank 0; '3' at site south, rank 1, site south"
    )
    assert "1 more items differ" in said


def test_a_long_difference_shows_where_it_begins() -> None:
    topology = Topology(0, ("north", "south"), (0, 1))
    said = first_difference(topology, [{"a": "x" * 500 + "left"}, {"a": "x" * 500 + "right"}])
    assert "left" in said
    assert "right" in said
    assert len(said) < 300


def test_a_missing_item_is_a_difference() -> None:
    said = first_difference(Topology(0, ("n", "s"), (0, 1)), [{"a": "1"}, {}])
    assert "'nothing' at site s" in said


def test_nested_settings_become_dotted_names() -> None:
    assert flat_items({"a": {"b": 1, "c": [1]}, "d": None}, "config") == {
        "config.a.b": "1",
        "config.a.c": "[1]",
        "config.d": "null",
    }


def test_alone_a_rank_hears_itself_and_its_errors_stay() -> None:
    comm = LocalComm()
    assert allgather_text(comm, "grüß", "test") == ["grüß"]
    assert allgather_text(comm, "", "test") == [""]
    with pytest.raises(DataError, match="own"), together(comm, "testing"):
        raise DataError("own")
