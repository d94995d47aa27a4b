"""The exchanges: what they average, and when.

The only code that decides when model tensors go to a collective, and it takes them from the plan. With site
weights w (summing to 1) and R ranks at a site, what is shared becomes the sum over all ranks of w/R times their
own: each site weighs w however many ranks it has. What is private becomes the mean over the site's ranks; with
one rank a site it enters no collective (decision 0003).

- `WeightsExchange`, the published one: the weights themselves, after the optimizer's step.
- `GradientsExchange`: the gradients, in a few buckets from the last block to the first, while backward still runs.
- `delayed.DelayedExchange`: the weights, in fragments, while further steps go on.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cxr_hvd.comm.communicator import Wait
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.sites import Topology
from cxr_hvd.errors import TrainingError
from cxr_hvd.partial.buffers import FlatBuffer, check_addresses, flatten, lay_out, note_addresses, split_like
from cxr_hvd.partial.gradient_bucket import GradientBucket, group_into_buckets
from cxr_hvd.partial.means import SharedMean, SiteMean
from cxr_hvd.partial.plan import Buffer, Scope, SharingPlan
from cxr_hvd.partial.wire import Wire32, wire_of

Moment = tuple[Buffer, nn.Parameter]
"""A parameter, and the buffer in which one of its running means travels."""


class HasState(Protocol):
    """An optimizer, as far as its running means are averaged: one of torch's, or `training.optim`'s."""

    @property
    def state(self) -> Mapping[Tensor, Any]:
        """What it remembers of each parameter, by torch's names."""
        ...


class ModelExchange(Protocol):
    """What is averaged with the other ranks, and after which steps.

    Attributes:
        is_common: whether the ranks of all sites have the same shared tensors now.
    """

    @property
    def is_common(self) -> bool: ...

    def begin(self, count: int = 1) -> None:
        """Begin, before the last backward of a step. Collective: every rank, or none.

        Args:
            count: what this rank's batch counts beside those of the site's other ranks: its known labels.
        """
        ...

    def is_due(self, num_steps: int) -> bool:
        """Return whether anything is sent after so many steps."""
        ...

    def after_step(self, num_steps: int, count: int = 1) -> None:
        """Do what is due after so many steps. Collective: every rank, after each step. Blocking."""
        ...

    def settle(self) -> None:
        """Average where ranks differ, so that all are alike. Collective: every rank. Blocking."""
        ...

    def nonfinite_blocks(self) -> list[str] | None:
        """Return the blocks whose gradient was not finite before it was summed; None: gradients stay here."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what a resume needs. Not collective."""
        ...

    def load_state(self, state: Mapping[str, Tensor], is_common: bool) -> None:
        """Put it back, after the weights that belong to it. Not collective."""
        ...


class WeightsExchange:
    """Averages weights and running statistics after the optimizer's step, every `plan.every` steps.

    Creating one moves the model's tensors into flat buffers: views taken earlier go stale.
    """

    def __init__(
        self, model: nn.Module, optimizer: HasState, plan: SharingPlan, job: Job, site_weights: Sequence[float]
    ) -> None:
        self._every = plan.every
        self._optimizer = optimizer
        buffers = plan.buffers(averaged_scopes(job.topology))
        shared = [buffer for buffer in buffers if buffer.purpose == "weights"]
        private = [buffer for buffer in buffers if buffer.purpose == "private" and not buffer.moment]
        factor = site_weights[job.topology.site_index] / job.num_ranks_of_site
        self._shared, self._private = flatten(model, shared), flatten(model, private)
        self._addresses = note_addresses(model, shared + private)
        self._wire = wire_of(plan.wire, job.comm)
        self._shared_mean = SharedMean("shared", self._shared, "weights", self._wire, factor)
        self._site_mean = SiteMean(self._private.parts, job)

        parameters = dict(model.named_parameters())
        moments = [buffer for buffer in buffers if buffer.moment]
        shared_moments = [buffer for buffer in moments if buffer.scope is Scope.SHARED]
        private_moments = [buffer for buffer in moments if buffer.scope is Scope.PRIVATE]
        self._moments = [
            [(buffer, parameters[spec.name]) for buffer in group for spec in buffer.specs]
            for group in (shared_moments, private_moments)
        ]
        nothing = torch.empty(0)
        self._shared_moments = SharedMean(
            "moments", lay_out(nothing, shared_moments), "moments", Wire32(job.comm), factor
        )
        self._site_moments = SiteMean(lay_out(nothing, private_moments).parts, job)
        self._is_common = True

    @property
    def is_common(self) -> bool:
        """Whether the ranks of all sites have the same shared tensors now."""
        return self._is_common

    def begin(self, count: int = 1) -> None:
        """Nothing: weights are not there yet."""

    def is_due(self, num_steps: int) -> bool:
        """Return whether weights are averaged after so many steps."""
        return num_steps % self._every == 0

    def after_step(self, num_steps: int, count: int = 1) -> None:
        """Average where it is due. Collective: every rank, after each step. Blocking."""
        self._is_common = False
        if self.is_due(num_steps):
            self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Average all that the plan moves, where ranks differ. Collective: every rank. Blocking."""
        if self._is_common:
            return
        check_addresses(self._addresses)
        waits = [self._shared_mean.begin(self._shared.values), self._site_mean.begin(self._private.values)]
        for wait in waits:
            wait()
        self._average_moments(self._moments[0], self._shared_moments)
        self._average_moments(self._moments[1], self._site_moments)
        self._is_common = True

    def _average_moments(self, members: Sequence[Moment], mean: SharedMean | SiteMean) -> None:
        """Average the optimizer's running means as the parameters that they belong to."""
        if not members:
            return
        moments = [self._moment(buffer, parameter) for buffer, parameter in members]
        values = torch.cat([moment.reshape(-1) for moment in moments])
        mean.begin(values)()
        for moment, part in zip(moments, split_like(values, moments), strict=True):
            moment.copy_(part)

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

    def state(self) -> dict[str, Tensor]:
        """Return the last mean and the wire's rounding errors; nothing on a float32 wire."""
        return self._shared_mean.state() | self._wire.state()

    def load_state(self, state: Mapping[str, Tensor], is_common: bool) -> None:
        """Put them back."""
        self._is_common = is_common
        self._shared_mean.load_state(state)
        errors = {name: tensor for name, tensor in state.items() if not name.startswith("reference/")}
        self._wire.load_state(errors, self._shared.values.device)


