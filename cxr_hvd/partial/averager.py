"""Average the shared tensors of a model over all sites, and the private ones over a site's own ranks.

The only code that decides when model tensors go to a collective, and it takes them from the plan. With site
weights w (summing to 1) and R ranks at a site, what is shared becomes the sum over all ranks of w/R times their
own: each site weighs w however many ranks it has. What is private becomes the mean over the site's ranks; with
one rank a site it enters no collective (decision 0003). Two exchanges:

- `WeightsExchange`, the published one: the weights themselves, after the optimizer's step.
- `GradientsExchange`: the gradients, block by block from the last to the first, while backward still runs.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cxr_hvd.comm.communicator import Wait
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.sites import Topology
from cxr_hvd.partial.buffers import GradientBucket, SharedMean, SiteMean, flatten_blocks, split_like
from cxr_hvd.partial.plan import Kind, Scope, SharingPlan
from cxr_hvd.partial.wire import Wire32, wire_of

STATE = (Kind.PARAMETER, Kind.STATISTIC)


class HasState(Protocol):
    """An optimizer, as far as its running means are averaged: one of torch's, or `training.optim`'s."""

    @property
    def state(self) -> Mapping[Tensor, Any]:
        """What it remembers of each parameter, by torch's names."""
        ...


class Averager(Protocol):
    """What a training step calls, in this order. Collective: every rank, with the same step."""

    def begin(self, step: int, num_known: int) -> None:
        """After forward, before backward. `num_known` counts the known labels of this rank's batch."""
        ...

    def before_update(self) -> None:
        """After backward: waits for what the optimizer's step needs."""
        ...

    def after_update(self, step: int, is_last: bool, optimizer: HasState) -> None:
        """After the optimizer's step. The last one always averages, so that all sites end alike."""
        ...

    def nonfinite_blocks(self) -> list[str] | None:
        """Return the blocks of which this rank handed over a gradient that is not finite, in the model's order.

        None where gradients stay on the rank. Not collective.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what this rank needs to go on bit for bit. Not collective."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put that back. Not collective."""
        ...


