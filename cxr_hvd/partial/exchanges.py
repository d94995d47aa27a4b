"""The two exchanges: what they average, and when.

The only code that decides when model tensors go to a collective, and it takes them from the plan. With site
weights w (summing to 1) and R ranks at a site, what is shared becomes the sum over all ranks of w/R times their
own: each site weighs w however many ranks it has. What is private becomes the mean over the site's ranks; with
one rank a site it enters no collective (decision 0003).

- `WeightsExchange`, the published one: the weights themselves, after the optimizer's step.
- `GradientsExchange`: the gradients, block by block from the last to the first, while backward still runs.

Who calls them, and after which steps, is `averager`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cxr_hvd.comm.communicator import Wait
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.sites import Topology
from cxr_hvd.errors import TrainingError
from cxr_hvd.partial.buffers import (
    GradientBucket,
    SharedMean,
    SiteMean,
    check_addresses,
    flatten,
    note_addresses,
    split_like,
)
from cxr_hvd.partial.plan import Buffer, Scope, SharingPlan
from cxr_hvd.partial.wire import Wire32, wire_of


class HasState(Protocol):
    """An optimizer, as far as its running means are averaged: one of torch's, or `training.optim`'s."""

    @property
    def state(self) -> Mapping[Tensor, Any]:
        """What it remembers of each parameter, by torch's names."""
        ...


