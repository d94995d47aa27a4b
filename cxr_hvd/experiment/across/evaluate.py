"""Judge runs across sites: `mpirun -np N cxr-hvd evaluate RUN... --across-sites`. Images and scores stay at home.

Each site judges networks on its own TEST patients and sends what they are worth and how chance moves that over
these patients: sums, from which all sites make the same `across.json`. Where one place may read all files,
`scoring` is the pooled way.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cxr_hvd import __version__
from cxr_hvd.comm.answers import check_number, read_answers
from cxr_hvd.comm.communicator import Communicator, together
from cxr_hvd.comm.contract import check_contract
from cxr_hvd.comm.device import choose_device, set_threads
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.sites import bind
from cxr_hvd.data.loader import batching_of_run
from cxr_hvd.data.studies import StudySet
from cxr_hvd.errors import StudyFileError, UsageError
from cxr_hvd.experiment.across.networks import (
    SiteRun,
    agreed_items,
    list_networks,
    load_networks,
    open_site_runs,
)
from cxr_hvd.experiment.across.numbers import Layout
from cxr_hvd.experiment.across.record import ACROSS, Across, SiteSummary
from cxr_hvd.experiment.across.releases import (
    Patients,
    check_releases,
    describe_patients,
    networks_digest,
    note_release,
)
from cxr_hvd.experiment.across.summary import lay_out, summarise
from cxr_hvd.files import write_text
from cxr_hvd.ledger.of_runs import LedgerOfRuns
from cxr_hvd.ledger.writer import Ledger
from cxr_hvd.stats.sample import Sample
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.log import open_ledger, witness_ledgers
from cxr_hvd.training.run_folder import RunFolder, disk_errors, sites_in
from cxr_hvd.training.validation import predict_at_site


@dataclass(frozen=True)
class TestSet:
    """A site's TEST studies: what networks are judged on, what is known of them, and whose they are."""

    studies: StudySet
    sample: Sample
    patients: Patients


def evaluate_across_sites(
    runs: Sequence[Path], comm: Communicator, settings: Sequence[str] = (), which: str = "latest"
) -> Across:
    """Judge runs on the TEST studies of all sites; write `across.json` into each site's folder of each run.

    Collective: every rank, as many as the runs were trained on; each reads its own site's folders and study file
    alone. Blocking.

    Args:
        settings: laid over the config of each run.
        which: the checkpoint to judge, `latest` or `best`.

    Returns:
        The results, the same on every rank.

    Raises:
        CxrHvdError: on every rank alike.
    """
    set_threads(comm)
    with _noted_in(LedgerOfRuns([Ledger() for _ in runs]), comm) as ledgers:
        return _evaluate_across(runs, comm, settings, which, ledgers)


@contextmanager
def _noted_in(ledgers: LedgerOfRuns, comm: Communicator) -> Iterator[LedgerOfRuns]:
    """Have a communicator note what it hands over in the ledgers of several runs."""
    before, comm.ledger = comm.ledger, ledgers
    try:
        yield ledgers
    finally:
        ledgers.close()
        comm.ledger = before