class WeightsExchange:
    """Averages weights and running statistics after the optimizer's step, every `plan.every` steps.

    Creating one moves the model's tensors into flat buffers: views taken earlier go stale.
    """

    def __init__(self, model: nn.Module, plan: SharingPlan, job: Job, site_weights: Sequence[float]) -> None:
        self._plan = plan
        self._comm = job.comm
        self._parameters = dict(model.named_parameters())
        self._num_ranks_of_site = job.num_ranks_of_site
        self._shared_factor = site_weights[job.topology.site_index] / self._num_ranks_of_site
        self._scopes = averaged_scopes(job.topology)
        buffers = {scope: flatten_blocks(model, plan, scope, STATE) for scope in self._scopes}
        self._shared = SharedMean(buffers.get(Scope.SHARED, {}), "weights", wire_of(plan.wire, job.comm))
        self._private = SiteMean(buffers.get(Scope.PRIVATE, {}), "", job.comm, self._num_ranks_of_site)

    def begin(self, step: int, num_known: int) -> None:
        """Nothing: weights are not there yet."""

    def before_update(self) -> None:
        """Nothing: weights are not there yet."""

    @torch.no_grad()
    def after_update(self, step: int, is_last: bool, optimizer: HasState) -> None:
        """Average where the plan's `every` asks for it, and after the last step.

        Collective: every rank, with the same step. Blocking.
        """
        if (step + 1) % self._plan.every and not is_last:
            return
        for wait in [*self._shared.begin(self._shared_factor), *self._private.begin()]:
            wait()
        for moment in self._plan.moments:
            for scope in self._scopes:
                for block, specs in self._plan.blocks(scope, (Kind.PARAMETER,)).items():
                    own = [optimizer.state[self._parameters[spec.name]][moment] for spec in specs]
                    self._average_moment(f"{moment}.{block}", scope, own)

    def nonfinite_blocks(self) -> list[str] | None:
        """None: gradients stay on the rank."""
        return None

    def _average_moment(self, name: str, scope: Scope, moments: list[Tensor]) -> None:
        """Average the optimizer's running means of one block as the parameters that they belong to."""
        buffer = torch.cat([each.reshape(-1) for each in moments])
        if scope is Scope.SHARED:
            self._comm.begin_allreduce({name: buffer.mul_(self._shared_factor)}, "moments")()
        else:
            self._comm.begin_allreduce({name: buffer.div_(self._num_ranks_of_site)}, "private", "site")()
        for each, part in zip(moments, split_like(buffer, moments), strict=True):
            each.copy_(part)

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

    def __init__(self, model: nn.Module, plan: SharingPlan, job: Job, site_weights: Sequence[float]) -> None:
        self._comm = job.comm
        self._num_ranks_of_site = job.num_ranks_of_site
        self._site_weight = site_weights[job.topology.site_index]
        self._wire = wire_of(plan.wire, job.comm)
        parameters = dict(model.named_parameters())
        self._plan = plan
        self._buckets: dict[Scope, dict[str, GradientBucket]] = {Scope.SHARED: {}, Scope.PRIVATE: {}}
        statistics = {}
        for scope in averaged_scopes(job.topology):
            for block, specs in plan.blocks(scope, (Kind.PARAMETER,)).items():
                own = [parameters[spec.name] for spec in specs]
                self._buckets[scope][block] = GradientBucket(own, partial(self._send, scope, block))
            statistics[scope] = flatten_blocks(model, plan, scope, (Kind.STATISTIC,))
        self._shared = SharedMean(statistics.get(Scope.SHARED, {}), "statistics", Wire32(job.comm))
        self._private = SiteMean(
            statistics.get(Scope.PRIVATE, {}), "statistics.", job.comm, self._num_ranks_of_site
        )

    def _send(self, scope: Scope, block: str, buffer: Tensor) -> Wait[None]:
        if scope is Scope.SHARED:
            return self._wire.begin_allreduce(block, buffer, "gradients")
        return self._comm.begin_allreduce({block: buffer}, "private", "site")

    @torch.no_grad()
    def begin(self, step: int, num_known: int) -> None:
        """Agree on the weights of the site's ranks, and watch backward.

        Collective: every rank.
        """
        share = self._share_of_site(num_known)
        for bucket in self._buckets[Scope.SHARED].values():
            bucket.watch(self._site_weight * share)
        for bucket in self._buckets[Scope.PRIVATE].values():
            bucket.watch(share)

    @torch.no_grad()
    def before_update(self) -> None:
        """Wait until all gradients and statistics are averaged. Collective: every rank. Blocking."""
        # Not earlier: where BatchNorm is frozen, backward reads the statistics. They are 1% of the bytes.
        waits = self._shared.begin(self._site_weight / self._num_ranks_of_site) + self._private.begin()
        for buckets in self._buckets.values():
            for bucket in reversed(buckets.values()):  # the last block was sent first
                bucket.finish()
        for wait in waits:
            wait()

    def after_update(self, step: int, is_last: bool, optimizer: HasState) -> None:
        """Nothing: from equal weights, equal gradients have made equal weights."""

    def nonfinite_blocks(self) -> list[str] | None:
        """Return the blocks, shared or private, whose own gradient was not finite before it was summed."""
        order = list(dict.fromkeys(each.spec.block for each in self._plan.tensors))
        bad = {
            block
            for buckets in self._buckets.values()
            for block, bucket in buckets.items()
            if not bucket.was_finite
        }
        return sorted(bad, key=order.index)

    def _share_of_site(self, num_known: int) -> float:
        """Return this rank's share of its site's known labels; an equal one where no rank knows any."""
        if self._num_ranks_of_site == 1:
            return 1.0
        known = torch.tensor([num_known], dtype=torch.int64)
        self._comm.begin_allreduce({"labels": known}, "known", "site")()
        return num_known / int(known) if int(known) else 1 / self._num_ranks_of_site

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


def site_weights(weighting: str, studies_per_site: Sequence[int]) -> list[float]:
    """Return what each site weighs in an average, summing to 1: all alike, or by its training studies."""
    shares = [1] * len(studies_per_site) if weighting == "uniform" else studies_per_site
    return [share / sum(shares) for share in shares]
