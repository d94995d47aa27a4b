"""Laws of studies: dealt out once a pass, in agreed steps, and validated together."""

import json
from pathlib import Path

import torch

from cxr_hvd.comm.communicator import allgather, allgather_text
from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology, bind
from cxr_hvd.data.loader import batching_of_run
from cxr_hvd.data.studies import open_training_data
from cxr_hvd.errors import ConfigError
from cxr_hvd.study.layout import Split
from cxr_hvd.training.train import train
from cxr_hvd.training.validation import Validator
from tests.laws.law import law
from tests.laws.parts import (
    ENDS,
    common_folder,
    config_for,
    engine_of,
    fails_with,
    is_equal_everywhere,
    one_rank_a_site,
    sited_config,
)


@law(day="mpirun-2", night="gloo-2 mpirun-2-densenet121")
def merged_training_deals_every_study_out_once_a_pass(comm: HorovodComm, folder: Path) -> None:
    config = config_for(folder, comm, experiment="B")
    allgather(comm, torch.zeros(1), "verdict.files are written")
    data = open_training_data(config, one_rank_a_site(comm))
    mine = [
        position for step in range(data.shuffle.steps_per_epoch) for position, _ in data.shuffle.batch_at(step)
    ]
    dealt = [json.loads(text) for text in allgather_text(comm, json.dumps(mine), "contract.laws")]
    by_place = [p for step in range(0, len(mine), 4) for rank in dealt for p in rank[step : step + 4]]
    assert sorted(by_place[: len(data.studies)]) == list(range(len(data.studies)))


@law(day="mpirun-2", night="gloo-2 mpirun-2-densenet121")
def all_take_the_steps_that_were_agreed_on(comm: HorovodComm, folder: Path) -> None:
    """Site r has 16 + 8r training studies or so; batches of 4."""
    for asked, epochs in (("largest", 1), ("smallest", 1), (3, 2)):
        own = common_folder(comm, folder / f"{asked}")
        config = config_for(own, comm, training={"steps_per_epoch": asked, "epochs": epochs})
        train(config, own / "run", comm)
        site = own / "run" / f"site{comm.rank}"
        budget = json.loads((site / "environment.json").read_text())["budget"]
        lines = (site / "metrics.jsonl").read_text().splitlines()
        needed = [-(-studies // 4) for studies in budget["studies_per_site"]]
        assert len(set(needed)) == comm.num_ranks
        assert len(lines) == {"largest": max(needed), "smallest": min(needed), 3: 6}[asked]
        passes = budget["passes_per_epoch"][comm.rank]
        assert passes == budget["steps_per_epoch"] * 4 / budget["studies_per_site"][comm.rank]


@law(day="mpirun-2", slow="gloo-2", night="mpirun-2 gloo-2 mpirun-3")
def a_sites_ranks_judge_together_as_one_would(comm: HorovodComm, folder: Path) -> None:
    """Ranks that share the studies out come to the same AUROC as one rank with all of them."""
    config = sited_config(folder, comm, (comm.num_ranks,))
    topology = bind(comm, {"site0": comm.num_ranks})
    verdicts = []
    for own_comm, own_topology in ((comm, topology), (LocalComm(), Topology(0, ("site0",), (0,)))):
        data = open_training_data(config, own_topology)
        engine, _ = engine_of(own_comm, own_topology, {"private": ENDS})
        job, batching = Job(own_comm, own_topology), batching_of_run(config, num_cores=1)
        validation = Validator(data.validation_studies, config.validation, engine.state, job, batching)
        verdicts.append(validation.judge(3))
        data.files[0].close()
    assert verdicts[0].macro_auroc is not None
    assert verdicts[0].macro_auroc == verdicts[1].macro_auroc
    assert is_equal_everywhere(comm, f"{verdicts[0].macro_auroc} {verdicts[0].mean_accuracy}")


@law(day="mpirun-2", night="gloo-2")
def patience_without_anything_to_judge_by_is_refused_by_all(comm: HorovodComm, folder: Path) -> None:
    config = sited_config(folder, comm, (1,) * comm.num_ranks, (Split.TRAIN,), validation={"patience": 1})
    fails_with(ConfigError, "validation.patience: expected VALIDATE", lambda: train(config, folder / "run", comm))
