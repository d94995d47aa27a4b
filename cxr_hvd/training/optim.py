"""The optimizers, AdamW and SGD: those of `torch.optim`, bit for bit, without what their classes import.

`torch.optim.Optimizer` imports torch._dynamo before the first step, so that torch.compile leaves it alone: 1.2 s
of each rank's start, for a compiler that is not used here. The functions below those classes import nothing.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from cxr_hvd.config.sections import Training

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch's defaults
MOMENTUM = 0.9


class Optimizer:
    """Updates parameters from their gradients; parameters without a gradient stay as they are.

    Attributes:
        learning_rate: of the next step.
        state: what is remembered of each parameter, by torch's names; nothing before the first step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], settings: Training) -> None:
        self.learning_rate = settings.learning_rate
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self._parameters = list(parameters)
        self._settings = settings

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def load_state(self, state: Mapping[Tensor, Mapping[str, Tensor]]) -> None:
        """Put back what is remembered of each parameter, on the parameter's device."""
        self.state = {
            parameter: {name: tensor.to(parameter.device) for name, tensor in remembered.items()}
            for parameter, remembered in state.items()
            if remembered
        }

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters, in one kernel a device."""
        parameters: list[Tensor] = [parameter for parameter in self._parameters if parameter.grad is not None]
        own_gradients = gradients(self._parameters)
        if self._settings.optimizer == "adamw":
            self._step_adamw(parameters, own_gradients)
        else:
            self._step_sgd(parameters, own_gradients)

    def _step_adamw(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        for parameter in parameters:
            if parameter not in self.state:
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                self.state[parameter] = {
                    "step": step,
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        means, squares, steps = (
            [self.state[parameter][name] for parameter in parameters] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        adamw(
            parameters,
            gradients,
            means,
            squares,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=BETA1,
            beta2=BETA2,
            lr=self.learning_rate,
            weight_decay=self._settings.weight_decay,
            eps=EPSILON,
            maximize=False,
        )

    def _step_sgd(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        buffers = [self.state.get(parameter, {}).get("momentum_buffer") for parameter in parameters]
        sgd(
            parameters,
            gradients,
            buffers,
            fused=True,
            weight_decay=self._settings.weight_decay,
            momentum=MOMENTUM,
            lr=self.learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        self.state |= {
            parameter: {"momentum_buffer": buffer}
            for parameter, buffer in zip(parameters, buffers, strict=True)
            if buffer is not None
        }


def gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Return the gradients of those parameters that have one."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients as one vector, a single number on their device; 0 where there is none."""
    tensors = gradients(parameters)
    return get_total_norm(tensors) if tensors else torch.zeros(())


def numbers_of(tensors: Sequence[Tensor]) -> list[float]:
    """Return single numbers of a device in one copy: each copy waits until the device has done all before it."""
    device = max((tensor.device for tensor in tensors), key=lambda device: device.type != "cpu")
    numbers: list[float] = torch.stack([tensor.detach().to(device).double() for tensor in tensors]).tolist()
    return numbers


def clip(parameters: Iterable[nn.Parameter], norm: float, max_norm: float) -> None:
    """Shorten gradients of this norm to `max_norm`, in place; shorter ones stay as they are."""
    if norm > max_norm:
        torch._foreach_mul_(gradients(parameters), max_norm / norm)
