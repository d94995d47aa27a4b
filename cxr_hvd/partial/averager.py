"""`PartialAverager`: average chosen tensors of any network with the other ranks, in a training loop of one's own.

Owns when an exchange is due, and that all ranks come to it at the same step. Left to others: which tensors travel
(`plan`, `blocks`), what is done with them (`exchanges`), and how (`wire`, `comm`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cxr_hvd.comm.contract import check_contract
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.progress import Progress, agree_on_progress
from cxr_hvd.errors import TrainingError, UsageError
from cxr_hvd.files import replaced_file
from cxr_hvd.partial.delayed import DelayedExchange
from cxr_hvd.partial.exchanges import (
    GradientsExchange,
    HasState,
    ModelExchange,
    WeightsExchange,
    averaged_scopes,
)
from cxr_hvd.partial.model_plan import check_tensors, plan_model, shared_digest
from cxr_hvd.partial.plan import BatchNormPolicy, Exchange, Scope, SharingPlan, Wire
from cxr_hvd.partial.weighting import read_weights

EXCHANGES: dict[str, Callable[..., ModelExchange]] = {
    "weights": WeightsExchange,
    "gradients": GradientsExchange,
}


class PartialAverager:
    """Average a model's shared tensors over all sites, and keep its private ones at their site.

    `average` is called where the thing to be averaged exists: after `optimizer.step()` for weights, between
    `backward()` and `optimizer.step()` for gradients. Nothing else of the loop changes. Creating one checks that
    all ranks plan the same and start from the same shared weights, and lays the model's tensors out in flat
    buffers: create it after `model.to(device)`, and load weights with `load_state_dict`, which copies.

    Nothing looks at the numbers: what is not finite on one rank reaches all. Gradients are averaged as they are:
    with `torch.amp.GradScaler`, whose scales may differ between ranks, average weights, or compute in bfloat16.

    Collective: all ranks create one, with the same arguments, and take the same number of steps.

    Args:
        model: any network of float32 tensors, on its device, with the same first weights on all ranks.
        optimizer: of its parameters; any, but for `optimizer_state="shared"`.
        job: of `cxr_hvd.join`.
        private: which tensors never leave their site: a preset (`none`, `ends`, `stem+head`, `norms`, `head`,
            `all`), or block names and globs over block and tensor names.
        blocks: globs over tensor names for each block; None: as `partial.blocks` finds them.
        exchange: `weights`, or `gradients` in every step.
        every: steps from one average of weights to the next.
        wire: `float32`, or `bfloat16` or `float16` for half the bytes, or `int8` for a quarter; rounding errors
            are sent later.
        overlap: whether weights are averaged in fragments while steps go on, and arrive some steps later.
        batchnorm: where running statistics go: `with-block`, `private` or `shared`.
        optimizer_state: `shared` averages the running means of Adam, AdamW or SGD beside the weights.
        weights: what each site weighs in an average, by its name; None: all alike.

    Attributes:
        plan: what leaves a rank, tensor by tensor; `print(averager.plan)` shows it block by block.

    Raises:
        ConfigError: a name or glob matches nothing, or a tensor cannot be averaged: on every rank.
        ContractError: on every rank, where ranks differ in plan, weighting or first shared weights.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: HasState,
        job: Job,
        private: str | Sequence[str] = "none",
        *,
        blocks: Mapping[str, Sequence[str]] | None = None,
        exchange: Exchange = "weights",
        every: int = 1,
        wire: Wire = "float32",
        batchnorm: BatchNormPolicy = "with-block",
        optimizer_state: Literal["local", "shared"] = "local",
        weights: Mapping[str, float] | None = None,
        overlap: bool = False,
    ) -> None:
        with job.together("making the sharing plan"):
            is_shared = optimizer_state == "shared"
            plan = plan_model(
                model, private, blocks, batchnorm, every, exchange, wire, optimizer if is_shared else None, overlap
            )
            check_tensors(model, plan.buffers(averaged_scopes(job.topology)))
            site_weights = read_weights(weights, job.topology.site_names)
        items = {"exchange": exchange, "every": str(every), "wire": wire, "moments": ", ".join(plan.moments)}
        items["overlap"] = str(overlap)
        items |= {"weights of sites": str(site_weights)} | plan.items()
        check_contract(job, items | {"first shared weights": shared_digest(plan, model)})
        self._start(model, optimizer, job, plan, site_weights, checks_steps=True)

    @classmethod
    def of_plan(
        cls, model: nn.Module, optimizer: HasState, job: Job, plan: SharingPlan, site_weights: Sequence[float]
    ) -> Self:
        """Create one for ranks that have agreed on plan and first weights, and are in step by other means.

        So does the program itself: its contract says more, and its ranks tell each other in every step how it
        went. Not collective.

        Args:
            plan: of this model.
            site_weights: of every site, summing to 1.
        """
        check_tensors(model, plan.buffers(averaged_scopes(job.topology)))
        averager = cls.__new__(cls)
        averager._start(model, optimizer, job, plan, site_weights, checks_steps=False)
        return averager

    def _start(
        self,
        model: nn.Module,
        optimizer: HasState,
        job: Job,
        plan: SharingPlan,
        site_weights: Sequence[float],
        checks_steps: bool,
    ) -> None:
        self.plan = plan
        self._model = model
        self._job = job
        self._checks_steps = checks_steps
        self._num_steps = 0
        self._is_closed = False
        build = DelayedExchange if plan.overlap else EXCHANGES[plan.exchange]
        self._exchange = build(model, optimizer, plan, job, site_weights)

    @property
    def num_steps(self) -> int:
        """How many steps were taken: the calls of `average`."""
        return self._num_steps

    @property
    def is_common(self) -> bool:
        """Whether the ranks of all sites have the same shared tensors now: after an average, and at the end."""
        return self._exchange.is_common

    def begin(self, count: int = 1) -> None:
        """Let gradients travel while backward still makes others; of use before the last backward of a step.

        Collective: every rank or none, before the same step. Without effect where weights are exchanged.

        Args:
            count: what this rank's batch counts beside those of the site's other ranks: its studies, or its known
                labels.
        """
        self._check_open()
        if self._checks_steps:
            self._job.ledger.begin_step(self._num_steps)
        self._exchange.begin(count)

    def average(self, count: int = 1) -> None:
        """Count a step, and average where one is due: every `plan.every` steps.

        With `overlap` a fragment of the average begins its way every `plan.delay` steps, and ends so many later.

        Collective: every rank, once a step. Blocking, where an average is due; with `overlap` only where the line
        has not moved a fragment in time.

        Args:
            count: as for `begin`, where that was not called; of no effect on weights.

        Raises:
            TrainingError: on every rank, where the ranks have taken different numbers of steps.
            PeerError: another rank ended.
        """
        self._check_open()
        if self._checks_steps:
            self._job.ledger.begin_step(self._num_steps)
            if self._exchange.is_due(self._num_steps + 1):
                agree_on_progress(self._job, self._num_steps + 1, Progress.GOES_ON)
        self._num_steps += 1
        self._exchange.after_step(self._num_steps, count)

    def settle(self) -> None:
        """Average once more where sites differ, so that all are alike, and go on.

        For an evaluation of one common network between two averages, for example.

        Collective: every rank. Blocking.
        """
        self._check_open()
        if self._checks_steps:
            agree_on_progress(self._job, self._num_steps, Progress.SETTLES)
        self._exchange.settle()

    def close(self) -> None:
        """Average once more where sites differ, so that all end alike.

        Collective: every rank, after its last step. Blocking. Nothing is averaged afterwards.

        Raises:
            TrainingError: on every rank, where the ranks have taken different numbers of steps.
        """
        self._check_open()
        if self._checks_steps:
            agree_on_progress(self._job, self._num_steps, Progress.ENDS)
        self._is_closed = True
        self._exchange.settle()

    def nonfinite_blocks(self) -> list[str] | None:
        """Return the blocks of which this rank handed over a gradient that is not finite, in the model's order.

        None where gradients stay on the rank. Not collective.
        """
        return self._exchange.nonfinite_blocks()

    def state_dict(self) -> dict[str, Tensor]:
        """Return what this rank needs to go on bit for bit, beside model and optimizer. Not collective."""
        counts = {"num_steps": torch.tensor(self._num_steps), "is_common": torch.tensor(self.is_common)}
        return counts | self._exchange.state()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put that back, after the weights that belong to it. Not collective."""
        tensors = dict(state)
        self._num_steps = int(tensors.pop("num_steps"))
        is_common = bool(tensors.pop("is_common", self._num_steps % self.plan.every == 0))
        self._exchange.load_state(tensors, is_common)

    def save(self, path: str | Path) -> None:
        """Write this rank's network, shared and private tensors, to a safetensors file. Not collective.

        Its metadata say site, steps and which blocks are private.

        Raises:
            TrainingError: it cannot be written; nothing half-written is left.
        """
        private = dict.fromkeys(p.spec.block for p in self.plan.tensors if p.scope is Scope.PRIVATE)
        metadata = {"site": self._job.site, "num_steps": str(self._num_steps), "private": ", ".join(private)}
        weights = self._model.state_dict()
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in weights.items()}
        try:
            with replaced_file(Path(path)) as unfinished:
                save_file(tensors, unfinished, metadata)
        except OSError as error:
            raise TrainingError(f"{path}: cannot write the network ({error.strerror or error})") from error

    def _check_open(self) -> None:
        if self._is_closed:
            raise UsageError("this averager is closed: create another one to go on training")
