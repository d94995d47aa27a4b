"""The gradients of some blocks in one flat buffer, sent as soon as backward has made the last of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cxr_hvd.comm.communicator import Wait
from cxr_hvd.partial.buffers import FlatBuffer, lay_out, split_like
from cxr_hvd.partial.plan import Buffer

BUCKET_BYTES = 8 << 20
"""Blocks travel together up to this size: over a slow line many messages cost more than backward could hide."""


class GradientBucket:
    """The gradients of consecutive blocks.

    Args:
        buffers: of the plan, in the model's order.
        parameters: of the model, by their names.
        send: begins the sum of the flat buffer over its ranks, and returns how to wait for it.
    """

    def __init__(
        self,
        buffers: Sequence[Buffer],
        parameters: dict[str, nn.Parameter],
        send: Callable[[FlatBuffer], Wait[None]],
    ) -> None:
        members = [parameters[spec.name] for buffer in buffers for spec in buffer.specs]
        values = torch.zeros(sum(parameter.numel() for parameter in members), device=members[0].device)
        self._flat = lay_out(values, buffers)
        self._send = send
        self._views: dict[Tensor, Tensor] = dict(zip(members, split_like(values, members), strict=True))
        self._missing: set[Tensor] = set()
        self._factor = 1.0
        self._norms: list[Tensor] = []
        self._wait: Wait[None] | None = None
        for parameter in members:
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
        wait = self._wait or self._send_values()
        wait()

    def nonfinite_blocks(self) -> list[str]:
        """Return the blocks of which this rank's own part of the last sum was not finite."""
        return [
            block for block, norm in zip(self._flat.parts, self._norms, strict=True) if not bool(norm.isfinite())
        ]

    def _send_values(self) -> Wait[None]:
        parts = torch.split(self._flat.values, list(self._flat.parts.values()))
        self._norms = [torch.linalg.vector_norm(part) for part in parts]
        return self._send(self._flat)

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
                self._wait = self._send_values()


def group_into_buckets(buffers: Sequence[Buffer], bucket_bytes: int = BUCKET_BYTES) -> list[list[Buffer]]:
    """Return consecutive buffers in groups, from the last to the first: in the order in which backward ends them.

    A group is closed once it holds `bucket_bytes`; within a group the model's order stays.
    """
    groups: list[list[Buffer]] = []
    num_bytes = bucket_bytes
    for buffer in reversed(buffers):
        if num_bytes >= bucket_bytes:
            groups.append([])
            num_bytes = 0
        groups[-1].insert(0, buffer)
        num_bytes += buffer.num_elements * 4
    return groups
