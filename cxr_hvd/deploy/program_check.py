"""How far an exported program may be from PyTorch, and how far it is."""

from cxr_hvd.record import Count, Finite, Name, Record

MAX_DIFFERENCE = 1e-4


class ProgramCheck(Record):
    """How far an exported program is from PyTorch.

    Attributes:
        file: the program.
        runtime, version: what ran it.
        studies: on which studies, in words.
        num_studies: how many.
        largest_difference: of two probabilities, over all of these studies and all trained labels.
    """

    file: Name
    runtime: Name
    version: Name
    studies: Name
    num_studies: Count
    largest_difference: Finite
