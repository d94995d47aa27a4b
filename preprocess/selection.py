"""Choose the studies of a study file and the split of each; no patient is in two splits.

Every choice follows from SHA-256 of the seed and a patient's identifier, not from a generator's state: the
order of rows in a source, the number of ranks and the machine change nothing, and a patient that is added
later moves nobody else. See docs/decisions/0007-patient-split.md.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cxr_hvd.errors import DataError, UsageError
from cxr_hvd.study.layout import Split
from preprocess.records import StudyRecord

# Train, validate, test, where neither counts nor the source's own split say otherwise.
SHARES = {Split.TRAIN: 0.7, Split.VALIDATE: 0.1, Split.TEST: 0.2}
# What --split says.
WAYS = ("official", "random", "listed")


@dataclass(frozen=True)
class Selection:
    """The chosen studies in the order of the file, the split of each, and how they were chosen, in words."""

    studies: tuple[StudyRecord, ...]
    splits: tuple[Split, ...]
    rule: str


def select(
    studies: Iterable[StudyRecord],
    seed: int,
    counts: dict[Split, int] | None = None,
    way: str | None = None,
) -> Selection:
    """Choose studies and give each a split.

    With counts: exactly so many studies a split, drawn patient by patient at random, and no study of a split
    without a count. The test split is filled first and the train split last, so that asking for more training
    studies leaves the others as they were.
    Without: all studies; by the source's own split where it has all three, else by patient in `SHARES`.
    `official` keeps every patient in the split that the source publishes, with counts and without; splits that
    it does not publish stay empty. `random` passes over what the source publishes. `listed` keeps the source's own
    splits and its order.

    Args:
        studies: all studies of a source.
        seed: of the draw and of the order in the file.
        counts: studies wanted, by split, or None.
        way: a name in `WAYS`, or None for the above.

    Raises:
        UsageError: a count is below 1.
        DataError: there are too few studies, a split is empty, or a patient of the source is in two splits.
    """
    if way == "listed":
        listed = [(study, study.split) for study in studies if study.split is not None]
        return Selection(tuple(study for study, _ in listed), tuple(split for _, split in listed), "none is drawn")
    by_patient: dict[str, list[StudyRecord]] = {}
    for study in studies:
        by_patient.setdefault(study.patient_id, []).append(study)
    patients = [
        sorted(by_patient[patient], key=lambda study: study.study_id)
        for patient in sorted(by_patient, key=lambda patient: (_draw(seed, patient), patient))
    ]
    published = {study.split for patient in patients for study in patient}
    wanted = set(counts or Split)
    if way == "official":
        if not published <= set(Split):
            raise DataError(
                "expected a source with a split for every study, found studies without one; leave out --split"
            )
        wanted = set(counts) if counts is not None else {split for split in Split if split in published}
        chosen = _by_source(patients, counts)
        rule = "the source's own" if counts is None else "drawn by patient from the source's own"
        rule += "".join(f", which has no {split.name.lower()}" for split in Split if split not in published)
    elif counts is not None:
        chosen = _by_counts(patients, counts)
        rule = "drawn by patient"
    elif published == set(Split) and way is None:
        chosen = _by_source(patients, None)
        rule = "the source's own"
    else:
        chosen = _by_shares(patients)
        rule = "drawn by patient, " + "/".join(f"{share:.0%}" for share in SHARES.values())
    for split in sorted(wanted):
        if split not in {chosen_split for _, chosen_split in chosen}:
            raise DataError(
                f"expected studies in every split, found none for {split.name.lower()} "
                f"among {len(patients)} patients; set --train, --validate and --test, or add studies"
            )
    return Selection(tuple(study for study, _ in chosen), tuple(split for _, split in chosen), rule)


def _draw(seed: int, patient_id: str) -> bytes:
    return hashlib.sha256(f"{seed}:{patient_id}".encode()).digest()


def _by_counts(patients: Iterable[list[StudyRecord]], counts: dict[Split, int]) -> list[tuple[StudyRecord, Split]]:
    """Fill the splits one after the other, the test split first, from one queue of patients."""
    chosen: list[tuple[StudyRecord, Split]] = []
    remaining = iter(patients)
    for split in sorted(counts, reverse=True):
        chosen += _drawn(remaining, split, counts[split])
    return chosen


def _drawn(patients: Iterator[list[StudyRecord]], split: Split, count: int) -> list[tuple[StudyRecord, Split]]:
    """Take patients until `count` studies are there; the last one may give only some of theirs."""
    if count < 1:
        raise UsageError(f"expected 1 or more studies for {split.name.lower()}, found {count}: empty split")
    chosen: list[tuple[StudyRecord, Split]] = []
    while missing := count - len(chosen):
        patient = next(patients, None)
        if patient is None:
            raise DataError(
                f"expected {count} studies for {split.name.lower()} of patients of its own, found "
                f"{len(chosen)}: {missing} short; ask for fewer"
            )
        chosen += [(study, split) for study in patient[:missing]]
    return chosen


def _by_source(
    patients: list[list[StudyRecord]], counts: dict[Split, int] | None
) -> list[tuple[StudyRecord, Split]]:
    """Keep every patient in the source's split; with counts, draw from each."""
    for patient in patients:
        if len({study.split for study in patient}) != 1:
            raise DataError(
                f"{patient[0].images[0].where}: expected the source's splits to be disjoint by patient, found "
                "this row's patient in two; repair the table, or add --split random"
            )
    if counts is None:
        return [(study, study.split) for patient in patients for study in patient if study.split is not None]
    chosen: list[tuple[StudyRecord, Split]] = []
    for split in sorted(counts, reverse=True):
        published = (patient for patient in patients if patient[0].split is split)
        chosen += _drawn(published, split, counts[split])
    return chosen


def _by_shares(patients: list[list[StudyRecord]]) -> list[tuple[StudyRecord, Split]]:
    """Give each patient, in the drawn order, the split that lacks most studies of its share."""
    chosen: list[tuple[StudyRecord, Split]] = []
    num_studies = dict.fromkeys(Split, 0)
    for patient in patients:
        split = min(Split, key=lambda split: (num_studies[split] / SHARES[split], split))
        num_studies[split] += len(patient)
        chosen += [(study, split) for study in patient]
    return chosen
