"""Compute how often each label is present in the drawn studies, split by split, beside the whole source."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split
from preprocess.records import StudyRecord
from preprocess.selection import Selection

if TYPE_CHECKING:
    from rich.text import Text

# Label to part (`source`, `train`, ...) to the share of studies where the label is present; `STUDIES` to numbers.
Balance = dict[str, dict[str, float]]
STUDIES = "studies"
# So many standard errors of a draw at random from the source are marked.
_FAR = 2.5


def label_balance(studies: Iterable[StudyRecord], selection: Selection) -> Balance:
    """Return, for each label, the share of studies with it in the source and in each split that was drawn."""
    drawn_NL = _present([study.labels for study in selection.studies])
    splits = np.array(selection.splits)
    parts = {"source": _present([study.labels for study in studies])}
    parts |= {split.name.lower(): drawn_NL[splits == split] for split in Split if (splits == split).any()}
    shares = {
        label: {part: round(float(present[:, column].mean()), 4) for part, present in parts.items()}
        for column, label in enumerate(LABELS)
    }
    return {STUDIES: {part: len(present) for part, present in parts.items()}, **shares}


def print_balance(balance: Balance) -> None:
    """Print the balance as a table on standard output; a share that chance alone hardly gives is marked."""
    from rich.table import Column, Table

    from cxr_hvd.console import Console

    parts = list(next(iter(balance.values())))
    table = Table(
        "present of all studies in",
        *[Column(part, justify="right") for part in parts],
        title="balance of what was drawn",
    )
    for label, shares in balance.items():
        if label == STUDIES:
            table.add_row(label, *[f"{num:,.0f}" for num in shares.values()], end_section=True)
        else:
            cells = [_cell(share, shares["source"], balance[STUDIES][part]) for part, share in shares.items()]
            table.add_row(label, *cells)
    Console(highlight=False).print(table)


def _cell(share: float, source: float, num_studies: float) -> "Text":
    from rich.text import Text

    text = f"{share:.1%}"
    is_far = abs(share - source) > _FAR * (source * (1 - source) / num_studies) ** 0.5
    return Text(f"{text} !", "yellow") if is_far else Text(text)


def _present(labels: list[tuple[float, ...]]) -> NDArray[np.bool_]:
    return np.asarray(np.array(labels, dtype=np.float32) == 1)