class GradientsExchange:
    """Averages gradients while backward runs, and running statistics beside them, in every step.

    A site's gradient is that of one batch of all its ranks' studies: a rank counts by its known labels
    (decision 0006). Private gradients are their site's own, whatever the number of sites.
    """

    is_common = True

    def __init__(
        self, model: nn.Module, optimizer: HasState, plan: SharingPlan, job: Job, site_weights: Sequence[float]
    ) -> None:
        self._job = job
        self._site_weight = site_weights[job.topology.site_index]
        self._wire = wire_of(plan.wire, job.comm)
        self._blocks = list(dict.fromkeys(planned.spec.block for planned in plan.tensors))
        self._device = next(model.parameters()).device
        parameters = dict(model.named_parameters())
        buffers = plan.buffers(averaged_scopes(job.topology))
        gradients = [buffer for buffer in buffers if buffer.content == "gradients"]
        shared = [buffer for buffer in gradients if buffer.scope is Scope.SHARED]
        private = [buffer for buffer in gradients if buffer.scope is Scope.PRIVATE]
        self._shared_buckets = [
            GradientBucket(group, parameters, self._send_shared) for group in group_into_buckets(shared)
        ]
        self._private_buckets = [
            GradientBucket(group, parameters, self._send_private) for group in group_into_buckets(private)
        ]
        statistics = [buffer for buffer in buffers if buffer.content == "statistics"]
        shared = [buffer for buffer in statistics if buffer.scope is Scope.SHARED]
        private = [buffer for buffer in statistics if buffer.scope is Scope.PRIVATE]
        self._shared, self._private = flatten(model, shared), flatten(model, private)
        factor = self._site_weight / job.num_ranks_of_site
        self._shared_mean = SharedMean("statistics", self._shared, "statistics", Wire32(job.comm), factor)
        self._site_mean = SiteMean(self._private.parts, job)
        self._addresses = note_addresses(model, statistics)
        self._is_begun = False

    def _send_shared(self, flat: FlatBuffer) -> Wait[None]:
        return self._wire.begin_allreduce(next(iter(flat.parts)), flat, "gradients")

    def _send_private(self, flat: FlatBuffer) -> Wait[None]:
        return self._job.comm.begin_allreduce(flat.values, "private", flat.parts, "site")

    @torch.no_grad()
    def begin(self, count: int = 1) -> None:
        """Agree on the weights of the site's ranks, and watch backward. Collective: every rank.

        Args:
            count: what this rank's batch counts beside those of the site's other ranks: its known labels.
        """
        share = self._share_of_site(count)
        self._is_begun = True
        for bucket in self._shared_buckets:
            bucket.watch(self._site_weight * share)
        for bucket in self._private_buckets:
            bucket.watch(share)

    def is_due(self, num_steps: int) -> bool:
        """Return whether gradients are averaged: in every step."""
        return True

    @torch.no_grad()
    def after_step(self, num_steps: int, count: int = 1) -> None:
        """Average all gradients and statistics, or wait for those under way. Collective: every rank. Blocking."""
        if not self._is_begun:
            self.begin(count)
        self._is_begun = False
        check_addresses(self._addresses)
        # Not earlier: where BatchNorm is frozen, backward reads the statistics. They are 1% of the bytes.
        waits = [self._shared_mean.begin(self._shared.values), self._site_mean.begin(self._private.values)]
        for bucket in self._shared_buckets + self._private_buckets:
            bucket.finish()
        for wait in waits:
            wait()

    def settle(self) -> None:
        """Nothing: all are alike after every step."""

    def nonfinite_blocks(self) -> list[str] | None:
        """Return the blocks, shared or private, whose own gradient was not finite before it was summed."""
        buckets = self._shared_buckets + self._private_buckets
        blocks = {block for bucket in buckets for block in bucket.nonfinite_blocks()}
        return sorted(blocks, key=self._blocks.index)

    def _share_of_site(self, count: int) -> float:
        """Return this rank's share of its site's known labels; an equal one where no rank knows any."""
        if self._job.num_ranks_of_site == 1:
            return 1.0
        known = torch.tensor([count], dtype=torch.int64)
        self._job.comm.begin_allreduce(known, "known", {"labels": 1}, "site")()
        return count / int(known) if int(known) else 1 / self._job.num_ranks_of_site

    def state(self) -> dict[str, Tensor]:
        """Return the wire's rounding errors; nothing on a float32 wire."""
        return self._wire.state()

    def load_state(self, state: Mapping[str, Tensor], is_common: bool) -> None:
        """Put them back."""
        self._wire.load_state(state, self._device)


def averaged_scopes(topology: Topology) -> list[Scope]:
    """Return the scopes that this rank averages with others: a rank alone has nobody to."""
    with_others = {Scope.SHARED: topology.num_ranks > 1, Scope.PRIVATE: len(topology.ranks_of_site) > 1}
    return [scope for scope, has_others in with_others.items() if has_others]
