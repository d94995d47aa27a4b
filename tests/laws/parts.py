"""What laws are made of: models, plans, averagers, engines, batches, study files and configs."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
from torch import Tensor, nn

from cxr_hvd.comm.communicator import allgather_text, together
from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.sites import Topology, bind
from cxr_hvd.config.file import parse_config
from cxr_hvd.config.schema import Config
from cxr_hvd.config.sections import Model, Training
from cxr_hvd.data.loader import Batch
from cxr_hvd.models.build import build_model
from cxr_hvd.partial.averager import PartialAverager
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import SharingPlan, build_plan
from cxr_hvd.partial.weighting import site_weights
from cxr_hvd.study.layout import Split
from cxr_hvd.training.engine import Engine
from cxr_hvd.training.state import start_state
from cxr_hvd.training.step_report import StepReport
from cxr_hvd.training.train import LaunchOptions
from lab.study_files import write_study_file

# By day the laws run on the small network; at night the same laws run on the published one.
NETWORK = os.environ.get("CXR_LAWS_NETWORK", "tiny")
NUM_LABELS = 14
ENDS = "ends"
GO_ON = LaunchOptions(resume="latest")
NO_OPTIMIZER = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
LAYOUTS = {2: [(2,), (1, 1)], 3: [(1, 1, 1), (1, 2)], 4: [(1, 3), (2, 2)]}
SPLITS = (Split.TRAIN, Split.TRAIN, Split.VALIDATE)


def one_rank_a_site(comm: HorovodComm) -> Topology:
    return bind(comm, {f"site{rank}": 1 for rank in range(comm.num_ranks)})


def layouts(comm: HorovodComm) -> Iterator[Topology]:
    """Bind the job's ranks to sites in several ways, one after the other: the last binding holds."""
    for ranks_of_site in LAYOUTS[comm.num_ranks]:
        yield bind(comm, {f"site{site}": ranks for site, ranks in enumerate(ranks_of_site)})


def common_folder(comm: HorovodComm, folder: Path) -> Path:
    """Make a folder for all ranks."""
    with together(comm, "making a folder"):
        folder.mkdir(exist_ok=True)
    return folder


def fresh_model(seed: int = 3) -> nn.Module:
    """The laws' network with first weights by the seed."""
    return build_model(Model(name=NETWORK), NUM_LABELS, seed)


def scattered_model(rank: int) -> nn.Module:
    """The laws' network, every tensor of which differs from rank to rank."""
    model = fresh_model(seed=7)
    generator = torch.Generator().manual_seed(100 + rank)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.fill_(rank)
    return model


def scattered_tensors(comm: HorovodComm) -> list[dict[str, Tensor]]:
    """The tensors of each rank's scattered model, in float64."""
    return [
        {name: tensor.double() for name, tensor in scattered_model(rank).state_dict().items()}
        for rank in range(comm.num_ranks)
    ]


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def digest(tensors: dict[str, Tensor], names: tuple[str, ...]) -> str:
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in names)).hexdigest()


def is_equal_everywhere(comm: HorovodComm, said: str) -> bool:
    return len(set(allgather_text(comm, said, "contract.laws"))) == 1


def random_batch(seed: int, size: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, 2, size, size, generator=generator)
    targets = (torch.rand(4, 14, generator=generator) < 0.5).float()
    return Batch(images, targets, torch.ones(4, 14, dtype=torch.bool))


def averager_of(
    model: nn.Module,
    plan: SharingPlan,
    comm: HorovodComm,
    topology: Topology,
    studies: list[int] | None = None,
) -> PartialAverager:
    return PartialAverager.of_plan(model, NO_OPTIMIZER, Job(comm, topology), plan, weights_of(topology, studies))


def weights_of(topology: Topology, studies: list[int] | None = None) -> list[float]:
    return site_weights("studies" if studies else "uniform", studies or [1] * topology.num_sites)


def engine_of(
    comm: Any,
    topology: Topology,
    plan_settings: dict[str, Any],
    optimizer: str = "adamw",
    num_steps: int = 3,
    **more: Any,
) -> tuple[Engine, SharingPlan]:
    model = fresh_model()
    plan = build_plan(tensor_specs(model), **plan_settings)
    fixed = {"precision": "fp32", "learning_rate": 1e-3, "schedule": "constant", "weight_decay": 0.0}
    settings = Training.model_validate({**fixed, "optimizer": optimizer, **more})
    job = Job(comm, topology)
    state = start_state(model, settings, job, plan, weights_of(topology))
    return Engine(state, job, plan, settings, num_steps), plan


