"""What a test set is, and what can be said of a number that was measured on it: how far chance alone may move it.

Owns the words: a sample, an interval, a difference. `bootstrap` gives them by resampling, for every metric, over
patients and seeds; `intervals` by Student's t; `delong` for AUROCs in closed form, over patients alone.

Shapes: N studies, L labels, P patients, S seeds, B resamples, K vectors of scores.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Codes = NDArray[np.integer[Any]]

CONFIDENCE = 0.95
TOLERANCE = 1e-12  # below it, two AUROCs or accuracies differ by rounding alone

UNDEFINED = "undefined on these studies"
NOT_RESAMPLED = "undefined in the resamples"
NO_VARIANCE = "variance is 0"
ALL_EQUAL = "no spread over the resamples"


@dataclass(frozen=True)
class Sample:
    """The studies of one test set.

    Attributes:
        targets_NL: 0 or 1.
        known_NL: where a target counts.
        patients_N: a number for each study; studies of one patient have the same. Any numbers will do.
    """

    targets_NL: NDArray[np.floating[Any]]
    known_NL: Flags
    patients_N: Codes


@dataclass(frozen=True)
class Interval:
    """A number and the 95% confidence interval round it.

    Attributes:
        value: as measured, mean over seeds.
        low, high: bounds of the interval.
        standard_error: standard deviation of the value from sample to sample.
        num_resamples: resamples in which the value is defined; 0 where none were drawn.
        note: why any of these is None; None where none is.
    """

    value: float | None
    low: float | None
    high: float | None
    standard_error: float | None
    num_resamples: int
    note: str | None


@dataclass(frozen=True)
class Difference:
    """The first of two experiments minus the second, on the same studies and, pair by pair, the same seeds.

    Attributes:
        value: mean difference over seeds.
        low, high: bounds of its 95% confidence interval.
        standard_error: standard deviation of the difference from sample to sample.
        p_value: two-sided, for no difference.
        per_seed: difference of each seed, in the order of the seeds; empty where undefined.
        num_resamples: resamples in which it is defined; 0 where none were drawn.
        note: why any of these is None; None where none is.
    """

    value: float | None
    low: float | None
    high: float | None
    standard_error: float | None
    p_value: float | None
    per_seed: tuple[float, ...]
    num_resamples: int
    note: str | None
