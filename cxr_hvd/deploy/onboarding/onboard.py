"""Onboard a hospital that took no part: it trains private blocks of its own, and the others' shared blocks stay.

    RUN/onboarding.yaml, RUN/start.safetensors       what it trains, and from where
    RUN/SITE/                                        its run, as every other: checkpoints, validation, ledger
    RUN/from-nothing.yaml, RUN/from-nothing/SITE/    the same budget from fresh weights
    RUN/onboarding.json                              what all are worth on its own TEST studies

Nothing is sent: both trainings are runs of one site on one rank. Owns their order. Why so:
docs/decisions/0030-onboarding.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from cxr_hvd.comm.local import LocalComm
from cxr_hvd.config.schema import Config
from cxr_hvd.data.loader import batching_of_run, plain_batches
from cxr_hvd.data.studies import StudySet
from cxr_hvd.deploy.network import load_model
from cxr_hvd.deploy.network_file import write_network
from cxr_hvd.deploy.onboarding.advice import advise
from cxr_hvd.deploy.onboarding.comparison import NOTHING, ONBOARDED, compare_networks
from cxr_hvd.deploy.onboarding.config import (
    FROM_NOTHING,
    START,
    Budget,
    Division,
    divide,
    from_nothing_tree,
    onboarding_tree,
    write_config,
)
from cxr_hvd.deploy.onboarding.record import ONBOARDING, OnboardingRecord
from cxr_hvd.deploy.onboarding.scores import (
    JudgedStudies,
    ScoredNetwork,
    judged_studies,
    score_network,
    score_others,
)
from cxr_hvd.deploy.onboarding.source import Source, load_source
from cxr_hvd.deploy.predict import check_labels, check_pixels
from cxr_hvd.errors import StudyFileError, UsageError
from cxr_hvd.files import check_output, write_text
from cxr_hvd.models.statistics import measure_statistics
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.network_record import HEAD
from cxr_hvd.training.run_folder import RunFolder, disk_errors
from cxr_hvd.training.train import LaunchOptions, train

NUM_RESAMPLES = 2000
MEASURED_STUDIES = 1024
"""Of so many training studies a norm's statistics are measured, at most."""


@dataclass(frozen=True)
class OnboardingOptions:
    """What the new hospital asks for.

    Attributes:
        run: the folder that is made.
        site: its name; None: as its study file says.
        more_private: a preset, or blocks, that it trains besides those that the others kept.
        budget: how long both networks are trained.
        settings: `section.key=value` for both configs.
        launch: what becomes of a run that is in the folder already.
    """

    run: Path
    site: str | None = None
    more_private: Sequence[str] = ()
    budget: Budget = field(default_factory=Budget)
    settings: Sequence[str] = ()
    launch: LaunchOptions = field(default_factory=LaunchOptions)


@dataclass(frozen=True)
class Onboarding:
    """An onboarding before its first step.

    Attributes:
        site: the new hospital.
        division: what it trains, and what stays.
        config, from_nothing: of its two trainings.
    """

    site: str
    division: Division
    config: Config
    from_nothing: Config
    options: OnboardingOptions


def onboard(path: Path, data: Path, options: OnboardingOptions) -> OnboardingRecord:
    """Train a new hospital's networks and judge them beside the others'; write `onboarding.json`. Not collective.

    Args:
        path: the others' run, one site's folder in it, a network file, or an export.
        data: the new hospital's study file.

    Raises:
        Stopped: a training was asked to stop and has written a checkpoint.
        CxrHvdError: something does not fit.
    """
    source = load_source(path)
    with StudyFile(data) as file:
        prepared = prepare(source, file, options)
        studies = judged_studies(file, prepared.config)
        train_both(prepared)
        others = score_others(source.networks, source.start, studies, prepared.config)
        return judge(prepared, source, file, studies, others)


