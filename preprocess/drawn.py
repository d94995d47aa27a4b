"""Write and read the list of drawn studies, so that the same draw can be repeated, elsewhere too.

`NAME.drawn.csv` lies beside the output. It names each study and its patient by the keyed hashes that stand in the
study file, and its split, in the file's order. Whoever has the same source and the same key (or keeps ids, where
they are public) gets the same studies from it, whatever their seed; nobody else can tell who is meant.
"""

import csv
from collections.abc import Iterable
from pathlib import Path

from cxr_hvd.errors import DataError
from cxr_hvd.files import replaced_file
from cxr_hvd.study.layout import Split
from preprocess.identifiers import HashId
from preprocess.records import StudyRecord
from preprocess.selection import Selection
from preprocess.sources.text import open_lines

COLUMNS = ("study_id", "patient_id", "split")


def drawn_path(out: Path) -> Path:
    """Return where the list of an output's studies lies."""
    return out.with_name(f"{out.name}.drawn.csv")


def write_drawn(out: Path, selection: Selection, hash_id: HashId) -> None:
    """Write the list beside the output."""
    with replaced_file(drawn_path(out)) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for study, split in zip(selection.studies, selection.splits, strict=True):
            patient = hash_id("patient", study.patient_id)
            rows.writerow((hash_id("study", study.study_id), patient, split.name.lower()))


def repeat_drawn(path: Path, studies: Iterable[StudyRecord], hash_id: HashId) -> Selection:
    """Choose the studies that the list at `path` names, each for the split that it names, in its order.

    Raises:
        DataError: the list is no such list, contradicts itself or the source, or names a study that the source
            does not have.
    """
    known = {hash_id("study", study.study_id): study for study in studies}
    listed: dict[str, list[str]] = {}
    chosen: dict[str, tuple[StudyRecord, Split]] = {}
    splits = {split.name.lower(): split for split in Split}
    splits_by_patient: dict[str, Split] = {}
    unknown = 0
    try:
        with open_lines(path, "--drawn") as lines:
            rows = csv.reader(lines)
            if tuple(next(rows, ())) != COLUMNS:
                raise DataError(f"{path}: expected the columns {', '.join(COLUMNS)}, found others; check --drawn")
            for number, row in enumerate(rows, start=2):
                lines.start_row()
                where = f"{path.name} row {number}"
                if len(row) != len(COLUMNS) or row[2] not in splits:
                    raise DataError(f"{where}: expected a study, a patient and a split, found another row")
                if listed.setdefault(row[0], row) != row:
                    raise DataError(
                        f"{where}: expected each study once, found it a second time with another patient or "
                        "split; repair the list"
                    )
                study, split = known.get(row[0]), splits[row[2]]
                if study is None:
                    unknown += 1
                    continue
                if row[1] != hash_id("patient", study.patient_id):
                    raise DataError(
                        f"{where}: expected the patient that the source names for this study, found another; "
                        "use the list with the source that it was drawn from"
                    )
                if splits_by_patient.setdefault(study.patient_id, split) is not split:
                    raise DataError(f"{where}: expected a patient in one split, found this row's in two")
                chosen[row[0]] = study, split
    except csv.Error as error:
        raise DataError(f"{path}: not a readable list ({type(error).__name__}); check --drawn") from error
    if unknown or not chosen:
        raise DataError(
            f"{path}: expected studies of this source, found {unknown:,} of {unknown + len(chosen):,} that it "
            "does not have under this site's key; use the key (or --keep-ids) that the list was made with"
        )
    return Selection(
        tuple(study for study, _ in chosen.values()),
        tuple(split for _, split in chosen.values()),
        f"as drawn before ({len(chosen):,} studies listed)",
    )
