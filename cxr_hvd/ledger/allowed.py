"""Everything that may ever leave a rank, in one table.

A collective is called with a purpose, `root` or `root.detail`; the root must stand below. The ledger notes by
these names, the audit judges by them, and a hospital's IT department can read them. What is not in the table
cannot be sent. How a thing travels is said in `comm`, which tensors do in `partial.plan`.
"""

from dataclasses import dataclass
from typing import Literal

from cxr_hvd.errors import ContractError

Group = Literal["all", "site"]
"""Who takes part: all ranks, or the ranks of one's own site."""

How = Literal["allreduce", "allgather", "alltoall"]
"""What a collective does: all get the sum, all get every rank's own, or each gets its part of every rank's."""

NUMBER = 8
HASH = 32
TEXT = 1 << 20


@dataclass(frozen=True)
class Traffic:
    """One thing that a rank may hand to others.

    Attributes:
        what: what it is, in plain words.
        when: how often, in plain words.
        max_bytes: the most that a rank hands over per call; None where the sharing plan says how many.
        calls_per_start: the most calls from one start of the program to its end, or None.
        calls_per_step: the most calls in one step, for each name and way of travelling, or None.
        is_site_only: whether it stays among the ranks of one site.
    """

    what: str
    when: str
    max_bytes: int | None
    calls_per_start: int | None = None
    calls_per_step: int | None = None
    is_site_only: bool = False


PER_AVERAGE = "at every average"

TRAFFIC: dict[str, Traffic] = {
    "site": Traffic("index of the site that the rank belongs to", "once at the start", NUMBER, 1),
    "verdict": Traffic("whether a phase failed (an exit code)", "at the end of each phase", NUMBER),
    "contract": Traffic(
        "SHA-256 of what all sites must have alike (config, plan, label order, versions); "
        "its text only where it differs",
        "at the start",
        TEXT,
        6,
    ),
    "key": Traffic(
        "random numbers and proofs that all hold the common key, never the key", "once at the start", 64, 4
    ),
    "device": Traffic(
        "a number that two ranks on one GPU have in common (a hash of the machine's random boot number and the "
        "GPU's slot), 0 on a processor; whether Horovod has NCCL",
        "once at the start",
        2 * NUMBER,
        1,
    ),
    "studies": Traffic("numbers of training and of validation studies", "once at the start", 2 * NUMBER, 1),
    "labels": Traffic(
        "which labels at least one of its training studies mentions", "once at the start", 64 * NUMBER, 1
    ),
    "data": Traffic(
        "random numbers, and under them a hash of its images, new in each run: tells sites with the same images",
        "once at the start",
        HASH,
        2,
    ),
    "steps": Traffic("numbers of the steps that its checkpoints are of", "once at the start", 8 * NUMBER, 1),
    "known": Traffic(
        "number of known labels in a batch", "every step", NUMBER, calls_per_step=1, is_site_only=True
    ),
    "progress": Traffic(
        "number of steps that it has taken, and whether it goes on",
        "at every average of a training loop of one's own, and when it ends",
        2 * NUMBER,
        calls_per_step=3,
    ),
    "weights": Traffic("shared weights of the network", PER_AVERAGE, None, calls_per_step=1),
    "statistics": Traffic("shared BatchNorm means and variances", PER_AVERAGE, None, calls_per_step=1),
    "moments": Traffic("the optimizer's running means of shared weights", PER_AVERAGE, None, calls_per_step=1),
    "gradients": Traffic("gradients of shared weights", "every step", None, calls_per_step=1),
    "private": Traffic("private tensors of the network", PER_AVERAGE, None, calls_per_step=1, is_site_only=True),
    "status": Traffic(
        "the loss of the batch, the norm of its shared gradient, whether the private one is finite, whether the "
        "rank asks to stop, whether its checkpoint is written",
        "every step",
        5 * NUMBER,
        calls_per_step=1,
    ),
    "norm": Traffic("the norm of the private gradient", "every step", NUMBER, calls_per_step=1, is_site_only=True),
    "fault": Traffic(
        "name of the tensor that is not finite", "once, when a step ends the run", TEXT, calls_per_start=2
    ),
    "auroc": Traffic("the site's mean AUROC over labels", "at every validation", NUMBER, calls_per_step=1),
    "scores": Traffic(
        "probabilities of validation studies", "at every validation", TEXT, calls_per_step=1, is_site_only=True
    ),
    "results": Traffic("metrics of `evaluate` for each label, no study's score", "once at the end", TEXT, 2),
    "answers": Traffic(
        "probabilities of the studies that a network is judged on",
        "when runs are judged across sites",
        TEXT,
        is_site_only=True,
    ),
    "network": Traffic(
        "private tensors of a trained network, to be judged at other sites: only where all sites have set "
        "sharing.evaluate_private",
        "once for each run that is judged across sites",
        1 << 32,
    ),
    "summary": Traffic(
        "of all networks that were judged on its test studies: their AUROCs, accuracies and Brier scores, and how "
        "these move together over its patients; numbers of test studies; histograms; nothing of fewer than 10 "
        "patients, no study's score",
        "once for each release of results across sites",
        1 << 25,
        2,
    ),
    "probe": Traffic("random bytes that measure the line", "when `doctor --peer` asks for it", 1 << 24),
    "leaving": Traffic("a zero, when all leave together after an error", "once at the end", NUMBER, 1),
    "head": Traffic("last hash of the rank's ledger", "when ledgers are witnessed", HASH),
}

MODEL_ROOTS = ("weights", "gradients", "statistics", "moments")
"""Roots whose tensors may leave a site: each must be a buffer of the sharing plan."""


def root_of(purpose: str) -> str:
    """Return the part of a purpose that the table knows it by."""
    return purpose.partition(".")[0]


def traffic_of(purpose: str) -> Traffic:
    """Return what the table says of a purpose.

    Raises:
        ValueError: the table does not foresee it: a defect of the caller.
    """
    traffic = TRAFFIC.get(root_of(purpose))
    if traffic is None:
        raise ValueError(f"'{purpose}' may not leave a rank: expected one of {', '.join(TRAFFIC)}")
    return traffic


def check_traffic(purpose: str, num_bytes: int, group: Group | None = None) -> None:
    """Raise where a rank offers more than the table allows, or to more ranks.

    Raises:
        ContractError: too many bytes, or to all sites what must stay at its own.
        ValueError: the table does not foresee the purpose: a defect of the caller.
    """
    traffic = traffic_of(purpose)
    if traffic.max_bytes is not None and num_bytes > traffic.max_bytes:
        raise ContractError(
            f"{purpose}: {num_bytes} bytes were to leave this rank, at most {traffic.max_bytes} may; none did"
        )
    if traffic.is_site_only and group == "all":
        raise ContractError(f"{purpose}: was to go to all sites, but must stay at its own; nothing was sent")
