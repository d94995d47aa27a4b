"""Laws of the library on networks that people use: an own loop, every exchange, two sites.

Packages of networks are imported where they are needed: every launch imports this module.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import cxr_hvd
from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.comm.job import Job
from cxr_hvd.config.sections import Model
from cxr_hvd.models.build import build_model
from cxr_hvd.partial.plan import Exchange, Scope, Wire
from tests.laws.law import law
from tests.laws.parts import NUM_LABELS, digest, is_equal_everywhere, one_rank_a_site, values

WAYS: tuple[tuple[Exchange, Wire], ...] = (
    ("weights", "float32"),
    ("weights", "bfloat16"),
    ("weights", "float16"),
    ("gradients", "float32"),
    ("gradients", "bfloat16"),
)
NUM_CHANNELS, SIDE = 3, 32


def train(model: nn.Module, job: Job, exchange: Exchange, wire: Wire) -> cxr_hvd.PartialAverager:
    """Take two steps with other data at each site, as a user's loop does."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    private = ["stem", "head"]
    averager = cxr_hvd.PartialAverager(model, optimizer, job, private=private, exchange=exchange, wire=wire)
    generator = torch.Generator().manual_seed(job.rank)
    for _ in range(2):
        images = torch.rand(4, NUM_CHANNELS, SIDE, SIDE, generator=generator)
        targets = (torch.rand(4, NUM_LABELS, generator=generator) < 0.5).float()
        loss = functional.binary_cross_entropy_with_logits(model(images), targets)
        optimizer.zero_grad()
        if exchange == "weights":
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            averager.average()
        else:
            averager.begin()
            loss.backward()  # type: ignore[no-untyped-call]
            averager.average()
            optimizer.step()
    averager.close()
    return averager


def check_exchanges(comm: HorovodComm, build: Callable[[], nn.Module]) -> None:
    """Check that shared tensors are bit-equal at both sites after two steps, and that each private one differs."""
    job = Job(comm, one_rank_a_site(comm))
    for exchange, wire in WAYS:
        torch.manual_seed(3)
        model = build().train()
        before = values(model)
        plan = train(model, job, exchange, wire).plan
        after = values(model)
        shared = plan.names(Scope.SHARED)
        assert shared and is_equal_everywhere(comm, digest(after, shared)), f"{exchange} {wire}"
        for name in plan.names(Scope.PRIVATE):
            assert not is_equal_everywhere(comm, digest(after, (name,))), f"{exchange} {wire}: {name}"
        blocks = {planned.spec.block for planned in plan.tensors if planned.scope is Scope.SHARED}
        for block in blocks:
            names = [planned.spec.name for planned in plan.tensors if planned.spec.block == block]
            assert any(not torch.equal(before[name], after[name]) for name in names), f"{block} has not moved"


@law(slow="mpirun-2")
def resnet50_is_shared_but_for_its_ends(comm: HorovodComm, folder: Path) -> None:
    from torchvision.models import resnet50

    check_exchanges(comm, lambda: resnet50(num_classes=NUM_LABELS))


@law(slow="mpirun-2")
def convnext_tiny_is_shared_but_for_its_ends(comm: HorovodComm, folder: Path) -> None:
    from torchvision.models import convnext_tiny

    check_exchanges(comm, lambda: convnext_tiny(num_classes=NUM_LABELS))


@law(slow="mpirun-2", night="gloo-2")
def vit_small_is_shared_but_for_its_ends(comm: HorovodComm, folder: Path) -> None:
    from timm import create_model

    check_exchanges(comm, lambda: create_model("vit_small_patch16_224", img_size=SIDE, num_classes=NUM_LABELS))


@law(slow="mpirun-2")
def densenet121_is_shared_but_for_its_ends(comm: HorovodComm, folder: Path) -> None:
    check_exchanges(comm, lambda: build_model(Model(name="densenet121"), NUM_LABELS, seed=3))
