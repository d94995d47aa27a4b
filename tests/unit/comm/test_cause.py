"""What Horovod says of a failed exchange is told in one line; so is a Horovod that sees one rank of several."""

import pytest

from cxr_hvd.comm.horovod import MAX_CAUSE, _cause, _check_size
from cxr_hvd.errors import CxrHvdError


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "ncclCommInitRank failed: invalid usage (run with NCCL_DEBUG=WARN for details)",
            " (Horovod: ncclCommInitRank failed: invalid usage (run with NCCL_DEBUG=WARN for details))",
        ),
        (
            "Mismatched ALLREDUCE CPU/GPU device selection:\nOne rank specified device CPU",
            " (Horovod: Mismatched ALLREDUCE CPU/GPU device selection: One rank specified device CPU)",
        ),
        (
            "[/tmp/build/gloo/gloo/transport/tcp/pair.cc:589] Connection closed by peer [10.79.0.2]:4711",
            " (Horovod: Connection closed by peer [10.79.0.2]:4711)",
        ),
        ("Horovod has been shut down. This was caused by an exception on one of the ranks", ""),
        ("", ""),
    ],
)
def test_a_cause_is_one_line_without_places_in_foreign_source(text: str, cause: str) -> None:
    assert _cause(RuntimeError(text)) == cause


def test_a_long_cause_is_cut() -> None:
    assert len(_cause(RuntimeError("x" * 9000))) < MAX_CAUSE + 20


@pytest.mark.parametrize(("num_ranks", "started"), [(1, 1), (1, None), (2, 2), (2, 1), (3, None)])
def test_ranks_that_see_each_other_are_in_order(num_ranks: int, started: int | None) -> None:
    _check_size(num_ranks, started, has_mpi=True)


@pytest.mark.parametrize(("has_mpi", "mend"), [(True, "make setup"), (False, "horovodrun --gloo -np 4")])
def test_a_rank_that_sees_itself_alone_says_what_mends_it(has_mpi: bool, mend: str) -> None:
    with pytest.raises(CxrHvdError, match=f"started 4 ranks, and Horovod sees one.*{mend}"):
        _check_size(1, 4, has_mpi)
