"""The estimate of a step keeps its laws: units, bounds, and what grows with what."""

import io
from dataclasses import astuple, replace
from math import isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_hvd.console import Console
from cxr_hvd.errors import UsageError
from cxr_hvd.partial.cost import (
    USUAL_LAYOUTS,
    Layout,
    Link,
    check_compute_s,
    overlapped_s,
    predict,
    read_layout,
    read_link,
    scale_rows,
    scale_table,
    sum_s,
)
from cxr_hvd.partial.plan import SharingPlan, build_plan
from cxr_hvd.partial.tensor_spec import Kind, TensorSpec

SLOW = read_link(20, 100)
MIB = 1 << 20

layouts = st.builds(Layout, st.integers(1, 70), st.integers(1, 20))
links = st.builds(Link, st.floats(0, 0.3), st.floats(1e5, 1e10))
sizes = st.lists(st.integers(0, 1 << 26), min_size=1, max_size=4)


def plan(every: int = 1, exchange: str = "weights", wire: str = "float32", overlap: bool = False) -> SharingPlan:
    specs = [
        TensorSpec(f"{block}.conv", block, Kind.PARAMETER, (elements,), "float32")
        for block, elements in (("stem", 60_000), ("denseblock3", 2_900_000), ("transition3", 500_000))
    ]
    return build_plan(specs, ["stem"], every=every, exchange=exchange, wire=wire, overlap=overlap)  # type: ignore[arg-type]


@given(sizes, layouts, links, st.booleans(), st.integers(1, 1 << 24))
def test_more_bytes_sites_ranks_and_delay_never_cost_less(
    buffer_bytes: list[int], layout: Layout, link: Link, is_ring: bool, more: int
) -> None:
    seconds = sum_s(buffer_bytes, layout, link, is_ring) * (1 - 1e-12)
    assert sum_s([size + more for size in buffer_bytes], layout, link, is_ring) >= seconds
    assert sum_s([*buffer_bytes, more], layout, link, is_ring) >= seconds
    assert sum_s(buffer_bytes, replace(layout, num_sites=layout.num_sites + 1), link, is_ring) >= seconds
    assert sum_s(buffer_bytes, replace(layout, ranks_per_site=layout.ranks_per_site + 1), link, is_ring) >= seconds
    assert sum_s(buffer_bytes, layout, replace(link, delay_s=link.delay_s + 0.01), is_ring) >= seconds


@given(links, st.integers(1, 20))
def test_one_site_takes_no_link(link: Link, ranks: int) -> None:
    assert predict(plan(), Layout(1, ranks), link, 0.5).step_s == 0.5


@given(st.integers(2, 64), st.booleans())
def test_without_delay_a_sum_takes_its_bytes_over_the_rate(num_sites: int, is_ring: bool) -> None:
    link, num_bytes = read_link(0, 100), 32 * MIB
    line_s = 2 * (num_sites - 1) / num_sites * num_bytes / (100e6 / 8)
    assert sum_s([num_bytes], Layout(num_sites, 1), link, is_ring) == pytest.approx(line_s)


def test_without_bytes_a_sum_takes_its_rounds_times_the_delay() -> None:
    layout, link = Layout(64, 16), Link(0.02, float("inf"))
    assert sum_s([MIB], layout, link) == pytest.approx(2 * 6 * 0.02)
    assert sum_s([MIB], layout, link, is_ring=True) == pytest.approx(2 * 1023 * 0.02)


@given(st.integers(2, 200), layouts)
def test_every_divides_what_the_exchange_takes(every: int, layout: Layout) -> None:
    often, seldom = predict(plan(), layout, SLOW, 0.3), predict(plan(every=every), layout, SLOW, 0.3)
    assert seldom.exchange_s == pytest.approx(often.exchange_s / every)
    assert (seldom.compute_s, seldom.status_s) == (often.compute_s, often.status_s)


