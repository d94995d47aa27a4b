"""Ranks are dealt out to sites, or the job is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_hvd.comm.sites import NOT_SET, Topology, assign
from cxr_hvd.errors import ConfigError


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.randoms())
def test_ranks_are_dealt_out_whole(counts: list[int], random: object) -> None:
    sites = {f"site{index}": count for index, count in enumerate(counts)}
    dealt = assign(sites, [NOT_SET] * sum(counts))
    assert [dealt.count(index) for index in range(len(counts))] == counts
    random.shuffle(dealt)  # type: ignore[attr-defined]
    assert assign(sites, dealt) == dealt
    topologies = [Topology(rank, tuple(sites), tuple(dealt)) for rank in range(len(dealt))]
    assert sum(topology.is_leader for topology in topologies) == 1
    assert sum(topology.is_site_leader for topology in topologies) == len(counts)
    for topology in topologies:
        assert topology.ranks_of_site[topology.rank_in_site] == topology.rank


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([NOT_SET], "want 3 ranks .a 1, b 2., found 1: start with -np 3, or train one alone with --site a"),
        ([NOT_SET] * 4, "found 4: start with -np 3"),
        ([0, NOT_SET, 1], "CXR_SITE is not set on rank 1"),
        ([0, 0, 1], "CXR_SITE deals them out as"),
    ],
)
def test_ranks_that_do_not_fit_are_an_error(said: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        assign({"a": 1, "b": 2}, said)
