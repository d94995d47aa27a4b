"""The counts of a study file, as one line of text and as an HTML table for notebooks.

Both show sums over the file: no identifier, no pixel. A notebook that is saved keeps what its cells show, so there
are no thumbnails; whoever wants an image in a notebook draws `Study.images`.
"""

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.study.groups import group_studies
from cxr_hvd.study.labels import PRESENT
from cxr_hvd.study.layout import Split, StudyFileHeader, StudyTables
from cxr_hvd.terminal import shown

MIB = 2**20


def overview_line(name: str, header: StudyFileHeader, tables: StudyTables) -> str:
    """Return a study file's name, site and counts in one line.

    Args:
        name: of the file, without its folder.
    """
    num_images, size = int(tables.num_images.sum(dtype=np.int64)), header.image_size
    num_of_split = np.bincount(tables.split, minlength=len(Split))
    splits = ", ".join(f"{num_of_split[split]:,} {split.name}" for split in Split)
    return (
        f"StudyFile({shown(name)!r}: site {shown(header.site)}, {len(tables.split):,} studies ({splits}), "
        f"{num_images:,} images of {size} x {size} px, {num_images * size**2 / MIB:,.1f} MiB, "
        f"{len(header.label_names)} labels)"
    )


def overview_html(name: str, header: StudyFileHeader, tables: StudyTables) -> str:
    """Return counts by split as an HTML table: patients, studies, images, sexes, ages and present labels.

    Args:
        name: of the file, without its folder.
    """
    members = [tables.split == split for split in Split]
    rows = [
        ("patients", [len(set(tables.patient_id[is_member])) for is_member in members]),
        ("studies", [int(is_member.sum()) for is_member in members]),
        ("images", [int(tables.num_images[is_member].sum(dtype=np.int64)) for is_member in members]),
    ]
    rows += _count_groups(tables, members)
    for column, label in enumerate(header.label_names):
        rows.append((f"{label}: present", _count_present(tables.labels[:, column], members)))
    heads = "".join(f"<th>{head}</th>" for head in ("", *(split.name for split in Split), "all"))
    body = ""
    for head, counts in rows:
        cells = "".join(f"<td>{count:,}</td>" for count in (*counts, sum(counts)))
        body += f"<tr><th>{escape(shown(head))}</th>{cells}</tr>"
    caption = f"{shown(name)}: site {shown(header.site)}, {header.image_size} x {header.image_size} px"
    return (
        f"<table><caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    )


def _count_groups(tables: StudyTables, members: Sequence[NDArray[np.bool_]]) -> list[tuple[str, list[int]]]:
    """Count the studies of each group of sex and age that there is."""
    groups = group_studies(tables).members()
    return [
        (f"{kind}: {name}", [int((is_in_N & is_member).sum()) for is_member in members])
        for kind in ("sex", "age")
        for name, is_in_N in groups.get(kind, {}).items()
    ]


def _count_present(labels_N: NDArray[np.float32], members: Sequence[NDArray[np.bool_]]) -> list[int]:
    is_present_N = labels_N == PRESENT
    return [int((is_present_N & is_member).sum()) for is_member in members]
