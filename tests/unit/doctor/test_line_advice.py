"""Settings for a line: the mildest that keep a step near that without any exchange, and never a worse one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_hvd.doctor.line.advice import BESIDE_A_STEP, ROOM, WIRE_BYTES, LineAdvice, advise, choose_line
from cxr_hvd.partial.cost import COMPUTE_S, Link, read_link

C_BYTES, D_BYTES = 28_420_664, 17_800_000
WIRES = list(WIRE_BYTES)

links = st.builds(Link, st.floats(0, 0.3), st.floats(1e4, 1e10))
sizes = st.integers(0, 1 << 28)
computes = st.floats(0.005, 20)


def advise_for(delay_ms: float, rate_mbit: float, num_bytes: int, compute_s: float = COMPUTE_S) -> LineAdvice:
    return advise(read_link(delay_ms, rate_mbit), num_bytes, compute_s)


@pytest.mark.parametrize(
    ("delay_ms", "rate_mbit", "num_bytes", "line", "every", "wire", "overlap"),
    [
        (0.1, 10_000, C_BYTES, "fast", 1, "float32", False),
        (1, 1_000, C_BYTES, "slow", 2, "float32", True),
        (20, 100, C_BYTES, "slow", 8, "bfloat16", True),
        (20, 100, D_BYTES, "slow", 8, "bfloat16", True),
        (20, 200, D_BYTES, "slow", 8, "float32", True),
        (50, 10, C_BYTES, "slow", 48, "int8", True),
        (50, 10, 80_000, "slow", 2, "float32", True),
        (20, 100, 0, "slow", 1, "float32", False),
    ],
)
def test_usual_lines(
    delay_ms: float, rate_mbit: float, num_bytes: int, line: str, every: int, wire: str, overlap: bool
) -> None:
    advice = advise_for(delay_ms, rate_mbit, num_bytes)
    assert (advice.line, advice.every, advice.wire, advice.overlap) == (line, every, wire, overlap)
    assert advice.keeps_up and advice.step_s <= BESIDE_A_STEP * COMPUTE_S


def test_a_line_that_carries_too_little_is_called_so() -> None:
    advice = advise_for(50, 0.5, C_BYTES)
    assert not advice.keeps_up and advice.step_s > COMPUTE_S
    assert (advice.wire, advice.overlap) == ("int8", True)


def test_settings_are_those_that_differ_from_the_defaults() -> None:
    assert advise_for(0.1, 10_000, C_BYTES).settings == ()
    assert advise_for(1, 1_000, C_BYTES).settings == ("sharing.every=2", "sharing.overlap=true")
    assert advise_for(20, 100, C_BYTES).settings[-1] == "sharing.wire=bfloat16"


@given(links, sizes, computes)
def test_the_line_carries_what_is_advised(link: Link, num_bytes: int, compute_s: float) -> None:
    advice = advise(link, num_bytes, compute_s)
    assert compute_s <= advice.step_s and advice.line == choose_line(link)
    if advice.overlap and advice.keeps_up:
        assert advice.exchange_s <= ROOM * advice.every * compute_s * (1 + 1e-9)
        assert advice.step_s == compute_s


@given(links, sizes, computes, st.floats(1, 100))
def test_a_faster_line_never_asks_for_more(link: Link, num_bytes: int, compute_s: float, factor: float) -> None:
    slow = advise(link, num_bytes, compute_s)
    fast = advise(Link(link.delay_s / factor, link.bytes_per_s * factor), num_bytes, compute_s)

    def strength(advice: LineAdvice) -> tuple[bool, bool, int, int]:
        is_long = advice.every > 8
        wire = WIRES.index(advice.wire)
        return (advice.overlap, is_long, *((advice.every, wire) if is_long else (wire, advice.every)))

    assert strength(fast) <= strength(slow)