@given(layouts, st.floats(0, 100), st.sampled_from(["weights", "gradients"]))
def test_a_step_is_the_sum_of_its_parts(layout: Layout, compute_s: float, exchange: str) -> None:
    cost = predict(plan(exchange=exchange), layout, SLOW, compute_s)
    assert all(isfinite(part) and part >= 0 for part in astuple(cost))
    assert cost.step_s == pytest.approx(cost.compute_s + cost.exchange_s + cost.status_s - cost.hidden_s)
    assert compute_s <= cost.step_s <= cost.step_s_by_ring * (1 + 1e-12)
    assert cost.hidden_s <= compute_s, "nothing hides behind what is not computed"
    assert exchange == "gradients" or cost.hidden_s <= cost.status_s, "weights are waited for, the status is not"


def test_buffers_of_a_plan_are_taken_as_they_travel() -> None:
    two_sites, line = Layout(2, 1), Link(0.0, 1e6)
    assert predict(plan(), two_sites, line).exchange_s == pytest.approx(4 * 3.4)  # the stem is private
    assert predict(plan(wire="bfloat16"), two_sites, line).exchange_s == pytest.approx(2 * 3.4)


def test_all_blocks_of_a_plan_pay_for_the_delay_once() -> None:
    assert len(plan().buffers()) > 2
    line = Link(0.02, float("inf"))
    assert predict(plan(), Layout(2, 1), line).exchange_s == pytest.approx(2 * line.delay_s)


@given(st.integers(1, 300), st.integers(1, 1 << 26), layouts, links)
def test_fragments_move_the_bytes_of_the_whole_and_pay_for_the_delay_each(
    every: int, num_bytes: int, layout: Layout, link: Link
) -> None:
    count = plan(every=every, overlap=True).num_fragments
    whole_s, delay_s = sum_s([num_bytes], layout, link), sum_s([0], layout, link)
    parts_s = overlapped_s(num_bytes, every, layout, link)
    rounding_s = sum_s([count], layout, link)
    assert whole_s + (count - 1) * delay_s <= parts_s * (1 + 1e-9)
    assert parts_s <= (whole_s + (count - 1) * delay_s + rounding_s) * (1 + 1e-9)


@given(st.integers(1, 64), layouts, st.floats(0.01, 10))
def test_an_average_in_the_background_costs_what_the_line_needs_beyond_its_steps(
    every: int, layout: Layout, compute_s: float
) -> None:
    shared = plan(every=every, overlap=True)
    cost = predict(shared, layout, SLOW, compute_s)
    line_s = overlapped_s(shared.bytes_per_exchange(), every, layout, SLOW) / every
    late_s = max(0.0, cost.status_s - compute_s)
    assert cost.step_s == pytest.approx(max(compute_s, line_s) + late_s)


def test_options_are_read_in_their_units() -> None:
    assert read_layout("64x16") == Layout(64, 16)
    assert read_link(20, 100) == Link(0.02, 12.5e6)
    assert check_compute_s(0.5) == 0.5


@pytest.mark.parametrize(
    "text", ["", "64", "64x", "x16", "0x4", "4x0", "-4x4", "4x4x4", "4,4", "²x2", "9999x9999"]
)
def test_a_layout_that_is_none_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"--scale .*expected") as caught:
        read_layout(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("delay_ms", "rate_mbit"), [(-1, 100), (float("nan"), 100), (20, 0), (20, float("nan"))])
def test_a_link_that_is_none_is_refused(delay_ms: float, rate_mbit: float) -> None:
    with pytest.raises(UsageError, match=r"--link-(ms|mbit) .*expected"):
        read_link(delay_ms, rate_mbit)


@pytest.mark.parametrize("compute_s", [-0.1, float("nan"), float("inf")])
def test_computing_that_is_none_is_refused(compute_s: float) -> None:
    with pytest.raises(UsageError, match=r"--compute-s .*expected"):
        check_compute_s(compute_s)


def test_the_table_says_what_it_counts_and_holds_two_digits() -> None:
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(scale_table(plan(every=10), USUAL_LAYOUTS, SLOW, 0.2468))
    text = " ".join(console.export_text().split())
    for words in ("64x16", "every 10 steps", "20 ms one way", "100 Mbit/s", "rounds of messages times its delay"):
        assert words in text
    assert "0.25" in text and "0.2468" not in text
    rows = scale_rows(plan(), USUAL_LAYOUTS, SLOW)
    assert [row["ranks"] for row in rows] == [1, 2, 16, 256, 1024]
