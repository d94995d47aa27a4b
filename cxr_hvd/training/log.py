"""Write the records of a run beside its checkpoints: what it is, its metrics, and the ledger of what left."""

import json
import math
import platform
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch

from cxr_hvd import __version__
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.sites import Topology
from cxr_hvd.config.schema import Config
from cxr_hvd.data.studies import TrainingData
from cxr_hvd.ledger.writer import Ledger, head_name, ledger_name, opening
from cxr_hvd.partial.plan import SharingPlan
from cxr_hvd.partial.record import plan_record
from cxr_hvd.record import Record
from cxr_hvd.training.agreement import COMPARED_VERSIONS, version_of
from cxr_hvd.training.first_weights import FirstWeights
from cxr_hvd.training.records import Budget, RunEnvironment, StepRow, Verdict
from cxr_hvd.training.run_folder import RunFolder, disk_errors
from cxr_hvd.training.step_report import StepReport

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SHOWN_OF_STEP = ("learning_rate", "gradient_norm", "data_s", "compute_s", "averaging_s", "studies_per_s")
"""Of a step's row, what TensorBoard shows beside the losses."""


def record_run(
    folder: RunFolder, config: Config, plan: SharingPlan, data: TrainingData, budget: Budget, weights: FirstWeights
) -> None:
    """Write down what this run is: resolved config, plan, environment, data, first weights."""
    record_settings(folder, config, data, budget, weights)
    folder.write_record("plan.json", plan_record(plan).model_dump())


def record_settings(
    folder: RunFolder, config: Config, data: TrainingData, budget: Budget, weights: FirstWeights
) -> None:
    """Write down what a run may change when it goes on: resolved config, environment, length."""
    resolved = config.model_dump(mode="json")
    for name, site in config.sites.items():
        resolved["sites"][name]["data"] = str(site.data.resolve())
    if config.model.weights:
        resolved["model"]["weights"] = str(config.model.weights.resolve())
    folder.write_record("config.yaml", resolved)
    packages = (*COMPARED_VERSIONS, "timm", "h5py", "mpi4py", "opencv-python-headless", "scikit-learn")
    environment = RunEnvironment(
        cxr_hvd=__version__,
        python=platform.python_version(),
        machine=platform.machine(),
        threads=torch.get_num_threads(),
        packages={name: version_of(name) for name in packages},
        data={file.header.site: file.digest for file in data.files},
        label_names=list(data.studies.label_names),
        weights=weights.digest,
        weights_of_run=weights.is_of_run,
        weights_trained_labels=list(weights.trained_labels),
        budget=budget,
    )
    folder.write_record("environment.json", environment.model_dump())


class Log:
    """A site's curves: `metrics.jsonl`, `validation.jsonl` and TensorBoard's files. The site's leader writes them.

    Args:
        first_step: what TensorBoard holds from there on, of a run that went back, is not shown.
        num_studies: studies that all ranks take in a step.
    """

    def __init__(self, folder: RunFolder, topology: Topology, first_step: int, num_studies: int) -> None:
        self._topology = topology
        self._first_step = first_step
        self._num_studies = num_studies
        self._folder = folder.path
        self._board: SummaryWriter | None = None
        self._opened = ExitStack()
        if topology.is_site_leader:
            with disk_errors(folder.path):
                self._metrics, self._verdicts = (
                    self._opened.enter_context((folder.path / name).open("a", encoding="utf-8"))
                    for name in ("metrics.jsonl", "validation.jsonl")
                )

    def step(self, report: StepReport) -> None:
        """Note a step."""
        if not self._topology.is_site_leader:
            return
        losses = loss_of_site(self._topology, report.loss_of_rank)
        row = StepRow(
            step=report.step,
            loss=_finite(report.loss),
            loss_of_site={name: _finite(loss) for name, loss in losses.items()},
            learning_rate=report.learning_rate,
            gradient_norm=_finite(report.gradient_norm),
            is_skipped=report.is_skipped,
            data_s=report.data_s,
            compute_s=report.compute_s,
            averaging_s=report.averaging_s,
            studies_per_s=self._num_studies / max(report.data_s + report.compute_s + report.averaging_s, 1e-9),
        )
        _write_row(self._metrics, row)
        values = {f"loss/{name}": loss for name, loss in row.loss_of_site.items()}
        values |= {name: getattr(row, name) for name in SHOWN_OF_STEP}
        for name, value in values.items():
            if value is not None:
                self._show(name, value, report.step)

    def verdict(self, verdict: Verdict) -> None:
        """Note a validation."""
        if not self._topology.is_site_leader:
            return
        _write_row(self._verdicts, verdict)
        for name in ("macro_auroc", "agreed_auroc", "mean_accuracy"):
            if getattr(verdict, name) is not None:
                self._show(f"validation/{name}", getattr(verdict, name), verdict.step)

    def close(self) -> None:
        self._opened.close()

    def _show(self, name: str, value: float, step: int) -> None:
        """Add a point to one of TensorBoard's curves; its package is imported after the first step, not before."""
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            with disk_errors(self._folder):
                board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._first_step)
            self._board = self._opened.enter_context(closing(board))
        self._board.add_scalar(name, value, step)


def loss_of_site(topology: Topology, loss_of_rank: Sequence[float]) -> dict[str, float]:
    """Return the mean loss of each site's ranks, by the site's name."""
    return {
        name: sum(loss_of_rank[rank] for rank in ranks) / len(ranks)
        for site, name in enumerate(topology.site_names)
        for ranks in [topology.ranks_at(site)]
    }


def _finite(value: float) -> float | None:
    """Return what JSON can hold of a number."""
    return value if math.isfinite(value) else None


def _write_row(file: TextIO, row: Record) -> None:
    with disk_errors(Path(file.name)):
        file.write(json.dumps(row.model_dump()) + "\n")
        file.flush()


def open_ledger(folder: RunFolder, job: Job, first_step: int, ledger: Ledger | None = None) -> None:
    """Write what leaves this rank to its run folder from now on. Collective: every rank.

    Args:
        ledger: the job's where left out.
    """
    with job.together("opening its ledger"):
        rank_in_site = job.topology.rank_in_site
        first_event = opening(
            job.site,
            job.rank,
            job.num_ranks,
            rank_in_site,
            job.num_ranks_of_site,
            folder.path / "plan.json",
            first_step,
        )
        (ledger or job.ledger).open(folder.path / ledger_name(rank_in_site), first_event)


def witness_ledgers(job: Job, ledgers: Sequence[Ledger] = ()) -> None:
    """Write the end of every rank's ledger into each, and close them. Collective: every rank.

    Args:
        ledgers: of this rank, one for each run that takes part; the job's where left out.
    """
    for ledger in ledgers or [job.ledger]:
        _witness(ledger, job)
    job.ledger.close()


def _witness(ledger: Ledger, job: Job) -> None:
    head = torch.frombuffer(bytearray.fromhex(ledger.head()), dtype=torch.uint8)
    heads, topology = job.allgather(head, "head.ledger"), job.topology
    names = [
        head_name(topology.site_names[site], topology.ranks_at(site).index(rank))
        for rank, site in enumerate(topology.site_of_rank)
    ]
    with job.together("closing its ledger"):
        ledger.record_heads({name: bytes(head.tolist()).hex() for name, head in zip(names, heads, strict=True)})
