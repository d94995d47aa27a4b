"""Delayed averaging: weights are averaged in fragments, while steps go on (decision 0035).

A fragment is a consecutive part of the shared buffer, as `plan` cuts it. Every `plan.delay` steps one begins its
way: a copy of it is averaged with the other ranks in the background. So many steps later the mean is there, and
the weights move by what the mean differs from that copy: `w += mean(w_then) - w_then`. What this rank has learnt
meanwhile stays. A mean that is late is waited for, and one that is early waits: the weights of a run do not depend
on how fast the line is.

Streaming DiLoCo (Douillard et al., 2025) overlaps fragments in the same way, with an outer optimizer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cxr_hvd.comm.communicator import Wait
from cxr_hvd.comm.job import Job
from cxr_hvd.partial.buffers import check_addresses, cut, flatten, note_addresses
from cxr_hvd.partial.exchanges import HasState, averaged_scopes
from cxr_hvd.partial.means import SharedMean, SiteMean
from cxr_hvd.partial.plan import Buffer, SharingPlan
from cxr_hvd.partial.wire import wire_of

NOTHING = (-1, -1)
"""No fragment is under way, and none ends after any step."""


@dataclass
class UnderWay:
    """A part of the model whose average is under way.

    Attributes:
        values: (n,) of the model, which steps change meanwhile.
        then: (n,) as they were at the begin.
        mean: (n,) their mean, once it is there.
        wait: waits for it; None: it is there.
    """

    values: Tensor
    then: Tensor
    mean: Tensor
    wait: Wait[None] | None

    def land(self) -> None:
        """Wait until the mean is there. Blocking."""
        if self.wait:
            self.wait()
            self.wait = None

    def take_in(self) -> None:
        """Move the weights by what the mean differs from what was sent. Blocking."""
        self.land()
        self.values.add_(self.mean.sub_(self.then))


class DelayedExchange:
    """Averages weights and running statistics in fragments, each once in `plan.every` steps, while steps go on.

    Between two averages that wait (`settle`) the sites' shared tensors differ by what each has learnt lately.
    Creating one moves the model's tensors into flat buffers: views taken earlier go stale.
    """

    def __init__(
        self, model: nn.Module, optimizer: HasState, plan: SharingPlan, job: Job, site_weights: Sequence[float]
    ) -> None:
        self._every, self._delay = plan.every, plan.delay
        buffers = plan.buffers(averaged_scopes(job.topology))
        shared = [buffer for buffer in buffers if buffer.purpose == "weights"]
        private = [buffer for buffer in buffers if buffer.purpose == "private"]
        factor = site_weights[job.topology.site_index] / job.num_ranks_of_site
        self._shared = cut(flatten(model, shared), _by_fragment(shared, plan.num_fragments))
        self._private = cut(flatten(model, private), _by_fragment(private, plan.num_fragments))
        self._addresses = note_addresses(model, shared + private)
        self._wire = wire_of(plan.wire, job.comm)
        self._shared_means = [
            SharedMean(f"fragment {number}", flat, "weights", self._wire, factor)
            for number, flat in enumerate(self._shared)
        ]
        self._site_means = [SiteMean(flat.parts, job) for flat in self._private]
        self._under_way: list[UnderWay] = []
        self._fragment, self._end = NOTHING
        self._is_common = True

    @property
    def is_common(self) -> bool:
        """Whether the ranks of all sites have the same shared tensors now."""
        return self._is_common

    def begin(self, count: int = 1) -> None:
        """Nothing: weights are not there yet."""

    def is_due(self, num_steps: int) -> bool:
        """Return whether a fragment begins its way after so many steps."""
        return self._fragment_after(num_steps) is not None

    @torch.no_grad()
    def after_step(self, num_steps: int, count: int = 1) -> None:
        """Take in the mean that is due, and send the next fragment. Collective: every rank, after each step.

        Blocking where the line has not moved a fragment in `plan.delay` steps.
        """
        self._is_common = False
        if num_steps == self._end:
            self._take_in()
        fragment = self._fragment_after(num_steps)
        if fragment is not None:
            check_addresses(self._addresses)
            self._under_way = self._send(fragment)
            self._fragment, self._end = fragment, num_steps + self._delay

    @torch.no_grad()
    def settle(self) -> None:
        """Average all of it, and wait, so that all sites are alike. Collective: every rank. Blocking."""
        if self._is_common:
            return
        self._take_in()
        check_addresses(self._addresses)
        for part in [part for fragment in range(len(self._shared)) for part in self._send(fragment)]:
            part.land()
            part.values.copy_(part.mean)
        self._is_common = True

    def nonfinite_blocks(self) -> list[str] | None:
        """None: gradients stay on the rank."""
        return None

    def state(self) -> dict[str, Tensor]:
        """Return what is under way, last means and rounding errors. Not collective, but it waits for the line."""
        state = {}
        if self._under_way:
            state["under way"] = torch.tensor([self._fragment, self._end])
        for number, part in enumerate(self._under_way):
            part.land()
            state |= {f"under way/then/{number}": part.then, f"under way/mean/{number}": part.mean}
        for mean in self._shared_means:
            state |= mean.state()
        return state | self._wire.state()

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor], is_common: bool) -> None:
        """Put them back."""
        self._is_common = is_common
        for shared_mean in self._shared_means:
            shared_mean.load_state(state)
        self._under_way = []
        self._fragment, self._end = state["under way"].tolist() if "under way" in state else NOTHING
        if self._fragment >= 0:
            parts = [flats[self._fragment] for flats in (self._shared, self._private)]
            for number, flat in enumerate(flat for flat in parts if flat.parts):
                values = flat.values
                then, mean = (torch.empty_like(values) for _ in range(2))
                then.copy_(state[f"under way/then/{number}"])
                mean.copy_(state[f"under way/mean/{number}"])
                self._under_way.append(UnderWay(values, then, mean, wait=None))
        kept = ("reference/", "under way")
        errors = {name: tensor for name, tensor in state.items() if not name.startswith(kept)}
        self._wire.load_state(errors, self._addresses[0][1].device if self._addresses else torch.device("cpu"))

    def _fragment_after(self, num_steps: int) -> int | None:
        """Return the fragment that begins its way after so many steps, or None."""
        fragment, rest = divmod((num_steps - 1) % self._every, self._delay)
        return fragment if rest == 0 and fragment < len(self._shared) else None

    def _send(self, fragment: int) -> list[UnderWay]:
        """Begin to average a copy of a fragment. Collective: every rank."""
        parts = [
            (self._shared[fragment], self._shared_means[fragment].begin),
            (self._private[fragment], self._site_means[fragment].begin),
        ]
        under_way = []
        for flat, begin in parts:
            if flat.parts:
                then, sent = flat.values.clone(), flat.values.clone()
                under_way.append(UnderWay(flat.values, then, sent, begin(sent)))
        return under_way

    def _take_in(self) -> None:
        for part in self._under_way:
            part.take_in()
        self._under_way = []
        self._fragment, self._end = NOTHING


def _by_fragment(buffers: Sequence[Buffer], num_fragments: int) -> list[list[Buffer]]:
    """Return the buffers of each fragment; some may have none."""
    return [[buffer for buffer in buffers if buffer.fragment == number] for number in range(num_fragments)]
