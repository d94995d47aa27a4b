"""The figures of a comparison: what stands where."""

import itertools
import random
from typing import Any

import numpy as np

from cxr_hvd.report.figures.labels import pool_bins
from cxr_hvd.report.figures.pages import drawing
from cxr_hvd.report.figures.placing import Box, place_labels
from cxr_hvd.report.figures.setups import draw_setups
from tests.helpers.comparisons import BLOCKS, make_comparison


def test_four_sites_have_a_column_each() -> None:
    sites = ("one", "two", "three", "four")
    comparison = make_comparison(sites=sites, names=("D",), num_seeds=1)
    with drawing():
        figure = draw_setups(comparison)
        assert figure is not None
        paper = figure.axes[0]
        words = [label.get_text() for label in paper.texts]
        assert all(words.count(site) == 2 for site in sites)  # below its column and in the legend
        assert all(words.count(block) == 1 for block in BLOCKS)
        width, height = figure.get_size_inches()
        for label in paper.texts:
            box = label.get_window_extent().transformed(paper.transData.inverted())
            assert min(box.x0, box.y1) >= 0 and box.x1 <= width and box.y0 <= height, label.get_text()


def test_labels_lie_apart_and_inside() -> None:
    chance = random.Random(0)
    within = Box(0, 0, 300, 200)
    for _ in range(20):
        points = [(chance.choice([20, 150, 152, 155, 160]), chance.uniform(10, 190)) for _ in range(11)]
        sizes = [(chance.uniform(8, 60), 9.5) for _ in points]
        dots = [Box(x - 3, y - 3, 6, 6) for x, y in points]
        placed = place_labels(points, sizes, dots, within)
        assert all(within.holds(box) for box in placed)
        assert not any(box.overlaps(other) for box, other in itertools.combinations(placed, 2))
        assert not any(box.overlaps(dot) for box in placed for dot in dots)


def test_pooled_calibration_is_that_of_all_studies() -> None:
    rng = np.random.default_rng(0)
    scores, targets = rng.random((3, 200)), rng.integers(0, 2, (3, 200)).astype(np.float64)

    def curve(scores_N: Any, targets_N: Any) -> list[tuple[float, float, int]]:
        bins = np.minimum((scores_N * 10).astype(int), 9)
        of_bin = [bins == number for number in range(10)]
        return [(scores_N[one].mean(), targets_N[one].mean(), int(one.sum())) for one in of_bin if one.any()]

    pooled = pool_bins([curve(*one) for one in zip(scores, targets, strict=True)])
    np.testing.assert_allclose(pooled, curve(scores.ravel(), targets.ravel()))
