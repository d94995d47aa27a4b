"""How good the networks are while they train: each site judges its own, and all agree on the mean.

A site's score is the mean AUROC over the labels that are defined on its VALIDATE studies. Its ranks share the
studies out and put their scores together among themselves; sites tell each other one number. What is agreed on
names the best checkpoint and, with `validation.patience`, ends the run.

Networks are judged in float32, whatever `training.precision` is: in bfloat16 most scores of a few dozen studies
are the same, and AUROC counts ties as half.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cxr_hvd.comm.answers import check_number
from cxr_hvd.comm.job import Job
from cxr_hvd.config.sections import Validation
from cxr_hvd.data.loader import Batching, plain_batches
from cxr_hvd.data.studies import StudySet
from cxr_hvd.models.forward import forward, full_float32
from cxr_hvd.stats.metrics import choose_thresholds, compute_metrics
from cxr_hvd.training.history import History
from cxr_hvd.training.records import Verdict
from cxr_hvd.training.state import TrainingState

ROWS_AT_ONCE = 16_384  # 14 labels of 4 bytes: less than the megabyte that may be sent at once


class Validator:
    """A site's validation studies and how its network does on them.

    Args:
        studies: the site's VALIDATE studies; may be none.
        settings: section `validation` of the config.
        state: its network is judged: the running mean of the weights where it keeps one.
        job: the ranks that judge together.
        batching: how batches are made.
        history: what came of the validations so far.
    """

    def __init__(
        self,
        studies: StudySet,
        settings: Validation,
        state: TrainingState,
        job: Job,
        batching: Batching,
        history: History = History(),  # noqa: B008, it is frozen
    ) -> None:
        self._history = history
        self._studies = studies
        self._settings = settings
        self._state = state
        self._job = job
        self._batching = batching
        self._mean_model = copy.deepcopy(state.model) if state.weight_mean else None

    @property
    def history(self) -> History:
        """What came of the validations so far."""
        return self._history

    def is_exhausted(self) -> bool:
        """Whether patience is over."""
        patience = self._settings.patience
        return patience is not None and self._history.num_since_best >= patience

    def judge(self, step: int) -> Verdict:
        """Judge every site's network after so many steps. Collective: every rank. Blocking."""
        started = time.perf_counter()
        auroc, accuracy, thresholds = self._judge_site(step)
        answer = torch.tensor([auroc], dtype=torch.float64)
        auroc_of_rank = self._job.allgather_numbers(answer, "auroc", _read_auroc)
        topology = self._job.topology
        auroc_of_site = {
            name: None if math.isnan(auroc_of_rank[rank]) else auroc_of_rank[rank]
            for site, name in enumerate(topology.site_names)
            for rank in [topology.ranks_at(site)[0]]
        }
        defined = [auroc for auroc in auroc_of_site.values() if auroc is not None]
        agreed = sum(defined) / len(defined) if defined else None
        self._history = self._history.after(step, agreed, self._settings.min_delta)
        return Verdict(
            step=step,
            macro_auroc=None if math.isnan(auroc) else auroc,
            mean_accuracy=accuracy,
            agreed_auroc=agreed,
            is_best=self._history.best_step == step,
            seconds=time.perf_counter() - started,
            auroc_of_site=auroc_of_site,
            thresholds=thresholds,
        )

    def _network(self) -> nn.Module:
        if self._mean_model is None or self._state.weight_mean is None:
            return self._state.model
        self._mean_model.load_state_dict(self._state.weight_mean.tensors(), strict=False)
        return self._mean_model

    def _judge_site(self, step: int) -> tuple[float, float | None, dict[str, float]]:
        """Return the site's mean AUROC (NaN where undefined), accuracy, thresholds; the same on all its ranks."""
        if not len(self._studies):
            return math.nan, None, {}
        studies = self._studies
        probabilities_NL = predict_at_site(self._network(), studies, self._batching, self._job, step - 1)
        metrics = compute_metrics(probabilities_NL, studies.targets, studies.known, studies.label_names)
        auroc = math.nan if metrics.macro_auroc is None else metrics.macro_auroc
        chosen = choose_thresholds(probabilities_NL, studies.targets, studies.known)
        thresholds = {
            label: threshold
            for label, threshold in zip(studies.label_names, chosen, strict=True)
            if threshold is not None
        }
        return auroc, metrics.mean_accuracy, thresholds


