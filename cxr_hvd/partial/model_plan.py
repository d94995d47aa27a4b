"""The sharing plan of a model that somebody else built: what can be averaged of it, and what is refused."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor, nn

from cxr_hvd.errors import ConfigError, nearest
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.exchanges import HasState
from cxr_hvd.partial.plan import BatchNormPolicy, Buffer, Exchange, Scope, SharingPlan, Wire, build_plan

MOMENTS: dict[str, tuple[str, ...]] = {
    "Adam": ("exp_avg", "exp_avg_sq"),
    "AdamW": ("exp_avg", "exp_avg_sq"),
    "NAdam": ("exp_avg", "exp_avg_sq"),
    "RAdam": ("exp_avg", "exp_avg_sq"),
    "SGD": ("momentum_buffer",),
}
"""What torch's optimizers remember of each parameter and can be averaged, by their class."""


def plan_model(
    model: nn.Module,
    private: str | Sequence[str],
    blocks: Mapping[str, Sequence[str]] | None,
    batchnorm: BatchNormPolicy,
    every: int,
    exchange: Exchange,
    wire: Wire,
    averaged_optimizer: HasState | None,
    overlap: bool = False,
) -> SharingPlan:
    """Plan what is averaged of a model. Parameters that need no gradient are frozen: they do not travel.

    Args:
        averaged_optimizer: the optimizer whose running means are averaged, too; None: none are.

    Raises:
        ConfigError: an argument has no such value, or does not go with another.
    """
    choices = {"batchnorm": (batchnorm, BatchNormPolicy), "exchange": (exchange, Exchange), "wire": (wire, Wire)}
    for name, (value, kind) in choices.items():
        valid = list(get_args(kind))
        if value not in valid:
            raise ConfigError(f"{name}: expected {', '.join(valid)}, found {value}{nearest(str(value), valid)}")
    if every < 1 or (exchange == "gradients" and every != 1):
        expected = "1, since gradients travel in every step" if exchange == "gradients" else "1 or more steps"
        raise ConfigError(f"every: expected {expected}, found {every}")
    if exchange == "gradients" and averaged_optimizer is not None:
        raise ConfigError(
            "optimizer_state: shared is for exchange: weights; equal gradients keep the optimizers equal "
            "by themselves"
        )
    if overlap and (exchange == "gradients" or averaged_optimizer is not None):
        where = "exchange: gradients" if exchange == "gradients" else "optimizer_state: shared"
        raise ConfigError(f"overlap: expected exchange: weights and optimizer_state: local, found {where}")
    moments = () if averaged_optimizer is None else _moments_of(averaged_optimizer)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    specs = tensor_specs(model, blocks)
    return build_plan(specs, private, batchnorm, every, exchange, wire, moments, frozen, overlap)


def _moments_of(optimizer: HasState) -> tuple[str, ...]:
    name = type(optimizer).__name__
    if name not in MOMENTS:
        raise ConfigError(
            f"optimizer_state: shared knows {', '.join(MOMENTS)}, found {name}: use optimizer_state: local"
        )
    return MOMENTS[name]


def check_tensors(model: nn.Module, buffers: Sequence[Buffer]) -> None:
    """Check that what is averaged are float32 tensors on one device, each with memory of its own.

    Args:
        buffers: of the model's plan.

    Raises:
        ConfigError: a tensor is not.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    averaged = {spec.name: tensors[spec.name] for buffer in buffers for spec in buffer.specs}
    devices = {tensor.device: name for name, tensor in averaged.items()}
    if len(devices) > 1:
        places = " and ".join(f"{name} on {device}" for device, name in devices.items())
        raise ConfigError(f"expected the model on one device, found {places}: move it before the averager is made")
    for name, tensor in averaged.items():
        if tensor.dtype != torch.float32:
            raise ConfigError(
                f"{name}: expected float32 to average, found {tensor.dtype}: keep weights in float32 and compute "
                "in less by torch.autocast"
            )
    ranges = sorted((t.data_ptr(), t.data_ptr() + t.nbytes, name) for name, t in averaged.items())
    for (_, end, name), (start, _, other) in pairwise(ranges):
        if 0 < start < end:
            raise ConfigError(f"{name} and {other} share memory: make them one parameter, or two")


def shared_digest(plan: SharingPlan, model: nn.Module) -> str:
    """Return the SHA-256 of the tensors that all sites have alike, in the plan's order."""
    tensors, digest = model.state_dict(), hashlib.sha256()
    alike = {*plan.names(Scope.SHARED), *plan.names(Scope.FROZEN)}
    for planned in plan.tensors:
        if planned.spec.name in alike:
            digest.update(_as_bytes(tensors[planned.spec.name]))
    return digest.hexdigest()


def _as_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
