"""Model tensors side by side in flat buffers, and how such a buffer becomes a mean over ranks.

A buffer is sent from where it lies: the model's tensors are views of it (decision 0005). `plan` says what
stands in it, `averager` when it is sent and with which weights.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from cxr_hvd.comm.communicator import Wait
from cxr_hvd.comm.job import Job
from cxr_hvd.errors import TrainingError
from cxr_hvd.partial.plan import Buffer
from cxr_hvd.partial.wire import ShortWire, Wire32


@torch.no_grad()
def flatten(model: nn.Module, buffers: Iterable[Buffer]) -> dict[str, Tensor]:
    """Lay the tensors of each buffer side by side in flat memory, and make the model use them there.

    Returns:
        From a buffer's name to flat float32 numbers, in the plan's order; a change to one changes the model.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    flat = {}
    for buffer in buffers:
        members = [tensors[spec.name] for spec in buffer.specs]
        flat[buffer.name] = torch.cat([tensor.reshape(-1) for tensor in members])
        for tensor, view in zip(members, split_like(flat[buffer.name], members), strict=True):
            tensor.data = view
    return flat


Address = tuple[str, Tensor, int]
"""A tensor's name, the tensor, and where it lies in memory."""


def note_addresses(model: nn.Module, buffers: Iterable[Buffer]) -> list[Address]:
    """Return where the tensors of these buffers lie, after `flatten`."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    names = [spec.name for buffer in buffers for spec in buffer.specs]
    return [(name, tensors[name], tensors[name].data_ptr()) for name in names]


def check_addresses(addresses: Iterable[Address]) -> None:
    """Check that no tensor was moved out of its flat buffer: what is averaged would not be the model.

    Raises:
        TrainingError: one was, as `model.to(...)` does.
    """
    for name, tensor, address in addresses:
        if tensor.data_ptr() != address:
            raise TrainingError(
                f"{name} was moved in memory after the averager was created: create it after model.to(device), "
                "and load weights with load_state_dict"
            )


def split_like(buffer: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return views of a flat buffer with the shapes of these tensors, one after the other."""
    parts = torch.split(buffer, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


class SharedMean:
    """Flat buffers, by their names, that all ranks replace by their weighted mean.

    On a short wire each rank sends how far it has come from the last mean, which all know, rather than where it
    is: small numbers keep their leading digits in 16 bits. All ranks have to start from equal buffers then.
    """

    def __init__(self, buffers: dict[str, Tensor], purpose: str, wire: Wire32 | ShortWire) -> None:
        self._buffers = buffers
        self._purpose = purpose
        self._wire = wire
        is_short = isinstance(wire, ShortWire)
        self._references = {name: buffer.clone() for name, buffer in buffers.items()} if is_short else {}

    def begin(self, factor: float) -> list[Wait[None]]:
        """Begin to sum each buffer, times this rank's factor, over all ranks. Collective: all ranks."""
        begin = self._begin_step if self._references else self._begin_whole
        return [begin(name, buffer, factor) for name, buffer in self._buffers.items()]

    def _begin_whole(self, name: str, buffer: Tensor, factor: float) -> Wait[None]:
        return self._wire.begin_allreduce(name, buffer.mul_(factor), self._purpose)

    def _begin_step(self, name: str, buffer: Tensor, factor: float) -> Wait[None]:
        reference = self._references[name]
        step = (buffer - reference).mul_(factor)
        wait = self._wire.begin_allreduce(name, step, self._purpose)

        def wait_and_take() -> None:
            wait()
            buffer.copy_(reference.add_(step))

        return wait_and_take

    def state(self) -> dict[str, Tensor]:
        """Return what has to be kept from one average to the next."""
        references = {f"reference/{name}": reference for name, reference in self._references.items()}
        return references | self._wire.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put it back."""
        for name, reference in self._references.items():
            reference.copy_(state[f"reference/{name}"])
        errors = {name: tensor for name, tensor in state.items() if not name.startswith("reference/")}
        self._wire.load_state(errors)


class SiteMean:
    """Flat buffers, by their names, that the ranks of one site replace by their mean, in float32."""

    def __init__(self, buffers: dict[str, Tensor], job: Job) -> None:
        self._buffers = buffers
        self._job = job

    def begin(self) -> list[Wait[None]]:
        """Begin to average over the site. Collective: the site's ranks."""
        return [
            self._job.comm.begin_allreduce({name: buffer.div_(self._job.num_ranks_of_site)}, "private", "site")
            for name, buffer in self._buffers.items()
        ]


class GradientBucket:
    """The gradients of one block, sent as soon as backward has made the last of them.

    Args:
        parameters: those of the block, in the model's order.
        send: begins the sum of the flat buffer over its ranks, and returns how to wait for it.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], send: Callable[[Tensor], Wait[None]]) -> None:
        self._send = send
        self._buffer = torch.zeros(sum(parameter.numel() for parameter in parameters), device=parameters[0].device)
        views = split_like(self._buffer, parameters)
        self._views: dict[Tensor, Tensor] = dict(zip(parameters, views, strict=True))
        self._missing: set[Tensor] = set()
        self._factor = 1.0
        self._norm = torch.zeros(())
        self._wait: Wait[None] | None = None
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._take)  # type: ignore[no-untyped-call]

    def watch(self, factor: float) -> None:
        """Expect one backward, whose gradients count `factor` in the sum."""
        self._missing = set(self._views)
        self._factor = factor
        self._wait = None

    def finish(self) -> None:
        """Wait for the sum. Collective: all ranks of the sum. Blocking."""
        for parameter in self._missing:
            self._lay(parameter)
        self._missing = set()
        wait = self._wait or self._send_buffer()
        wait()

    @property
    def was_finite(self) -> bool:
        """Whether this rank's own part of the last sum was."""
        return bool(self._norm.isfinite())

    def _send_buffer(self) -> Wait[None]:
        self._norm = torch.linalg.vector_norm(self._buffer)
        return self._send(self._buffer)

    def _lay(self, parameter: Tensor) -> None:
        """Weigh a gradient, and lay it where it will be sent from; where it had no part in the loss, zeros."""
        view = self._views[parameter]
        parameter.grad = (
            view.zero_() if parameter.grad is None else torch.mul(parameter.grad, self._factor, out=view)
        )

    @torch.no_grad()
    def _take(self, parameter: Tensor) -> None:
        if parameter in self._missing:
            self._lay(parameter)
            self._missing.remove(parameter)
            if not self._missing:
                self._wait = self._send_buffer()
