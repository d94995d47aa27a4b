"""The fragments of an overlapped average: how many steps one takes, and which tensors are in it. Pure.

Decision 0035 has the reasons.
"""

from collections.abc import Mapping, Sequence

from cxr_hvd.partial.tensor_spec import TensorSpec

MAX_DELAY = 4
"""The most steps that an overlapped average may take: a stop, and news of a fault, come as many steps later."""


def choose_delay(every: int) -> int:
    """Return the steps from the begin of a fragment's average to its end, of fragments that go once in `every`."""
    return min(MAX_DELAY, max(1, every // 4))


def assign_fragments(blocks: Mapping[str, Sequence[TensorSpec]], num_fragments: int) -> dict[str, int]:
    """Return the fragment of each tensor, by its name: about as many numbers in each, in the blocks' order."""
    fragments: dict[str, int] = {}
    specs = [spec for members in blocks.values() for spec in members]
    total, start = sum(spec.num_elements for spec in specs), 0
    for spec in specs:
        middle = (start + spec.num_elements / 2) / max(total, 1)
        fragments[spec.name] = min(int(middle * num_fragments), num_fragments - 1)
        start += spec.num_elements
    return fragments


def describe_fragments(num_fragments: int, delay: int) -> str:
    """Say when fragments travel."""
    steps = "step" if delay == 1 else f"{delay} steps"
    one = "in one fragment" if num_fragments == 1 else f"one of {num_fragments} fragments"
    return f"{one} every {steps} while training goes on, taken in {steps} later"