def take_step(engine: Engine, batch: Batch, step: int) -> StepReport:
    """Take one step, and wait until all is known of it. Collective: every rank."""
    reports = engine.train_step(batch, step) + engine.catch_up()
    return reports[-1]


def assert_mean(
    tensors: dict[str, Tensor], names: Iterable[str], of_rank: list[dict[str, Tensor]], weights: list[float]
) -> None:
    """Hold tensors against the weighted mean over ranks, reckoned in float64 in this process alone."""
    for name in names:
        mean = torch.stack([w * each[name] for w, each in zip(weights, of_rank, strict=True)]).sum(0)
        torch.testing.assert_close(tensors[name].double(), mean, rtol=1e-6, atol=1e-6)


@contextmanager
def recorded_collectives() -> Iterator[list[tuple[str, Tensor, int]]]:
    """Record (name, content, address) of every tensor that is handed to any of Horovod's collectives."""
    records: list[tuple[str, Tensor, int]] = []
    kinds = ("allreduce", "allgather", "broadcast", "alltoall", "reducescatter")
    originals = {n: f for n, f in vars(hvd).items() if callable(f) and any(kind in n for kind in kinds)}

    def note(name: str, tensor: Tensor) -> None:
        records.append((name, tensor.detach().clone(), tensor.data_ptr()))

    def recorder(name: str, function: Any) -> Any:
        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            for tensor in first if isinstance(first, list) else [first]:
                note(kwargs.get("name", name), tensor)
            return function(first, *args, **kwargs)

        return call

    for name, function in originals.items():
        setattr(hvd, name, recorder(name, function))
    try:
        yield records
    finally:
        for name, function in originals.items():
            setattr(hvd, name, function)


def config_for(folder: Path, comm: HorovodComm, **sections: Any) -> Config:
    """Make one study file a rank (unequal sizes) and the config that trains on them."""
    sites = {f"site{rank}": {"data": str(folder / f"site{rank}.h5")} for rank in range(comm.num_ranks)}
    write_study_file(
        folder / f"site{comm.rank}.h5", num_studies=16 + 8 * comm.rank, seed=comm.rank, site=f"site{comm.rank}"
    )
    tree: dict[str, Any] = {"experiment": "D", "sites": sites, "model": {"name": NETWORK, "image_size": 32}}
    tree["training"] = {"epochs": 2, "batch_size": 4, "precision": "fp32"}
    for name, section in sections.items():
        tree[name] = {**tree[name], **section} if isinstance(section, dict) and name in tree else section
    return parse_config(tree, "laws")


def fails_with(kind: type[Exception] | tuple[type[Exception], ...], text: str, action: Any) -> None:
    try:
        action()
    except kind as error:
        assert text in str(error), f"expected '{text}' in: {error}"
        assert "\n" not in str(error)
    else:
        raise AssertionError(f"expected {kind}: {text}")


def sited_config(
    folder: Path,
    comm: HorovodComm,
    ranks: tuple[int, ...],
    splits: tuple[Split, ...] = SPLITS,
    **sections: Any,
) -> Config:
    """Make a study file for each site, of unequal sizes, and the config of 2 epochs of 3 steps on them."""
    if comm.rank == 0:
        for site in range(len(ranks)):
            write_study_file(folder / f"site{site}.h5", 12 + 6 * site, site, splits, site=f"site{site}")
    sites = {f"site{site}": {"data": str(folder / f"site{site}.h5"), "ranks": n} for site, n in enumerate(ranks)}
    training = {"epochs": 2, "steps_per_epoch": 3, "batch_size": 4, "precision": "fp32"}
    model = {"name": NETWORK, "image_size": 32}
    tree: dict[str, Any] = {"experiment": "D", "sites": sites, "model": model, "training": training}
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    is_equal_everywhere(comm, "files are written")
    return parse_config(tree, "laws")


def rows(run: Path, site: str, log: str, *fields: str) -> list[list[Any]]:
    told = [json.loads(line) for line in (run / site / log).read_text().splitlines()]
    return [[row[field] for field in fields] for row in told]
