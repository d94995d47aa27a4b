"""What Horovod says of a failed exchange is told in one line, where it says more than that a rank is gone."""

import pytest

from cxr_hvd.comm.horovod import MAX_CAUSE, _cause


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
