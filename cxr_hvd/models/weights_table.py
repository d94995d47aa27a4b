"""What became of each tensor when a network was started from a file of weights, and the table that shows it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cxr_hvd.terminal import shown

MAX_NAMES = 8
PARTS_OF_BLOCK = 2


@dataclass(frozen=True)
class WeightsTable:
    """Each tensor of a network that was started from a file, and each of the file's, by what became of it.

    Attributes:
        source: the file, or the run and its checkpoint.
        digest: SHA-256 of the tensors as they were read.
        loaded: names of the network's tensors that are the file's.
        widened: those of convolutions that were made for 20 images.
        fresh: those that keep their first values, with why.
        not_used: the file's tensors that the network has no place for.
        num_loaded: parameters, as single numbers, that came from the file.
        num_parameters: parameters of the network.
    """

    source: str
    digest: str
    loaded: tuple[str, ...]
    widened: tuple[str, ...]
    fresh: Mapping[str, str]
    not_used: tuple[str, ...]
    num_loaded: int
    num_parameters: int

    def as_table(self) -> Group:
        """Build the table for a terminal."""
        share = f"{100 * self.num_loaded / self.num_parameters:.1f}%"
        title = f"Weights from {self.source}: {share} of {self.num_parameters:,} parameters"
        table = Table()
        table.add_column("tensors")
        table.add_column("number", justify="right")
        table.add_column("names")
        rows: dict[str, tuple[int, Iterable[str]]] = {
            "loaded": (len(self.loaded), _parts(self.loaded)),
            "widened to 20 images": (len(self.widened), self.widened),
            "fresh": (len(self.fresh), [f"{name} ({why})" for name, why in self.fresh.items()]),
            "of the file, not used": (len(self.not_used), self.not_used),
        }
        for heading, (number, names) in rows.items():
            table.add_row(heading, f"{number}", _listed(names))
        notes = [Text(f"SHA-256 of its tensors: {self.digest}")]
        if 2 * self.num_loaded < self.num_parameters:
            notes.append(Text("warning: less than half of the network is the file's: is it of this network?"))
        return Group(Text(shown(title)), table, *notes)


def _parts(names: Iterable[str]) -> Iterable[str]:
    """Return the parts of a network that tensors belong to, each once."""
    return dict.fromkeys(".".join(name.split(".")[:-1][:PARTS_OF_BLOCK]) or name for name in names)


def _listed(names: Iterable[str]) -> str:
    clean = [shown(name, 90) for name in names]
    more = f" and {len(clean) - MAX_NAMES} more" if len(clean) > MAX_NAMES else ""
    return ", ".join(clean[:MAX_NAMES]) + more
