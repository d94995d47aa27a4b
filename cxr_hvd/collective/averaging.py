"""Average the shared tensors of a model over all sites, and the private ones over a site's own ranks.

The only code that hands model tensors to a collective, and it takes them from the plan. Tensors of one block
and scope lie side by side in one flat buffer, and the model's parameters are views of it: to average is then
one grouped allreduce of a few buffers in place, with nothing to collect and nothing to copy back (decision 0005).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cxr_hvd.collective.comm import Communicator
from cxr_hvd.collective.sharing import Scope, SharingPlan
from cxr_hvd.collective.sites import Topology
from cxr_hvd.errors import TrainingError


class PartialAverager:
    """Averages a model's tensors as its plan says.

    With site weights w (summing to 1) and R ranks at a site, a shared tensor becomes the sum over all ranks of
    w/R times the rank's own: each site weighs w however many ranks it has (decision 0003). A private tensor
    becomes the mean over the site's ranks; with one rank a site it enters no collective.

    Creating one moves the model's tensors into flat buffers; views taken earlier go stale, so create it before
    the optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: SharingPlan,
        comm: Communicator,
        topology: Topology,
        site_weights: Sequence[float],
    ) -> None:
        self._comm = comm
        self._every = plan.every
        self._num_ranks_of_site = len(topology.ranks_of_site)
        self._shared_factor = site_weights[topology.site_index] / self._num_ranks_of_site
        self._shared = flatten_blocks(model, plan, Scope.SHARED) if topology.num_ranks > 1 else []
        self._private = flatten_blocks(model, plan, Scope.PRIVATE) if self._num_ranks_of_site > 1 else []

    @torch.no_grad()
    def average(self, step: int, is_last: bool = False) -> None:
        """Average after the step with this number, counted from 0, where the plan's `every` asks for it.

        The last step always averages, so that all sites end with the same shared tensors.

        Collective: every rank, with the same arguments. Blocking.
        """
        if (step + 1) % self._every and not is_last:
            return
        self._replace_by_weighted_sum(self._shared, self._shared_factor, "shared", is_site_only=False)
        self._replace_by_weighted_sum(self._private, 1 / self._num_ranks_of_site, "private", is_site_only=True)

    def _replace_by_weighted_sum(
        self, buffers: list[Tensor], factor: float, purpose: str, is_site_only: bool
    ) -> None:
        # Weigh here and sum there: Horovod's own scale factors would have to be equal on all ranks.
        for buffer in buffers:
            buffer.mul_(factor)
        self._comm.sum_(buffers, f"average.{purpose}", "site" if is_site_only else "all")


@torch.no_grad()
def flatten_blocks(model: nn.Module, plan: SharingPlan, scope: Scope) -> list[Tensor]:
    """Lay the tensors of one scope into one flat buffer for each block, and make the model use them there.

    Returns:
        Flat float32 buffers, in the model's order of blocks; a change to one changes the model.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    members: dict[str, list[Tensor]] = {}
    for planned in plan.tensors:
        if planned.scope is scope:
            tensor = tensors[planned.spec.name]
            if tensor.dtype != torch.float32:
                raise TrainingError(f"{planned.spec.name}: expected float32 to average, found {tensor.dtype}")
            members.setdefault(planned.spec.block, []).append(tensor)
    buffers = []
    for block in members.values():
        buffer = torch.cat([tensor.reshape(-1) for tensor in block])
        for tensor, part in zip(block, torch.split(buffer, [tensor.numel() for tensor in block]), strict=True):
            tensor.data = part.view(tensor.shape)
        buffers.append(buffer)
    return buffers


def site_weights(weighting: str, studies_per_site: Sequence[int]) -> list[float]:
    """Return what each site weighs in an average, summing to 1: all alike, or by its training studies."""
    shares = [1] * len(studies_per_site) if weighting == "uniform" else studies_per_site
    return [share / sum(shares) for share in shares]
