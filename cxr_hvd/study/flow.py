"""The flow of studies: how many a source names, and how many were left out on the way to a study file, and why.

Numbers and reasons alone: no identifier, no path. What is in the file itself is counted there.
"""

from typing import Annotated

from pydantic import Field

from cxr_hvd.record import Count, Record, Text

MAX_REASONS = 20
OTHER_REASONS = "other reasons"


class StudyCounts(Record):
    """Numbers of patients, studies and images."""

    patients: Count
    studies: Count
    images: Count


class Flow(Record):
    """What was left out, step by step.

    Attributes:
        unlabelled_studies: studies that no row of labels names; their images are not counted.
        labelled: with labels, in the source's tables.
        drawn: of these, chosen for the file.
        unusable_images: images of drawn studies that could not be used, by reason.
        emptied_studies: drawn studies without a usable image.
    """

    unlabelled_studies: Count
    labelled: StudyCounts
    drawn: StudyCounts
    unusable_images: Annotated[dict[Text, Count], Field(max_length=MAX_REASONS)]
    emptied_studies: Count
