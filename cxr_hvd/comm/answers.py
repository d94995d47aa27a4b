"""What other ranks hand over, taken for no more than it is: an answer without its form stops all, in one line.

Another site may run another program, or a damaged one. What all ranks are given, all judge alike, so that all stop
with the same line, which names the rank. Pure.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from cxr_hvd.errors import ContractError
from cxr_hvd.terminal import shown

Answer = TypeVar("Answer")
Read = TypeVar("Read")
NameOf = Callable[[int], str]


def name_rank(rank: int) -> str:
    """Call a rank by its number, where its site is not known yet."""
    return f"rank {rank}"


def read_answers(
    answers: Iterable[Answer], read: Callable[[Answer], Read], purpose: str, name_of: NameOf = name_rank
) -> list[Read]:
    """Read what every rank handed over, in rank order.

    Args:
        read: raises a ValueError, or what Python raises of itself, where an answer has not its form.
        purpose: what was asked for, for the message.
        name_of: how messages call a rank.

    Raises:
        ContractError: on every rank alike, where one rank's answer cannot be read.
    """
    values = []
    for rank, answer in enumerate(answers):
        try:
            values.append(read(answer))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ContractError(
                f"{name_of(rank)}: its answer in {purpose} has not its form ({shown(error)}); start the same "
                "version of cxr_hvd at all sites"
            ).agreed() from error
    return values


def check_number(number: float, low: float, high: float) -> float:
    """Return a number that lies between two others; raise a ValueError where it does not, or is NaN."""
    if not low <= number <= high:
        raise ValueError(f"expected at least {low:,} and at most {high:,}, found {number}")
    return number