class WeightsExchange:
    """Averages weights and running statistics after the optimizer's step.

    Creating one moves the model's tensors into flat buffers: views taken earlier go stale.
    """

    def __init__(
        self, model: nn.Module, optimizer: HasState, plan: SharingPlan, job: Job, site_weights: Sequence[float]
    ) -> None:
        self._optimizer = optimizer
        self._job = job
        self._shared_factor = site_weights[job.topology.site_index] / job.num_ranks_of_site
        buffers = plan.buffers(averaged_scopes(job.topology))
        shared = [buffer for buffer in buffers if buffer.purpose == "weights"]
        private = [buffer for buffer in buffers if buffer.purpose == "private" and not buffer.moment]
        self._shared = SharedMean(flatten(model, shared), "weights", wire_of(plan.wire, job.comm))
        self._private = SiteMean(flatten(model, private), job)
        self._addresses = note_addresses(model, shared + private)
        parameters = dict(model.named_parameters())
        self._moments = [
            (buffer, [parameters[spec.name] for spec in buffer.specs])
            for moment in plan.moments
            for buffer in buffers
            if buffer.moment == moment
        ]

    def begin(self, count: int = 1) -> None:
        """Nothing: weights are not there yet."""

    @torch.no_grad()
    def average(self, count: int = 1) -> None:
        """Average all that the plan moves. Collective: every rank. Blocking."""
        check_addresses(self._addresses)
        for wait in [*self._shared.begin(self._shared_factor), *self._private.begin()]:
            wait()
        for buffer, parameters in self._moments:
            self._average_moment(buffer, [self._moment(buffer, parameter) for parameter in parameters])

    def nonfinite_blocks(self) -> list[str] | None:
        """None: gradients stay on the rank."""
        return None

    def _moment(self, buffer: Buffer, parameter: nn.Parameter) -> Tensor:
        moment: Tensor | None = self._optimizer.state.get(parameter, {}).get(buffer.moment)
        if moment is None:
            raise TrainingError(
                f"optimizer_state: shared: expected {buffer.moment} of every parameter of {buffer.block}, found "
                "none of one: it had no gradient yet, or the optimizer keeps none; use optimizer_state: local"
            )
        return moment

    def _average_moment(self, buffer: Buffer, moments: list[Tensor]) -> None:
        """Average the optimizer's running means of one block as the parameters that they belong to."""
        flat = torch.cat([moment.reshape(-1) for moment in moments])
        if buffer.scope is Scope.SHARED:
            self._job.comm.begin_allreduce({buffer.name: flat.mul_(self._shared_factor)}, buffer.purpose)()
        else:
            flat.div_(self._job.num_ranks_of_site)
            self._job.comm.begin_allreduce({buffer.name: flat}, buffer.purpose, "site")()
        for moment, part in zip(moments, split_like(flat, moments), strict=True):
            moment.copy_(part)

    def state(self) -> dict[str, Tensor]:
        """Return the last means and the wire's rounding errors; nothing on a float32 wire."""
        return self._shared.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put them back."""
        self._shared.load_state(state)


class GradientsExchange:
    """Averages gradients while backward runs, and running statistics beside them, in every step.

    A site's gradient is that of one batch of all its ranks' studies: a rank counts by its known labels
    (decision 0006). Private gradients are their site's own, whatever the number of sites.
    """

    def __init__(
        self, model: nn.Module, optimizer: HasState, plan: SharingPlan, job: Job, site_weights: Sequence[float]
    ) -> None:
        self._job = job
        self._site_weight = site_weights[job.topology.site_index]
        self._wire = wire_of(plan.wire, job.comm)
        self._blocks = list(dict.fromkeys(planned.spec.block for planned in plan.tensors))
        parameters = dict(model.named_parameters())
        buffers = plan.buffers(averaged_scopes(job.topology))
        self._buckets: dict[Scope, dict[str, GradientBucket]] = {Scope.SHARED: {}, Scope.PRIVATE: {}}
        for buffer in buffers:
            if buffer.content == "gradients":
                members = [parameters[spec.name] for spec in buffer.specs]
                bucket = GradientBucket(members, partial(self._send, buffer))
                self._buckets[buffer.scope][buffer.block] = bucket
        statistics = [buffer for buffer in buffers if buffer.content == "statistics"]
        shared = [buffer for buffer in statistics if buffer.scope is Scope.SHARED]
        private = [buffer for buffer in statistics if buffer.scope is Scope.PRIVATE]
        self._shared = SharedMean(flatten(model, shared), "statistics", Wire32(job.comm))
        self._private = SiteMean(flatten(model, private), job)
        self._addresses = note_addresses(model, statistics)
        self._is_begun = False

    def _send(self, buffer: Buffer, flat: Tensor) -> Wait[None]:
        if buffer.scope is Scope.SHARED:
            return self._wire.begin_allreduce(buffer.name, flat, buffer.purpose)
        return self._job.comm.begin_allreduce({buffer.name: flat}, buffer.purpose, "site")

    @torch.no_grad()
    def begin(self, count: int = 1) -> None:
        """Agree on the weights of the site's ranks, and watch backward. Collective: every rank.

        Args:
            count: what this rank's batch counts beside those of the site's other ranks: its known labels.
        """
        share = self._share_of_site(count)
        self._is_begun = True
        for bucket in self._buckets[Scope.SHARED].values():
            bucket.watch(self._site_weight * share)
        for bucket in self._buckets[Scope.PRIVATE].values():
            bucket.watch(share)

    @torch.no_grad()
    def average(self, count: int = 1) -> None:
        """Average all gradients and statistics, or wait for those under way. Collective: every rank. Blocking."""
        if not self._is_begun:
            self.begin(count)
        self._is_begun = False
        check_addresses(self._addresses)
        # Not earlier: where BatchNorm is frozen, backward reads the statistics. They are 1% of the bytes.
        waits = self._shared.begin(self._site_weight / self._job.num_ranks_of_site) + self._private.begin()
        for buckets in self._buckets.values():
            for bucket in reversed(buckets.values()):  # the last block was sent first
                bucket.finish()
        for wait in waits:
            wait()

    def nonfinite_blocks(self) -> list[str] | None:
        """Return the blocks, shared or private, whose own gradient was not finite before it was summed."""
        blocks = {
            block
            for buckets in self._buckets.values()
            for block, bucket in buckets.items()
            if not bucket.was_finite
        }
        return sorted(blocks, key=self._blocks.index)

    def _share_of_site(self, count: int) -> float:
        """Return this rank's share of its site's known labels; an equal one where no rank knows any."""
        if self._job.num_ranks_of_site == 1:
            return 1.0
        known = torch.tensor([count], dtype=torch.int64)
        self._job.comm.begin_allreduce({"labels": known}, "known", "site")()
        return count / int(known) if int(known) else 1 / self._job.num_ranks_of_site

    def state(self) -> dict[str, Tensor]:
        """Return the wire's rounding errors; nothing on a float32 wire."""
        return self._wire.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put them back."""
        self._wire.load_state(dict(state))


EXCHANGES: dict[str, type[WeightsExchange] | type[GradientsExchange]] = {
    "weights": WeightsExchange,
    "gradients": GradientsExchange,
}


def averaged_scopes(topology: Topology) -> list[Scope]:
    """Return the scopes that this rank averages with others: a rank alone has nobody to."""
    with_others = {Scope.SHARED: topology.num_ranks > 1, Scope.PRIVATE: len(topology.ranks_of_site) > 1}
    return [scope for scope, has_others in with_others.items() if has_others]
