"""Two batches of every phase on random images, before a long run is started: does it all work here, and fit?

The network, batch size, image size and sharing are the config's own; only the data are made up. What is written
stands beside the run folder and is removed at the end.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from cxr_hvd.comm.communicator import Communicator, together
from cxr_hvd.comm.sites import Topology, bind
from cxr_hvd.config.schema import Config
from cxr_hvd.experiment.evaluate import evaluate
from cxr_hvd.launch.job_console import console_for
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split, StudyFileHeader, StudyRow, View
from cxr_hvd.study.study_writer import StudyFileWriter
from cxr_hvd.training.run_folder import RunFolder
from cxr_hvd.training.train import LaunchOptions, train

NUM_STEPS = 2
MAX_IMAGES_PER_STUDY = 4


def smoke(config: Config, run: Path, comm: Communicator, job: LaunchOptions) -> None:
    """Train, validate, save, go on from the checkpoint, and evaluate. Collective: every rank. Blocking.

    Args:
        run: the run folder that is meant; `.smoke` is added to its name.

    Raises:
        CxrHvdError: as the real run would.
    """
    run = run.with_name(run.name + ".smoke")
    topology = bind(comm, {name: site.ranks for name, site in config.sites.items()})
    console = console_for(comm.num_ranks)
    small = small_config(config, run)
    try:
        with together(comm, "writing random studies"):
            if topology.is_site_leader:
                write_random_studies(small, topology)
        train(small, run, comm, replace(job, overwrite=True, resume="never"))
        with together(comm, "going back by a step"):
            if topology.is_site_leader:
                RunFolder(run, topology.site).go_back_to(NUM_STEPS - 1)
        train(small, run, comm, replace(job, overwrite=False, resume="latest"))
        evaluate(run, comm, Split.TEST)
    finally:
        if topology.is_site_leader:
            shutil.rmtree(run / topology.site, ignore_errors=True)
            (run / f"{topology.site}.h5").unlink(missing_ok=True)
    with together(comm, "removing what it wrote"):
        pass
    if topology.is_leader:
        shutil.rmtree(run, ignore_errors=True)
        console.print("smoke: training, validation, checkpoint, resume and evaluation work here")


def small_config(config: Config, run: Path) -> Config:
    """Return the config with random data, and two steps of every phase."""
    sites = {name: site.model_copy(update={"data": run / f"{name}.h5"}) for name, site in config.sites.items()}
    steps = {"epochs": 1, "steps_per_epoch": NUM_STEPS, "max_steps": None}
    return config.model_copy(
        update={
            "sites": sites,
            "training": config.training.model_copy(update=steps),
            "validation": config.validation.model_copy(update={"every_epochs": 1}),
            "checkpoints": config.checkpoints.model_copy(update={"every_steps": 1}),
        }
    )


def write_random_studies(config: Config, topology: Topology) -> None:
    """Write the study file of this rank's site: two batches of each split, images of noise."""
    path = config.sites[topology.site].data
    path.parent.mkdir(parents=True, exist_ok=True)
    size, rng = config.model.image_size, np.random.default_rng(0)
    per_split = NUM_STEPS * config.training.batch_size * len(topology.ranks_of_site)
    header = StudyFileHeader(
        site=topology.site,
        source="random",
        label_names=LABELS,
        image_size=size,
        seed=0,
        pixels="random",
        source_sha256="0" * 64,
        created="1970-01-01T00:00:00+00:00",
        tool="cxr-hvd train --smoke",
    )
    writer = StudyFileWriter(path, header, per_split * len(Split))
    for index in range(per_split * len(Split)):
        views = (View.PA,) * int(rng.integers(1, MAX_IMAGES_PER_STUDY + 1))
        labels = tuple(float(label) for label in rng.integers(0, 2, len(LABELS)))
        row = StudyRow(f"study{index}", f"patient{index}", Split(index % len(Split)), views, labels)
        writer.append(row, rng.integers(0, 256, (len(views), size, size), dtype=np.uint8))
    writer.close()
