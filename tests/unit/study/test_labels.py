"""Label policies: what uncertain and blank labels become, label by label."""

from typing import Any

import numpy as np
import pytest

from cxr_hvd.study.labels import LABELS, LabelPolicy

NAMES = ("Edema", "Fracture")
GIVEN = np.array([[1, -1], [0, np.nan], [-1, 1], [np.nan, 0]], np.float32)
ALL = [[1, 1]] * 4


def _policy(uncertain: Any = ("zeros", "zeros"), blank: Any = ("zeros", "zeros")) -> LabelPolicy:
    return LabelPolicy(dict(zip(NAMES, uncertain, strict=True)), dict(zip(NAMES, blank, strict=True)))


@pytest.mark.parametrize(
    ("policy", "targets", "known"),
    [
        (_policy(), [[1, 0], [0, 0], [0, 1], [0, 0]], ALL),
        (_policy(uncertain=("ones", "ones")), [[1, 1], [0, 0], [1, 1], [0, 0]], ALL),
        (_policy(uncertain=("ones", "zeros")), [[1, 0], [0, 0], [1, 1], [0, 0]], ALL),
        (_policy(("ignore", "ignore")), [[1, 0], [0, 0], [0, 1], [0, 0]], [[1, 0], [1, 1], [0, 1], [1, 1]]),
        (_policy(blank=("ignore", "zeros")), [[1, 0], [0, 0], [0, 1], [0, 0]], [[1, 1], [1, 1], [1, 1], [0, 1]]),
    ],
)
def test_policies(policy: LabelPolicy, targets: list[list[int]], known: list[list[int]]) -> None:
    before = GIVEN.copy()
    found_targets, found_known = policy.targets(GIVEN, NAMES)
    assert found_targets.tolist() == targets
    assert found_known.astype(int).tolist() == known
    np.testing.assert_array_equal(GIVEN, before)


def test_there_are_fourteen() -> None:
    assert len(set(LABELS)) == 14