def _read_auroc(numbers: list[float]) -> float:
    """Return a site's AUROC, 0 to 1, or NaN where it is undefined."""
    [answer] = numbers
    return answer if math.isnan(answer) else check_number(answer, 0, 1)


def share_of(num_images_N: NDArray[np.uint8], batch_size: int, rank: int, num_ranks: int) -> NDArray[np.int64]:
    """Return the positions of the studies that one of several ranks judges: every so-manieth batch. Pure.

    Studies with equally many images stand together, so that few channels are empty. `predict` makes of each rank's
    share the very batches that one rank would make of all, so that scores are the same bit for bit.
    """
    order_N = np.argsort(num_images_N, kind="stable")
    batches = [order_N[start : start + batch_size] for start in range(0, len(order_N), batch_size)]
    return np.concatenate([np.empty(0, dtype=np.int64), *batches[rank::num_ranks]])


def predict_at_site(
    model: nn.Module,
    studies: StudySet,
    batching: Batching,
    job: Job,
    step: int | None = None,
    purpose: Literal["scores", "answers"] = "scores",
) -> NDArray[np.float32]:
    """Return probabilities (N, L) of all studies of a site's set, its batches shared out among the site's ranks.

    They are the same on all of them, and bit for bit those of one rank. Collective: all ranks of the site.

    Args:
        step: the step that training is in, for the watchdog; None where nothing is trained.
        purpose: what the site's ranks hand to each other, as the traffic table knows it.
    """
    num_ranks = job.num_ranks_of_site
    share = share_of(studies.num_images, batching.batch_size, job.topology.rank_in_site, num_ranks)
    probabilities_NL = np.zeros(studies.targets.shape, dtype=np.float32)
    probabilities_NL[share] = predict(
        model, studies, share, batching, on_batch=lambda: job.watchdog.works("validating", step)
    )
    if num_ranks > 1:
        for start in range(0, len(studies), ROWS_AT_ONCE):
            rows = torch.from_numpy(probabilities_NL[start : start + ROWS_AT_ONCE])
            # Each row comes from one rank, and zeros from the others: the sum is exact.
            job.comm.begin_allreduce(rows, purpose, {f"rows from {start}": rows.numel()}, "site")()
    return probabilities_NL


@torch.inference_mode()
def predict(
    model: nn.Module,
    studies: StudySet,
    positions: Sequence[int] | NDArray[np.int64],
    batching: Batching,
    on_batch: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """Return probabilities (len(positions), L), 0 to 1, of studies of a set, in the order of the positions.

    The network computes in float32, without TensorFloat-32 on a GPU, whatever the config's `precision` is.

    Args:
        on_batch: called before each batch. Not collective.
    """
    model.eval()
    device = next(model.parameters()).device
    positions = np.asarray(positions)
    order = share_of(studies.num_images[positions], batching.batch_size, rank=0, num_ranks=1)
    batches = plain_batches(
        studies,
        positions[order].tolist(),
        batching.batch_size,
        batching.image_size,
        batching.threads,
        batching.prefetch,
        device,
    )
    rows = []
    with full_float32():
        for batch in batches:
            on_batch()
            logits_BL = forward(model, batch.images, "fp32")
            rows.append(torch.sigmoid(logits_BL).cpu().numpy())
    if not rows:
        return np.empty((0, studies.targets.shape[1]), dtype=np.float32)
    ordered_NL = np.concatenate(rows)  # as many columns as the network has outputs
    probabilities_NL = np.empty_like(ordered_NL)
    probabilities_NL[order] = ordered_NL
    return probabilities_NL
