"""The cost model keeps its laws: units, bounds, what grows with what; a fit finds constants in noisy points."""

from dataclasses import astuple, replace
from math import isfinite
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cxr_hvd.errors import UsageError
from cxr_hvd.partial.cost import (
    ALGORITHMS,
    LEAST,
    USUAL_LAYOUTS,
    Algorithm,
    Batch,
    Costs,
    Fit,
    Layout,
    Link,
    Point,
    batch_of,
    batch_s,
    check_compute_s,
    fit,
    load_fit,
    predict,
    read_layout,
    read_link,
    relative_error,
    scale_rows,
    scale_table,
)
from cxr_hvd.partial.plan import Kind, SharingPlan, TensorSpec, build_plan

KNOWN = Costs(1e-3, 20e-6, 0.25e-9, 1e-9, 3.0, 1.5, 1.2)
SLOW = read_link(20, 100)
CABLE = Link(0.0, float("inf"))
KNOWN_FIT = Fit(KNOWN, 0.24, 0.1, 0.4)
MIB = 1 << 20

algorithms = st.sampled_from(ALGORITHMS)
layouts = st.builds(Layout, st.integers(1, 70), st.integers(1, 20))
links = st.builds(Link, st.floats(0, 0.3), st.floats(1e5, 1e10))
batches = st.builds(
    Batch,
    st.lists(st.integers(0, 1 << 26), max_size=4).map(tuple),
    st.lists(st.integers(0, 1 << 26), max_size=3).map(tuple),
    st.integers(0, 100),
)


def plan(every: int = 1, exchange: str = "weights", wire: str = "float32") -> SharingPlan:
    specs = [
        TensorSpec(f"{block}.conv", block, Kind.PARAMETER, (elements,), "float32")
        for block, elements in (("stem", 60_000), ("denseblock3", 2_900_000), ("transition3", 500_000))
    ]
    return build_plan(specs, ["stem"], every=every, exchange=exchange, wire=wire)  # type: ignore[arg-type]


@given(batches, layouts, links, algorithms, st.integers(1, 1 << 24))
def test_more_bytes_never_cost_less(
    batch: Batch, layout: Layout, link: Link, algorithm: Algorithm, more: int
) -> None:
    cost_s = batch_s(KNOWN, batch, layout, link, algorithm)
    larger = [replace(batch, shared=tuple(size + more for size in batch.shared))]
    larger += [replace(batch, private=tuple(size + more for size in batch.private))]
    larger += [replace(batch, shared=(*batch.shared, more)), replace(batch, row_bytes=batch.row_bytes + more)]
    for each in larger:
        assert batch_s(KNOWN, each, layout, link, algorithm) >= cost_s


@given(batches, layouts, links, algorithms)
def test_more_ranks_never_cost_less(batch: Batch, layout: Layout, link: Link, algorithm: Algorithm) -> None:
    cost_s = batch_s(KNOWN, batch, layout, link, algorithm)
    more_sites = replace(layout, num_sites=layout.num_sites + 1)
    more_ranks = replace(layout, ranks_per_site=layout.ranks_per_site + 1)
    for larger in (more_sites, more_ranks):
        assert batch_s(KNOWN, batch, larger, link, algorithm) >= cost_s * (1 - 1e-12)


@given(batches, links, algorithms)
def test_one_rank_costs_nothing(batch: Batch, link: Link, algorithm: Algorithm) -> None:
    assert batch_s(KNOWN, batch, Layout(1, 1), link, algorithm) == 0
    assert predict(KNOWN, plan(), Layout(1, 1), link, 0.5, algorithm).step_s == 0.5


@given(st.integers(2, 64), algorithms)
def test_zero_bytes_cost_latency_alone(num_sites: int, algorithm: Algorithm) -> None:
    layout = Layout(num_sites, 1)
    seconds = [batch_s(KNOWN, Batch((0,)), layout, Link(0.02, rate), algorithm) for rate in (1e3, 1e9)]
    assert seconds[0] == seconds[1] > 0.02
    expensive = replace(KNOWN, copy_s_per_byte=1.0, tcp_s_per_byte=1.0, stretch=1e6)
    assert batch_s(expensive, Batch((0,)), layout, Link(0.02, 1e3), algorithm) == seconds[0]


def test_nothing_begun_costs_nothing() -> None:
    assert batch_s(KNOWN, Batch(), Layout(64, 16), SLOW) == 0
    assert batch_s(KNOWN, Batch(private=(MIB,)), Layout(64, 1), SLOW) == 0, "a rank alone at its site sums nothing"


@given(st.integers(2, 64), algorithms)
def test_no_exchange_is_faster_than_its_line(num_sites: int, algorithm: Algorithm) -> None:
    num_bytes, bytes_per_s = 32 * MIB, 100e6 / 8
    line_s = 2 * (num_sites - 1) / num_sites * num_bytes / bytes_per_s
    link = read_link(0, 100)
    assert batch_s(LEAST, Batch((num_bytes,)), Layout(num_sites, 1), link, algorithm) == pytest.approx(line_s)
    assert batch_s(KNOWN, Batch((num_bytes,)), Layout(num_sites, 1), link, algorithm) >= line_s


