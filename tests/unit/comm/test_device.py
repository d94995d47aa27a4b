"""A rank says so where mpirun has bound it to one core of many."""

import os
from types import SimpleNamespace

import pytest

from cxr_hvd.comm.device import binding_remark

BY_MPIRUN = {"OMPI_COMM_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("own", "cores", "ranks_per_node", "environment", "is_said"),
    [
        (1, 16, 2, BY_MPIRUN, True),
        (8, 16, 2, BY_MPIRUN, False),
        (1, 2, 2, BY_MPIRUN, False),
        (1, 16, 2, {}, False),
    ],
)
def test_idle_cores_are_named_with_the_words_that_use_them(
    own: int,
    cores: int,
    ranks_per_node: int,
    environment: dict[str, str],
    is_said: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(own)))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    said = binding_remark(SimpleNamespace(ranks_per_node=ranks_per_node), environment)
    assert (said is not None) == is_said
    if said:
        assert "1 of 16 cores" in said and "--bind-to none" in said and "pe=8" in said
