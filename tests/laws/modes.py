"""Laws of what is learnt: all ways to share lead to where averaging in every step leads."""

from pathlib import Path
from typing import Any

import torch

from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.data.loader import Batch
from cxr_hvd.models.forward import forward
from cxr_hvd.partial.plan import Scope
from cxr_hvd.training.loss import MultiLabelLoss
from tests.laws.law import law
from tests.laws.parts import (
    NUM_LABELS,
    digest,
    engine_of,
    fresh_model,
    is_equal_everywhere,
    one_rank_a_site,
    values,
)

NUM_STEPS, NUM_IMAGES, SIZE = 64, 3, 32
MODES: dict[str, dict[str, Any]] = {
    "every 8": {"every": 8},
    "gradients": {"exchange": "gradients"},
    "bfloat16": {"wire": "bfloat16"},
    "float16": {"wire": "float16"},
    "int8": {"wire": "int8"},
    "overlap": {"every": 8, "overlap": True},
    "overlap, int8": {"every": 8, "overlap": True, "wire": "int8"},
}
MAX_SHORTFALL = 0.1
"""Of what averaging in every step takes off the loss, a way may miss as much."""


def phantoms(seed: int, num_studies: int = 16) -> Batch:
    """Studies of three noisy images, each of which is bright where a third of the labels is present."""
    generator = torch.Generator().manual_seed(seed)
    bright = (torch.rand(num_studies, NUM_IMAGES, generator=generator) < 0.5).float()
    noise = torch.rand(num_studies, NUM_IMAGES, SIZE, SIZE, generator=generator)
    targets = bright[:, torch.arange(NUM_LABELS) % NUM_IMAGES]
    known = torch.ones(num_studies, NUM_LABELS, dtype=torch.bool)
    return Batch(0.7 * noise + 0.3 * bright[:, :, None, None], targets, known)


@torch.no_grad()
def loss_of(model: torch.nn.Module, batch: Batch) -> float:
    return float(MultiLabelLoss()(forward(model.eval(), batch.images, "fp32"), batch.targets, batch.known))


@law(slow="mpirun-2 gloo-2")
def all_ways_to_share_learn_what_averaging_in_every_step_learns(comm: HorovodComm, folder: Path) -> None:
    """Two sites, each with studies of its own; judged on studies that neither has seen."""
    unseen = phantoms(seed=1_000_000, num_studies=64)
    losses = {}
    for name, settings in {"every 1": {}, **MODES}.items():
        training = {"num_steps": NUM_STEPS, "learning_rate": 1e-2, "schedule": "one-cycle"}
        engine, plan = engine_of(comm, one_rank_a_site(comm), settings, **training)
        for step in range(NUM_STEPS):
            engine.state.model.train()
            engine.train_step(phantoms(seed=step * comm.num_ranks + comm.rank), step)
        assert is_equal_everywhere(comm, digest(values(engine.state.model), plan.names(Scope.SHARED))), name
        losses[name] = loss_of(engine.state.model, unseen)
    first = loss_of(fresh_model(), unseen)
    gain = first - losses["every 1"]
    assert gain > 0.3 * first, f"nothing is learnt: {first} and {losses}"
    bound = losses["every 1"] + MAX_SHORTFALL * gain
    assert max(losses.values()) < bound, f"expected losses below {bound}, found {losses}; at the start {first}"
