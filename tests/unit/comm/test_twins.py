"""Sites with the same images: found whatever their names, labels and order, and without telling anything else."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cxr_hvd.comm.job import Job
from cxr_hvd.comm.sites import Topology
from cxr_hvd.ledger.allowed import check_traffic
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.agreement import find_twins
from cxr_hvd.training.display import twins_warning
from lab.study_files import write_study_file


class Gathering:
    """As many ranks as threads, which can gather and nothing else; keeps what they sent."""

    def __init__(self, num_ranks: int) -> None:
        self.rows: list[torch.Tensor] = [torch.empty(0)] * num_ranks
        self.barrier = threading.Barrier(num_ranks, timeout=30)
        self.sent: list[tuple[str, bytes]] = []

    def rank(self, rank: int) -> Any:
        def begin_allgather(tensor: torch.Tensor, purpose: str) -> Callable[[], torch.Tensor]:
            check_traffic(purpose, tensor.nbytes, "all")
            self.sent.append((purpose, bytes(tensor.tolist())))
            self.rows[rank] = tensor
            self.barrier.wait()
            gathered = torch.stack(self.rows)
            self.barrier.wait()
            return lambda: gathered

        return SimpleNamespace(begin_allgather=begin_allgather)


def twins_of(files: Sequence[Any], site_of_rank: Sequence[int], job: Gathering) -> list[list[str]]:
    names = tuple("abcdef"[: max(site_of_rank) + 1])

    def found(rank: int) -> list[list[str]]:
        topology = Topology(rank, names, tuple(site_of_rank))
        return find_twins(files[site_of_rank[rank]], Job(job.rank(rank), topology))

    with ThreadPoolExecutor(len(site_of_rank)) as ranks:
        answers = list(ranks.map(found, range(len(site_of_rank))))
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


def test_the_same_images_are_found_under_another_name_and_with_other_labels(tmp_path: Path) -> None:
    paths = [write_study_file(tmp_path / f"{site}.h5", num_studies=4, site=site) for site in ("north", "south")]
    paths.append(write_study_file(tmp_path / "other.h5", num_studies=4, seed=1))
    files = [StudyFile(path) for path in paths]
    assert files[0].digest != files[1].digest
    assert twins_of(files, [0, 1, 2], Gathering(3)) == [["a", "b"]]


@pytest.mark.parametrize(
    ("contents", "site_of_rank", "twins"),
    [
        ([[1, 2], [1, 2]], [0, 1], [["a", "b"]]),
        ([[1, 2], [2, 1]], [0, 1], [["a", "b"]]),
        ([[1, 2], [1, 3], [1, 2], [1, 3], [4]], [0, 0, 1, 2, 3, 4], [["a", "c"], ["b", "d"]]),
        ([[1, 2], [1, 2, 2]], [0, 1], []),
        ([[1, 2], [1]], [0, 0, 1, 1], []),
        ([[1]], [0, 0], []),
    ],
)
def test_twins_are_the_sites_whose_images_are_equal(
    contents: list[list[int]], site_of_rank: list[int], twins: list[list[str]]
) -> None:
    files = [SimpleNamespace(digests=np.array(rows, np.uint8)[:, None].repeat(32, 1)) for rows in contents]
    assert twins_of(files, site_of_rank, Gathering(len(site_of_rank))) == twins


def test_nothing_can_be_recognised_in_another_run() -> None:
    files = [SimpleNamespace(digests=np.full((3, 32), 7, np.uint8))] * 2
    jobs = [Gathering(2), Gathering(2)]
    for job in jobs:
        assert twins_of(files, [0, 1], job) == [["a", "b"]]
    first, second = ({content for _, content in job.sent} for job in jobs)
    assert not first & second and {purpose for purpose, _ in jobs[0].sent} == {"data.nonce", "data.tag"}


def test_the_warning_names_sites_and_keys() -> None:
    warning = twins_warning(["a", "b"])
    assert "a and b have the same images" in warning and "sites.a.data and sites.b.data" in warning
