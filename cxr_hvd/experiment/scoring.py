"""Every network of a run on every site's studies, in one place: `cxr-hvd evaluate RUN --pooled`.

For comparisons, where one place may read all sites' files; where none may, `across` is the way. The ranks share
the batches out; each writes its part beside the scores, and one puts them together: no score enters a collective.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from cxr_hvd.comm.communicator import Communicator, together
from cxr_hvd.comm.device import choose_device, set_threads
from cxr_hvd.config.schema import Config, config_digest
from cxr_hvd.config.sections import SITE_PATTERN
from cxr_hvd.data.loader import batching_of_run
from cxr_hvd.data.studies import StudySet, check_pixel_pipelines
from cxr_hvd.errors import CheckpointError, UsageError
from cxr_hvd.experiment.scores import AVERAGED, COMMON, NAME, Origin, RunScores, Truth, write_scores
from cxr_hvd.files import begin_folder, folder_beside
from cxr_hvd.models.build import build_model
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import Scope
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.checkpoint.snapshot import load_judged_weights
from cxr_hvd.training.run_folder import RunFolder, disk_errors, sites_in
from cxr_hvd.training.sharing import plan_sharing
from cxr_hvd.training.validation import predict, share_of

SPLITS = (Split.TEST, Split.VALIDATE)

Place = tuple[str, str, str]
"""Network, site, split."""


@dataclass(frozen=True)
class OpenRun:
    """A run whose sites' folders and study files can all be read from here.

    Attributes:
        config: as the run was started, or as `--set` says now.
        folders: of each site, in the config's order.
        outside: names of institutions that took no part.
        files: the study file of each site, and of those.
        studies: by institution and split.
    """

    config: Config
    folders: Mapping[str, RunFolder]
    outside: tuple[str, ...]
    files: Mapping[str, StudyFile]
    studies: Mapping[tuple[str, Split], StudySet]


def score_pooled(
    run: Path,
    comm: Communicator,
    settings: Sequence[str] = (),
    which: str = "latest",
    outside: Mapping[str, Path] = MappingProxyType({}),
) -> Path:
    """Judge every network of a run on the TEST and VALIDATE studies of every site; write `RUN/scores.safetensors`.

    The result is the same bit for bit, whatever the number of ranks, if each has as many threads.

    Args:
        settings: laid over the run's config, for study files that have moved.
        which: the checkpoint to judge, `latest` or `best`.
        outside: study files of institutions that took no part, by name: what would the networks be worth there?

    Returns:
        The file. Collective: every rank; each must be able to read all sites' study files and run folders.

    Raises:
        CxrHvdError: on every rank alike.
    """
    set_threads(comm)
    path = run / NAME
    with ExitStack() as opened:
        with together(comm, "opening all sites' files"):
            whole = open_whole(run, tuple(settings), outside, opened)
            device = choose_device(whole.config.training.device, comm)
            if comm.rank == 0:
                with disk_errors(path):
                    begin_folder(path)
        with together(comm, "scoring its share"):
            batching = batching_of_run(whole.config, torch.get_num_threads())
            note_work = partial(comm.watchdog.works, "validating")
            steps: dict[str, int] = {}
            parts: dict[str, NDArray[np.float32]] = {}
            for name, network, step in networks_of(whole, which):
                steps[name] = step
                network.to(device)
                for (site, split), studies in whole.studies.items():
                    rows = share_of(studies.num_images, batching.batch_size, comm.rank, comm.num_ranks)
                    place = "/".join((name, site, split.name.lower()))
                    parts[place] = predict(
                        network,
                        studies,
                        rows,
                        batching,
                        note_work,
                    )
            with disk_errors(path):
                save_file(parts, folder_beside(path) / f"{comm.rank}.safetensors")
        with together(comm, "putting the scores together"):
            if comm.rank == 0:
                write_scores(path, put_together(whole, steps, which, path, comm.num_ranks))
                shutil.rmtree(folder_beside(path), ignore_errors=True)
    return path


def open_whole(run: Path, settings: tuple[str, ...], outside: Mapping[str, Path], opened: ExitStack) -> OpenRun:
    """Open the run folder and study file of every site of a run, and those from outside; `opened` closes them.

    Raises:
        CheckpointError: a site's folder is not here, or sites did not train on the same config.
        StudyFileError: study files are of different pixel pipelines, and the config does not allow it.
        UsageError: one from outside has the name of a site, or one that no site may have.
    """
    names = sites_in(run)
    configs = {name: RunFolder(run, name).config(settings) for name in names}
    first = configs[names[0]]
    missing = [name for name in first.sites if name not in names]
    if missing:
        raise CheckpointError(
            f"{run}: expected a folder of every site, found none of {', '.join(missing)}; --pooled "
            "judges where all can be read; where each site has its own: mpirun -np N cxr-hvd evaluate RUN... "
            "--across-sites"
        )
    for name, config in configs.items():
        if config.shared_part() != first.shared_part():
            raise CheckpointError(f"{run}: the config of {name} is not that of {names[0]}: they are of two runs")
    for name in outside:
        if name in (*first.sites, AVERAGED, COMMON) or not re.fullmatch(SITE_PATTERN, name):
            raise UsageError(f"--outside {name}: expected a name that no site has, of letters, digits, _ and -")
    paths = {name: configs[name].sites[name].data for name in first.sites} | dict(outside)
    files = {name: opened.enter_context(StudyFile(path)) for name, path in paths.items()}
    label_names = {file.header.label_names for file in files.values()}
    if len(label_names) > 1:
        raise CheckpointError(f"{run}: the study files differ in the order of labels; write them alike")
    check_pixel_pipelines({file.path: file.header.pixels for file in files.values()}, first.pixel_pipelines)
    policy = first.labels.policy(label_names.pop())
    studies = {(name, split): StudySet([files[name]], split, policy) for name in files for split in SPLITS}
    return OpenRun(first, {name: RunFolder(run, name) for name in first.sites}, tuple(outside), files, studies)


def networks_of(whole: OpenRun, which: str) -> Iterator[tuple[str, torch.nn.Module, int]]:
    """Give each network of a run with its name and the steps it was trained for, one at a time.

    The sites' own and, of several, `averaged`, whose private tensors are the mean of theirs; where nothing is
    private just one, `common`.
    """
    config, sites = whole.config, list(whole.folders)
    label_names = next(iter(whole.files.values())).header.label_names
    model = build_model(config.model, len(label_names), config.seed)
    private = plan_sharing(config, tensor_specs(model)).names(Scope.PRIVATE)
    sums: dict[str, torch.Tensor] = {}
    steps = set()
    for site in sites if private else sites[:1]:
        model.cpu()
        steps.add(load_judged_weights(whole.folders[site].checkpoints / which, model))
        if len(steps) > 1:
            raise CheckpointError(
                f"{whole.folders[site].path}: its checkpoint is of another step than {sites[0]}'s; finish the run "
                "with --resume auto, or judge another --checkpoint"
            )
        if private and len(sites) > 1:
            tensors = model.state_dict()
            sums = {name: sums.get(name, 0.0) + tensors[name].double() / len(sites) for name in private}
        yield site if private else COMMON, model, min(steps)
    if sums:
        model.cpu()
        for name, tensor in model.state_dict().items():
            if name in sums:
                tensor.copy_(sums[name])
        yield AVERAGED, model, min(steps)


def put_together(whole: OpenRun, steps: Mapping[str, int], which: str, path: Path, num_ranks: int) -> RunScores:
    """Build the scores from what the ranks wrote beside `path`.

    Args:
        steps: after how many steps each network was judged; the same for all.
    """
    try:
        parts = [load_file(folder_beside(path) / f"{rank}.safetensors") for rank in range(num_ranks)]
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path}: a rank's part cannot be read ({type(error).__name__}); for --pooled all ranks need one disk"
        ) from error
    probabilities: dict[Place, NDArray[np.float32]] = {}
    truth = {}
    for (site, split), studies in whole.studies.items():
        split_name = split.name.lower()
        patients = whole.files[site].patient_ids[whole.files[site].indices(split)]
        truth[site, split_name] = Truth(
            studies.targets, studies.known, np.unique(patients, return_inverse=True)[1].astype(np.int64)
        )
        for network in steps:
            filled = np.full(studies.targets.shape, np.nan, dtype=np.float32)
            for rank, part in enumerate(parts):
                rows = share_of(studies.num_images, whole.config.training.batch_size, rank, num_ranks)
                filled[rows] = part["/".join((network, site, split_name))]
            probabilities[network, site, split_name] = filled
    first = next(iter(whole.files.values()))
    origin = Origin(
        experiment=whole.config.experiment,
        seed=whole.config.seed,
        step=max(steps.values()),
        checkpoint=which,
        label_names=first.header.label_names,
        sites=tuple(whole.folders),
        outside=whole.outside,
        networks=tuple(steps),
        config_sha256=config_digest(whole.config),
        data_sha256={name: file.digest for name, file in whole.files.items()},
        pixels={name: file.header.pixels for name, file in whole.files.items()},
    )
    groups = {name: file.groups(Split.TEST) for name, file in whole.files.items()}
    return RunScores(origin, truth, probabilities, groups)