def _evaluate_across(
    runs: Sequence[Path], comm: Communicator, settings: Sequence[str], which: str, ledgers: LedgerOfRuns
) -> Across:
    with together(comm, "reading its run folders"):
        config = RunFolder(runs[0], sites_in(runs[0])[0]).config(tuple(settings))
        ranks_per_site = {name: section.ranks for name, section in config.sites.items()}
        if comm.num_ranks == 1 < sum(ranks_per_site.values()):
            raise UsageError(
                f"--across-sites: expected a launch of {sum(ranks_per_site.values())} ranks, each with its own "
                "site's folders and file (mpirun -np N cxr-hvd evaluate RUN... --across-sites), found one rank; "
                "where one place may read all sites' files: --pooled"
            )
    topology = bind(comm, ranks_per_site)
    comm.watchdog.call_rank(topology.name_of(topology.rank))
    with ExitStack() as opened:
        # Every rank opens its own site's runs and test studies, and all agree on what is judged.
        with together(comm, "opening its site's runs and study file"):
            job = Job(comm, topology, choose_device(config.training.device, comm))
            path = RunFolder(runs[0], job.site).config(tuple(settings)).sites[job.site].data
            file = opened.enter_context(StudyFile(path))
            label_names = file.header.label_names
            site_runs = open_site_runs(runs, job.site, tuple(settings), which, len(label_names))
            test_set = open_test_set(file, site_runs)
            folders = [site_run.folder for site_run in site_runs]
            check_releases(folders, test_set.patients)
        check_contract(job, agreed_items(site_runs, file, which))
        networks = list_networks(site_runs)
        layout = lay_out(site_runs, networks, label_names, topology.site_names)
        for site_run, ledger in zip(site_runs, ledgers.ledgers, strict=True):
            open_ledger(site_run.folder, job, site_run.step, ledger)

        # Every site judges what it has, and notes the release before a number leaves.
        scores_KNL = score(site_runs, test_set.studies, job)
        digest = networks_digest(list(map(str, networks)))
        with job.together("judging its test studies"):
            summary = summarise(job.site, scores_KNL, test_set.sample, label_names, layout)
            if job.is_site_leader:
                note_release(folders, test_set.patients, [str(network) for network in networks])

        # All sites learn the numbers of all, and make the same record of them.
        numbers = torch.from_numpy(layout.write(summary))
        summaries = exchange(numbers, layout, digest, job)
        across = Across(
            tool=f"cxr-hvd {__version__}",
            checkpoint=which,
            label_names=label_names,
            networks=tuple(networks),
            sites=summaries,
        )
        with job.together("writing its results"):
            if job.is_site_leader:
                for folder in folders:
                    with disk_errors(folder.path / ACROSS):
                        write_text(folder.path / ACROSS, across.model_dump_json() + "\n")
        witness_ledgers(job, ledgers.ledgers)
    return across


def open_test_set(file: StudyFile, site_runs: Sequence[SiteRun]) -> TestSet:
    """Read what is known of a site's TEST studies.

    Raises:
        StudyFileError: there are none.
        UsageError: a run was trained on another study file.
    """
    for site_run in site_runs:
        other = site_run.config.sites[site_run.folder.path.name].data
        if other.resolve() != file.path.resolve():
            with StudyFile(other) as its_file:
                if its_file.digest != file.digest:
                    raise UsageError(
                        f"{site_run.folder.path}: expected the study file of the other runs, {file.path}, found "
                        f"another, {other}; judge the runs apart, or give --set sites.NAME.data=FILE"
                    )
    studies = StudySet([file], Split.TEST, site_runs[0].config.labels.policy(file.header.label_names))
    if not len(studies):
        raise StudyFileError(f"{file.path}: expected TEST studies, found none; draw some with --test N")
    patients_N = np.unique(file.patient_ids[file.indices(Split.TEST)], return_inverse=True)[1]
    sample = Sample(studies.targets, studies.known, patients_N)
    return TestSet(studies, sample, describe_patients(file, studies))


def score(site_runs: Sequence[SiteRun], studies: StudySet, job: Job) -> NDArray[np.float32]:
    """Return probabilities (K, N, L) of all networks that are judged here. Collective: every rank."""
    rows = []
    for site_run in site_runs:
        batching = batching_of_run(site_run.config, torch.get_num_threads())
        for _, network in load_networks(site_run, job, len(studies.label_names)):
            rows.append(predict_at_site(network, studies, batching, job, purpose="answers"))
    return np.stack(rows)


def exchange(numbers: torch.Tensor, layout: Layout, digest: str, job: Job) -> tuple[SiteSummary, ...]:
    """Return the summaries of all sites. Collective: every rank. Blocking.

    Raises:
        ContractError: on every rank alike, where one sends numbers that no patients can give.
    """
    topology = job.topology

    def check_length(answer: list[float]) -> None:
        check_number(answer[0], layout.length, layout.length)

    job.allgather_numbers(torch.tensor([len(numbers)]), "summary.length", check_length)
    rows = job.allgather(numbers, f"summary.{digest[:16]}").tolist()
    sites = [topology.site_names[site] for site in topology.site_of_rank]
    of_rank = read_answers(
        list(zip(sites, rows, strict=True)), lambda answer: layout.read(*answer), "summary", job.name_of
    )
    leaders = [topology.ranks_at(site)[0] for site in range(topology.num_sites)]
    return tuple(of_rank[leader] for leader in leaders)