def test_rounds_are_counted_as_the_algorithms_take_them() -> None:
    latency = replace(LEAST, round_delays=1.0, exchange_delays=0.0)
    layout, link = Layout(64, 16), Link(0.02, float("inf"))
    assert batch_s(latency, Batch((MIB,)), layout, link, "halving") == pytest.approx(2 * 6 * 0.02)
    assert batch_s(latency, Batch((MIB,)), layout, link, "ring") == pytest.approx(2 * 1023 * 0.02)


def test_private_sums_never_take_the_link() -> None:
    layout, private = Layout(4, 4), Batch(private=(MIB,))
    agreeing = replace(KNOWN, exchange_delays=0.0)
    for algorithm in ALGORITHMS:
        assert batch_s(agreeing, private, layout, SLOW, algorithm) == pytest.approx(
            batch_s(agreeing, private, layout, CABLE, algorithm)
        )


@given(st.integers(2, 200), layouts, algorithms)
def test_every_divides_what_the_exchange_takes(every: int, layout: Layout, algorithm: Algorithm) -> None:
    each = predict(KNOWN, plan(), layout, SLOW, 0.3, algorithm)
    seldom = predict(KNOWN, plan(every=every), layout, SLOW, 0.3, algorithm)
    assert seldom.shared_s == pytest.approx(each.shared_s / every)
    assert seldom.private_s == pytest.approx(each.private_s / every)
    assert (seldom.compute_s, seldom.pulse_s) == (each.compute_s, each.pulse_s)


@given(layouts, st.floats(0, 100), st.sampled_from(["weights", "gradients"]), algorithms)
def test_a_step_is_the_sum_of_its_parts(
    layout: Layout, compute_s: float, exchange: str, algorithm: Algorithm
) -> None:
    cost = predict(KNOWN, plan(exchange=exchange), layout, SLOW, compute_s, algorithm)
    assert all(isfinite(each) and each >= 0 for each in astuple(cost))
    parts = cost.compute_s + cost.shared_s + cost.private_s + cost.pulse_s - cost.hidden_s
    assert cost.step_s == pytest.approx(parts)
    assert cost.step_s >= compute_s
    assert cost.hidden_s <= compute_s, "nothing hides behind what is not computed"
    assert exchange == "gradients" or cost.hidden_s == 0


def test_64_sites_of_16_ranks_are_priced_with_the_shipped_constants() -> None:
    shipped = load_fit()
    for least, constant in zip(astuple(LEAST), astuple(shipped.costs), strict=True):
        assert isfinite(constant) and constant >= least
    assert 0 < shipped.compute_s < 60
    for exchange in ("weights", "gradients"):
        for row in scale_rows(shipped, plan(exchange=exchange), USUAL_LAYOUTS, SLOW, shipped.compute_s):
            assert 0 < row["step_s"] <= row["step_s_by_ring"] < 3600


def noisy_points(noise: float) -> list[Point]:
    generator = np.random.default_rng(5)
    places = [(Layout(1, 2), CABLE), (Layout(1, 4, 2.0), CABLE), (Layout(2, 1), CABLE)]
    places += [(Layout(2, 1), SLOW), (Layout(2, 1), read_link(5, 200))]
    some = [Batch(row_bytes=40), Batch((1 << 10,)), Batch((MIB,)), Batch((28 * MIB,)), Batch((MIB,) * 9)]
    return [
        Point(batch, layout, link, batch_s(KNOWN, batch, layout, link) * generator.uniform(1 - noise, 1 + noise))
        for layout, link in places
        for batch in some
        for _ in range(4)
    ]


def test_a_fit_finds_the_constants_again() -> None:
    exact = fit(noisy_points(0.0))
    assert astuple(exact) == pytest.approx(astuple(KNOWN), rel=1e-6)
    found = fit(noisy_points(0.05))
    assert astuple(found) == pytest.approx(astuple(KNOWN), rel=0.25)
    assert max(abs(relative_error(found, point)) for point in noisy_points(0.0)) < 0.05


def test_a_fit_never_beats_the_line() -> None:
    impossible = [replace(point, seconds=point.seconds / 10) for point in noisy_points(0.0)]
    assert all(each >= least for each, least in zip(astuple(fit(impossible)), astuple(LEAST), strict=True))


def test_buffers_of_a_plan_are_taken_as_they_travel() -> None:
    assert batch_of(plan()) == Batch((4 * 2_900_000, 4 * 500_000), (4 * 60_000,))
    with pytest.raises(UsageError, match=r"float32, found bfloat16: add --set sharing\.wire=float32"):
        batch_of(plan(wire="bfloat16"))


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


def test_the_table_says_what_is_extrapolated(tmp_path: Path) -> None:
    console = Console(width=110, record=True, file=(tmp_path / "out").open("w"))
    console.print(scale_table(KNOWN_FIT, plan(every=10), USUAL_LAYOUTS, SLOW, 0.24))
    said = " ".join(console.export_text().split())
    for words in ("64x16", "every 10 steps", "20 ms one way", "100 Mbit/s", "Extrapolated beyond 2 sites", "40%"):
        assert words in said
