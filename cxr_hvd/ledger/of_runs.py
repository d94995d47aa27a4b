"""One ledger for each of several runs that are judged together: what is handed over stands in all of them.

So the ledger of each run tells of every release that the run had a part in, also where it is looked at alone.
"""

from collections.abc import Sequence

from cxr_hvd.ledger.allowed import Group, How
from cxr_hvd.ledger.writer import Ledger


class LedgerOfRuns(Ledger):
    """What a rank hands over, noted in several ledgers.

    Args:
        ledgers: one for each run; each is opened by itself.
    """

    def __init__(self, ledgers: Sequence[Ledger]) -> None:
        super().__init__()
        self.ledgers = tuple(ledgers)

    def note(
        self,
        purpose: str,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        num_bytes: int,
        group: Group,
        group_size: int,
        how: How,
    ) -> None:
        """Note in all ledgers one tensor that is about to be handed over."""
        for ledger in self.ledgers:
            ledger.note(purpose, name, shape, dtype, num_bytes, group, group_size, how)

    def close(self) -> None:
        """Close all of them."""
        for ledger in self.ledgers:
            ledger.close()
