"""Which launches go over a line between institutions: those to other hosts that no scheduler chose."""

import shlex

import pytest

from cxr_hvd.launch.slow_line import SCHEDULERS, crosses_hosts


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", False),
        ("mpirun -np 2", False),
        ("mpirun -np 2 -host localhost:2", False),
        ("mpirun -np 1 -host hospital-a true : -np 1 -host hospital-b true", True),
        ("mpirun --host localhost,10.79.0.2:1", True),
        ("mpirun --hostfile hosts -np 2", True),
        ("mpirun --hostfile=hosts", True),
        ("horovodrun -np 2 -H localhost:1,hospital-b:1", True),
        ("horovodrun -np 2 -H localhost:2", False),
        ("horovodrun -np 2 -H", False),
        ("srun --mpi=pmix -n 2", False),
    ],
)
def test_other_hosts_are_named(words: str, expected: bool) -> None:
    assert crosses_hosts(shlex.split(words), {}) == expected
    for name in SCHEDULERS:
        assert not crosses_hosts(shlex.split(words), {name: "7"})
