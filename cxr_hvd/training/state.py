"""All of a rank that changes while it trains and that a resume needs: taken as a snapshot, put back bit for bit.

Owns what belongs together: model, optimizer, averager, loss scale and running mean. Who takes steps with them is
`engine`; in which files a snapshot lies is `checkpoint`'s matter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cxr_hvd.comm.job import Job
from cxr_hvd.config.sections import Training
from cxr_hvd.errors import CheckpointError
from cxr_hvd.partial.averager import PartialAverager
from cxr_hvd.partial.plan import SharingPlan
from cxr_hvd.training.freezing import freeze
from cxr_hvd.training.loss_scale import LossScale, LossScaleState
from cxr_hvd.training.optim import Optimizer
from cxr_hvd.training.weight_mean import WeightMean

Tensors = dict[str, Tensor]
COUNTS = ("num_steps", "is_common")
"""What of an averager's state is not a tensor to be kept: the checkpoint's record says it."""


@dataclass(frozen=True)
class StateSnapshot:
    """A training state at one moment, in memory that training does not use.

    Attributes:
        weights: all parameters and buffers of the model; empty where they were not asked for.
        optimizer: what the optimizer remembers, as `parameter/moment`.
        exchange: what the averager needs to go on.
        mean: the running mean of the weights; None where none is kept.
        loss_scale: of fp16; None otherwise.
        num_skipped_in_a_row: steps without an update, up to this one.
        is_common: whether the sites' shared tensors are alike.
    """

    weights: Tensors
    optimizer: Tensors
    exchange: Tensors
    mean: Tensors | None
    loss_scale: LossScaleState | None
    num_skipped_in_a_row: int
    is_common: bool


@dataclass
class TrainingState:
    """What a rank trains, and what it trains it with.

    Attributes:
        model: the network, where the averager has laid its tensors out.
        optimizer: of all its parameters that are trained.
        averager: exchanges weights or gradients with the other ranks.
        loss_scale: what the loss is multiplied by before backward, for fp16; None otherwise.
        weight_mean: the running mean of the weights, where the settings want one.
        num_skipped_in_a_row: steps without an update, up to this one.
    """

    model: nn.Module
    optimizer: Optimizer
    averager: PartialAverager
    loss_scale: LossScale | None = None
    weight_mean: WeightMean | None = None
    num_skipped_in_a_row: int = 0

    @torch.no_grad()
    def snapshot(self, has_weights: bool = True) -> StateSnapshot:
        """Copy all of it to the CPU.

        Args:
            has_weights: whether the model's own tensors are wanted, too.
        """
        exchange = self.averager.state_dict()
        return StateSnapshot(
            weights=_copied(self.model.state_dict()) if has_weights else {},
            optimizer=_copied(_optimizer_tensors(self.model, self.optimizer)),
            exchange=_copied({name: t for name, t in exchange.items() if name not in COUNTS}),
            mean=_copied(self.weight_mean.tensors()) if self.weight_mean else None,
            loss_scale=self.loss_scale.state() if self.loss_scale else None,
            num_skipped_in_a_row=self.num_skipped_in_a_row,
            is_common=self.averager.is_common,
        )

    def restore(self, snapshot: StateSnapshot, step: int) -> None:
        """Put back a snapshot that was taken after so many steps.

        Raises:
            CheckpointError: it is of another model or of other settings.
        """
        load_weights(self.model, snapshot.weights)
        self.optimizer.load_state(_state_of_parameters(self.model, snapshot.optimizer))
        counts = {"num_steps": torch.tensor(step), "is_common": torch.tensor(snapshot.is_common)}
        self.averager.load_state_dict(counts | snapshot.exchange)
        self.num_skipped_in_a_row = snapshot.num_skipped_in_a_row
        if self.loss_scale and snapshot.loss_scale:
            self.loss_scale.load_state(snapshot.loss_scale)
        if self.weight_mean:
            if snapshot.mean is None:
                raise CheckpointError("expected a running mean of the weights, found none")
            self.weight_mean.load(snapshot.mean)


def start_state(
    model: nn.Module, settings: Training, job: Job, plan: SharingPlan, site_weights: Sequence[float]
) -> TrainingState:
    """Return the state before the first step: nothing remembered yet, the model laid out for averaging.

    Args:
        model: with its first weights, on its device.
        settings: section `training` of the config.
        plan: of this model, as all ranks have agreed.
        site_weights: what each site weighs in an average, summing to 1.

    Raises:
        ConfigError: a tensor of the model cannot be averaged.
    """
    freeze(model, plan)
    optimizer = Optimizer([parameter for parameter in model.parameters() if parameter.requires_grad], settings)
    return TrainingState(
        model=model,
        optimizer=optimizer,
        averager=PartialAverager.of_plan(model, optimizer, job, plan, site_weights),
        loss_scale=LossScale() if settings.precision == "fp16" else None,
        weight_mean=WeightMean(model, settings.ema_decay) if settings.ema_decay else None,
    )


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors into a model.

    Raises:
        CheckpointError: they are not the model's.
    """
    own_tensors = model.state_dict()
    for name in {**own_tensors, **tensors}:
        loaded, wanted = tensors.get(name), own_tensors.get(name)
        if loaded is None or wanted is None or loaded.shape != wanted.shape or loaded.dtype != wanted.dtype:
            raise CheckpointError(
                f"tensor {name}: expected {_form(wanted)}, found {_form(loaded)}; it is of another model"
            )
        wanted.copy_(loaded)


def _form(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"


def _copied(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> Tensors:
    """Name each state tensor `parameter/moment`."""
    return {
        f"{name}/{moment}": tensor
        for name, parameter in model.named_parameters()
        for moment, tensor in optimizer.state.get(parameter, {}).items()
    }


def _state_of_parameters(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[Tensor, Tensors]:
    """Give each parameter what the optimizer remembers of it."""
    state: dict[Tensor, Tensors] = {}
    for name, parameter in model.named_parameters():
        prefix = f"{name}/"
        state[parameter] = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        for moment in state[parameter].values():
            if moment.dim() and moment.shape != parameter.shape:
                raise CheckpointError(
                    f"the optimizer's state of {name} has shape {list(moment.shape)}; it is of another model"
                )
    return state
