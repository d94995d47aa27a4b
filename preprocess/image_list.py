"""Write the list that says where the images of an unlabelled study file lie.

`NAME.images.csv` lies beside the output of `cxr-preprocess images`. A row is an image: what the quarantine calls
it (`where`), the PATH that was given and the image's path in it, what its user finds its study by, and the study's
id in the study file. Paths may hold identifiers of patients: keep it as you keep the images.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from cxr_hvd.files import replaced_file
from preprocess.identifiers import HashId
from preprocess.records import ImageName

COLUMNS = ("where", "given", "path", "study", "study_id")


def image_list_path(out: Path) -> Path:
    """Return where the list of an output's images lies."""
    return out.with_name(f"{out.name}.images.csv")


def write_image_list(out: Path, names: Sequence[ImageName], hash_id: HashId) -> None:
    """Write the list beside the output; where a table names the images, there is none."""
    if not names:
        return
    with replaced_file(image_list_path(out)) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for name in names:
            rows.writerow((name.where, name.given, name.path, name.study, hash_id("study", name.study_id)))
