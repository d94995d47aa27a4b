"""Groups of studies by view, sex and age, as a study file says them: for counts and for results by subgroup."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.study.layout import UNKNOWN_AGE, Sex, StudyTables, View

UNKNOWN = "unknown"
PA, AP, PA_AND_AP, LATERAL_ALONE = "frontal, PA", "frontal, AP", "frontal, PA and AP", "lateral alone"
VIEW_GROUPS = (UNKNOWN, PA, AP, PA_AND_AP, LATERAL_ALONE)
"""By which frontal views a study has; `lateral alone` where all its images are lateral ones."""

SEX_GROUPS = tuple(sex.name.lower() for sex in Sex)
AGE_STARTS = {"0 to 17 years": 0, "18 to 39 years": 18, "40 to 64 years": 40, "65 years and more": 65}
AGE_GROUPS = (UNKNOWN, *AGE_STARTS)

Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class StudyGroups:
    """The group of each study, as places in `VIEW_GROUPS`, `SEX_GROUPS` and `AGE_GROUPS`.

    Attributes:
        views_N, sexes_N, ages_N: (N,) uint8; 0 where it is unknown.
    """

    views_N: Codes
    sexes_N: Codes
    ages_N: Codes

    def rows(self, indices_N: NDArray[np.int64]) -> "StudyGroups":
        """Return the groups of some of the studies."""
        return StudyGroups(self.views_N[indices_N], self.sexes_N[indices_N], self.ages_N[indices_N])

    def members(self) -> Mapping[str, Mapping[str, NDArray[np.bool_]]]:
        """Return who is in each group that has a study, by kind (`view`, `sex`, `age`) and name.

        A kind of which nothing is known is left out; so are the studies of which it is unknown.
        """
        kinds = {"view": (self.views_N, VIEW_GROUPS), "sex": (self.sexes_N, SEX_GROUPS)}
        kinds["age"] = (self.ages_N, AGE_GROUPS)
        members = {
            kind: {name: codes_N == code for code, name in enumerate(names) if code and (codes_N == code).any()}
            for kind, (codes_N, names) in kinds.items()
        }
        return {kind: of_kind for kind, of_kind in members.items() if of_kind}


def group_studies(tables: StudyTables) -> StudyGroups:
    """Return the groups of all studies of a file."""
    is_used_NM = np.arange(tables.views.shape[1]) < tables.num_images[:, None]
    has_pa_N, has_ap_N = ((is_used_NM & (tables.views == view)).any(axis=1) for view in (View.PA, View.AP))
    is_lateral_N = ((tables.views == View.LATERAL) | ~is_used_NM).all(axis=1)
    views_N = np.select([has_pa_N & has_ap_N, has_pa_N, has_ap_N, is_lateral_N], [3, 1, 2, 4], 0)
    sexes_N = ages_N = np.zeros(len(tables.split), dtype=np.uint8)
    if tables.sex is not None:
        sexes_N = tables.sex
    if tables.age is not None:
        starts = np.array(list(AGE_STARTS.values()))
        ages_N = np.where(tables.age == UNKNOWN_AGE, 0, np.searchsorted(starts, tables.age, side="right"))
    return StudyGroups(views_N.astype(np.uint8), sexes_N, ages_N.astype(np.uint8))
