"""Laws of the main job: what `cxr-hvd train` does with good and bad study files.

That a command prints such an error as one line on every rank is held by tests/cli/test_main_job.py.
"""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from safetensors.numpy import load_file

from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.config.schema import Config
from cxr_hvd.errors import (
    ConfigError,
    ContractError,
    PeerError,
    StudyFileError,
)
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split
from cxr_hvd.training.train import train
from lab.study_files import write_study_file
from tests.laws.law import law
from tests.laws.parts import common_folder, config_for, fails_with, is_equal_everywhere

SITES = ("site0", "site1")


def network_of(run: Path, site: str, part: str) -> dict[str, np.ndarray]:
    return load_file(run / site / "checkpoints" / "latest" / f"{part}.safetensors")


def fails_at_site1(comm: HorovodComm, kind: type[Exception], text: str, action: Callable[[], object]) -> None:
    """Expect the error on rank 1, and on the other rank the word that rank 1 failed."""
    if comm.rank == 1:
        fails_with(kind, text, action)
    else:
        fails_with(PeerError, "rank 1 failed", action)


def trained(config: Config, folder: Path, comm: HorovodComm) -> Callable[[], object]:
    """Return the training of a config once all ranks have their files, as an action."""
    is_equal_everywhere(comm, "files are written")
    return lambda: train(config, folder / "run", comm)


@law(day="mpirun-2", night="gloo-2")
def experiments_b_and_c_end_with_one_network(comm: HorovodComm, folder: Path) -> None:
    for experiment in ("B", "C"):
        own = common_folder(comm, folder / experiment)
        config = config_for(own, comm, experiment=experiment, training={"max_steps": 3})
        trained(config, own, comm)()
        is_equal_everywhere(comm, "trained")
        one, other = (network_of(own / "run", site, "shared") for site in SITES)
        assert one.keys() == other.keys() and "classifier.weight" in one
        assert all(np.array_equal(one[name], other[name]) for name in one)


@law(day="mpirun-2", night="gloo-2")
def the_private_tensors_of_d_are_those_of_a_after_the_first_step(comm: HorovodComm, folder: Path) -> None:
    """Both start from the same weights, so what stays private comes out alike, bit for bit."""
    private = {}
    for experiment in ("A", "D"):
        own = common_folder(comm, folder / experiment)
        config = config_for(own, comm, experiment=experiment, training={"max_steps": 1})
        trained(config, own, comm)()
        private[experiment] = network_of(own / "run", f"site{comm.rank}", "private")
    assert private["D"].keys() < private["A"].keys()
    assert all(np.array_equal(private["A"][name], tensor) for name, tensor in private["D"].items())


@law(day="mpirun-2", night="gloo-2")
def a_study_file_without_complete_is_refused_by_all(comm: HorovodComm, folder: Path) -> None:
    config = config_for(folder, comm)
    if comm.rank == 1:
        with h5py.File(folder / "site1.h5", "r+") as file:
            del file.attrs["complete"]
    start = trained(config, folder, comm)
    fails_at_site1(comm, StudyFileError, "site1.h5: expected attribute complete = 1", start)
    assert not (folder / "run").exists()


@law(day="mpirun-2", night="gloo-2")
def a_study_file_that_is_missing_is_named(comm: HorovodComm, folder: Path) -> None:
    config = config_for(folder, comm)
    if comm.rank == 1:
        (folder / "site1.h5").unlink()
    fails_at_site1(comm, StudyFileError, "site1.h5: no study file here", trained(config, folder, comm))


@law(day="mpirun-2", night="gloo-2")
def two_sites_with_another_label_order_are_refused(comm: HorovodComm, folder: Path) -> None:
    config = config_for(folder, comm)
    if comm.rank == 1:
        (folder / "site1.h5").unlink()
        write_study_file(folder / "site1.h5", site="site1", label_names=(*LABELS[1:], LABELS[0]))
    text = "the sites differ on label order: 'No Finding"
    fails_with(ContractError, text, trained(config, folder, comm))


@law(day="mpirun-2", night="gloo-2")
def two_sites_with_other_pixels_train_only_where_asked(comm: HorovodComm, folder: Path) -> None:
    for experiment in ("B", "D"):
        own = common_folder(comm, folder / experiment)
        settings = {"experiment": experiment, "training": {"max_steps": 1}}
        config = config_for(own, comm, **settings)
        if comm.rank == 1:
            (own / "site1.h5").unlink()
            write_study_file(own / "site1.h5", site="site1", pixels="test-2")
        fails_with((ConfigError, ContractError, StudyFileError), "test-2", trained(config, own, comm))
        trained(config.model_copy(update={"pixel_pipelines": "any"}), own, comm)()


@law(day="mpirun-2", night="gloo-2")
def an_empty_training_split_is_refused_by_all(comm: HorovodComm, folder: Path) -> None:
    config = config_for(folder, comm)
    if comm.rank == 1:
        (folder / "site1.h5").unlink()
        write_study_file(folder / "site1.h5", splits=(Split.TEST,), site="site1")
    text = "site1.h5: expected training studies, found none"
    fails_at_site1(comm, StudyFileError, text, trained(config, folder, comm))


@law(day="mpirun-2", night="gloo-2")
def a_pattern_that_matches_no_block_is_refused_by_all(comm: HorovodComm, folder: Path) -> None:
    config = config_for(folder, comm, sharing={"private": ["denseblok4"]})
    text = "'denseblok4' matches no block and no tensor; did you mean 'denseblock4'?"
    fails_with(ConfigError, text, trained(config, folder, comm))
