"""The test of equivalence, and what its table says."""

import pytest
from scipy.stats import ttest_1samp

from bench.modes import MODES, REFERENCE, table, two_one_sided_tests

DIFFERENCES = [0.004, -0.012, 0.009, 0.001, -0.006]


@pytest.mark.parametrize("margin", [0.002, 0.02, 0.1])
def test_it_is_two_one_sided_t_tests(margin: float) -> None:
    mean, low, high, p_value = two_one_sided_tests(DIFFERENCES, margin)
    above = ttest_1samp(DIFFERENCES, -margin, alternative="greater")
    below = ttest_1samp(DIFFERENCES, margin, alternative="less")
    assert p_value == pytest.approx(max(above.pvalue, below.pvalue))
    interval = ttest_1samp(DIFFERENCES, 0).confidence_interval(0.90)
    assert (low, high) == pytest.approx((interval.low, interval.high)) and low < mean < high
    assert (p_value < 0.05) == (-margin < low and high < margin)


def test_the_verdict_follows_the_references_spread() -> None:
    """Of two ways, one is off by a tenth of the reference's standard deviation, the other by four of them."""
    values = {seed: 0.70 + 0.01 * (seed - 3) for seed in range(1, 6)}  # a standard deviation of 0.016
    offsets = {REFERENCE: 0.0, "every 10": 0.0016, "int8": -0.064}
    rows = {
        (mode, seed): {
            "mode": mode,
            "seed": seed,
            "test": {"a": value + offset + 1e-4 * (seed % 2), "b": value + offset},
            "bytes_per_step": 4e6,
            "s_per_step": 0.1,
        }
        for mode, offset in offsets.items()
        for seed, value in values.items()
    }
    lines = {line.split("|")[1].strip(): line for line in table(rows).splitlines()[2:]}
    assert list(lines) == [mode for mode in MODES if mode in offsets]
    assert "| yes |" in lines["every 10"] and "**not shown**" in lines["int8"]