def prepare(source: Source, file: StudyFile, options: OnboardingOptions) -> Onboarding:
    """Check a study file against the others' networks; write both configs and the network to start from.

    Raises:
        CxrHvdError: labels, pixels, names or blocks do not fit.
    """
    site, run = options.site or file.header.site, options.run
    if site in (*source.sites, FROM_NOTHING):
        raise UsageError(
            f"--site {site}: expected a name that none of {', '.join(source.sites)} has, and not {FROM_NOTHING}; "
            "name the new hospital with --site NAME"
        )
    check_labels(source.start, file)
    check_pixels(source.start, file)
    if not len(file.indices(Split.TRAIN)):
        raise StudyFileError(f"{file.path}: expected training studies, found none; draw some with --train N")
    division = divide(source, options.more_private)
    if options.launch.resume != "auto":
        check_output(run / ONBOARDING, options.launch.overwrite, "--run")
        if options.launch.resume == "never" and not options.launch.overwrite:
            RunFolder(run, site).check_new()
            RunFolder(run / FROM_NOTHING, site).check_new()
    num_studies = len(file.indices(Split.TRAIN))
    tree = onboarding_tree(source, division, site, file.path, num_studies, options.budget, run)
    config = write_config(run / "onboarding.yaml", tree, options.settings)
    from_nothing = write_config(run / f"{FROM_NOTHING}.yaml", from_nothing_tree(tree), options.settings)
    start = source.start
    if division.statistics:
        measure_own_statistics(source, division, file, config)
    with disk_errors(run / START):
        write_network(run / START, start)
    return Onboarding(site, division, config, from_nothing, options)


def measure_own_statistics(source: Source, division: Division, file: StudyFile, config: Config) -> None:
    """Give the norms of shared layers running statistics of the new hospital's training studies, in place."""
    studies = StudySet([file], Split.TRAIN, config.labels.policy(file.header.label_names))
    batching = batching_of_run(config, torch.get_num_threads())
    positions = list(range(min(len(studies), MEASURED_STUDIES)))
    batches = plain_batches(
        studies, positions, batching.batch_size, batching.image_size, batching.threads, batching.prefetch
    )
    measure_statistics(source.start.model, division.statistics, (batch.images for batch in batches))


def train_both(prepared: Onboarding) -> None:
    """Train the onboarded network, and the one from nothing with the same budget. Not collective. Blocking."""
    run, launch = prepared.options.run, prepared.options.launch
    train(prepared.config, run, LocalComm(), launch)
    second = replace(launch, resume="auto") if launch.resume == "latest" else launch
    train(prepared.from_nothing, run / FROM_NOTHING, LocalComm(), second)


def judge(
    prepared: Onboarding,
    source: Source,
    file: StudyFile,
    studies: JudgedStudies,
    others: Sequence[ScoredNetwork],
    num_resamples: int = NUM_RESAMPLES,
) -> OnboardingRecord:
    """Judge all networks on the new hospital's TEST studies, and write `onboarding.json`."""
    run, site, config = prepared.options.run, prepared.site, prepared.config
    labels = source.labels if HEAD in prepared.division.frozen else None  # others taught a head that stays
    onboarded = score_network(load_model(run / site), ONBOARDED, ONBOARDED, studies, config, trained_labels=labels)
    second = load_model(run / FROM_NOTHING / site)
    from_nothing = score_network(second, NOTHING, NOTHING, studies, config)
    compared = compare_networks([*others, onboarded, from_nothing], studies, num_resamples)
    record = OnboardingRecord(
        source=str(source.path),
        others=source.sites,
        site=site,
        trained=list(prepared.division.trained),
        frozen=list(prepared.division.frozen),
        num_steps=config.training.max_steps or 0,
        batch_size=config.training.batch_size,
        learning_rate=config.training.learning_rate,
        seed=config.seed,
        num_train=len(file.indices(Split.TRAIN)),
        num_validate=len(studies.sets[Split.VALIDATE]),
        num_test=len(studies.sets[Split.TEST]),
        num_patients=len(set(studies.samples[Split.TEST].patients_N.tolist())),
        labels=compared.labels,
        labels_of_others=compared.labels_of_others,
        best_other=compared.best_other,
        networks=compared.networks,
    )
    record = record.model_copy(update={"advice": tuple(advise(record))})
    with disk_errors(run / ONBOARDING):
        write_text(run / ONBOARDING, record.model_dump_json(indent=1) + "\n")
    return record
