"""With few seeds, differences by components of variance keep their level; a bootstrap does not."""

from functools import cache

import numpy as np
import pytest
from scipy import stats

from cxr_hvd.stats.bootstrap import difference, draw, resampled
from cxr_hvd.stats.intervals import components_difference
from cxr_hvd.stats.sample import Difference
from cxr_hvd.stats.weighted import macro_auroc
from tests.helpers.samples import (
    SHIFT,
    binormal,
    mean_over_seeds,
    one_label,
    share_that_holds,
)

pytestmark = pytest.mark.filterwarnings("error")


def test_bootstrap_p_values_are_uniform_where_there_is_no_difference() -> None:
    p_values = np.array([found.p_value for found, _ in without_a_difference(1, 1.0, 0.0)], dtype=np.float64)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(p_values < 0.05) == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize(("by_study", "as_a_whole"), [(1.0, 0.0), (0.0, 0.3), (0.5, 0.15)])
def test_few_seeds_find_no_difference_where_there_is_none(by_study: float, as_a_whole: float) -> None:
    found = without_a_difference(3, by_study, as_a_whole)
    p_values = np.array([components.p_value for _, components in found], dtype=np.float64)
    assert np.mean(p_values < 0.05) == pytest.approx(0.05, abs=0.04)


def test_a_bootstrap_of_few_seeds_is_too_sure_or_too_careful() -> None:
    """Decision 17: why `components` stands beside it."""

    def share_found(by_study: float, as_a_whole: float) -> float:
        found = without_a_difference(3, by_study, as_a_whole)
        return float(np.mean([each.p_value is not None and each.p_value < 0.05 for each, _ in found]))

    assert share_found(0.0, 0.3) > 0.15
    assert share_found(1.0, 0.0) < 0.03


@cache
def without_a_difference(
    num_seeds: int, by_study: float, as_a_whole: float
) -> list[tuple[Difference, Difference]]:
    """By bootstrap and by components, of experiments that differ by their seeds alone."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(400):
        scores, targets = binormal(rng, 100)
        noise = by_study * rng.normal(size=(2, num_seeds, 100, 1))
        shifts = as_a_whole * rng.normal(size=(2, num_seeds, 1, 1)) * targets[:, None]
        draws = draw(np.arange(100), num_seeds, 300, seed=int(rng.integers(1 << 32)))
        metric = macro_auroc(one_label(targets))
        a, b = (resampled(metric, scores[:, None] + each, draws) for each in noise + shifts)
        found.append((difference(a, b, draws), components_difference(a, b)))
    return found


def test_components_of_known_size_add_up() -> None:
    rng = np.random.default_rng(13)
    patients, together = 0.03 * rng.normal(size=20_000), 0.02 * rng.normal(size=(4, 20_000))
    values = np.array([0.70, 0.74, 0.76, 0.81])
    table = np.concatenate([values[:, None], values[:, None] + patients + together], axis=1)
    found = components_difference(table, np.zeros_like(table))
    of_seeds = values.var(ddof=1) / 4
    variance = 0.03**2 + of_seeds
    reach = stats.t.ppf(0.975, 3 * (variance / of_seeds) ** 2) * variance**0.5
    assert found.standard_error == pytest.approx(variance**0.5, rel=0.02)
    assert (found.low, found.high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.002)
    assert found.per_seed == tuple(values)
    one = components_difference(table[:1], np.zeros_like(table[:1]))
    assert one.standard_error == pytest.approx(np.hypot(0.03, 0.02), rel=0.02)
    assert one.low == pytest.approx(0.70 - 1.96 * np.hypot(0.03, 0.02), abs=0.002)


def test_components_cover_what_other_seeds_would_give() -> None:
    def interval(rng: np.random.Generator) -> Difference:
        scores, targets = binormal(rng, 300, shift=0)
        scores_SN = scores + (SHIFT + rng.normal(0, 0.3, 5))[:, None] * targets
        draws = draw(np.arange(300), 5, 200, seed=int(rng.integers(1 << 32)))
        table_SB = resampled(macro_auroc(one_label(targets)), scores_SN[:, :, None], draws)
        return components_difference(table_SB, np.zeros_like(table_SB))

    assert share_that_holds(interval, mean_over_seeds(0.3), 300) == pytest.approx(0.94, abs=0.03)
