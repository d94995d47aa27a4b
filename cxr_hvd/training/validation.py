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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cxr_hvd.comm.answers import check_number, read_answers
from cxr_hvd.comm.communicator import Communicator, allgather
from cxr_hvd.comm.sites import Topology
from cxr_hvd.config.schema import Config
from cxr_hvd.data.loader import plain_batches
from cxr_hvd.data.studies import StudySet
from cxr_hvd.stats.metrics import compute_metrics
from cxr_hvd.training.engine import Engine, forward
from cxr_hvd.training.records import Verdict

ROWS_AT_ONCE = 16_384  # 14 labels of 4 bytes: less than the megabyte that may be sent at once


@dataclass(frozen=True)
class History:
    """What all ranks remember of the validations before; part of a checkpoint's state.

    Attributes:
        best_auroc: the best that was agreed on; None before the first.
        best_step: after how many steps that was.
        num_since_best: validations since then.
    """

    best_auroc: float | None = None
    best_step: int | None = None
    num_since_best: int = 0

    def after(self, step: int, agreed_auroc: float | None, min_delta: float) -> "History":
        """Return the history with one more validation. Pure."""
        if agreed_auroc is None:
            return replace(self, num_since_best=self.num_since_best + 1)
        if self.best_auroc is None or agreed_auroc > self.best_auroc + min_delta:
            return History(agreed_auroc, step, 0)
        return replace(self, num_since_best=self.num_since_best + 1)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> "History":
        """Read what `as_json` gave; an empty mapping is no validation yet."""
        return cls(said.get("best_auroc"), said.get("best_step"), int(said.get("num_since_best", 0)))


class Validation:
    """A site's validation studies and how its network does on them.

    Args:
        studies: the site's VALIDATE studies; may be none.
        engine: the one whose network is judged: the running mean of its weights where it keeps one.
        num_threads: of the loader.

    Attributes:
        history: what came of the validations so far.
    """

    def __init__(self, studies: StudySet, config: Config, engine: Engine, num_threads: int) -> None:
        self.history = History()
        self._studies = studies
        self._config = config
        self._engine = engine
        self._comm, self._topology = engine.comm, engine.topology
        self._num_threads = num_threads
        self._mean_model = copy.deepcopy(engine.model) if engine.weight_mean else None

    def is_exhausted(self) -> bool:
        """Whether patience is over."""
        patience = self._config.validation.patience
        return patience is not None and self.history.num_since_best >= patience

    def judge(self, step: int) -> Verdict:
        """Judge every site's network after so many steps. Collective: every rank. Blocking."""
        started = time.perf_counter()
        auroc, accuracy = self._judge_own()
        answers = allgather(self._comm, torch.tensor([auroc], dtype=torch.float64), "auroc").flatten().tolist()
        of_rank = read_answers(answers, _read_auroc, "auroc", self._topology.name_of)
        first_ranks = [self._topology.ranks_at(site)[0] for site in range(self._topology.num_sites)]
        of_site = [None if math.isnan(of_rank[rank]) else of_rank[rank] for rank in first_ranks]
        defined = [auroc for auroc in of_site if auroc is not None]
        agreed = sum(defined) / len(defined) if defined else None
        self.history = self.history.after(step, agreed, self._config.validation.min_delta)
        return Verdict(
            step=step,
            macro_auroc=None if math.isnan(auroc) else auroc,
            mean_accuracy=accuracy,
            agreed_auroc=agreed,
            is_best=self.history.best_step == step,
            seconds=time.perf_counter() - started,
            auroc_of_site=dict(zip(self._topology.site_names, of_site, strict=True)),
        )

    def _network(self) -> torch.nn.Module:
        if self._mean_model is None or self._engine.weight_mean is None:
            return self._engine.model
        self._mean_model.load_state_dict(self._engine.weight_mean.tensors(), strict=False)
        return self._mean_model

    def _judge_own(self) -> tuple[float, float | None]:
        """Return the site's mean AUROC (NaN where undefined) and accuracy; the same on all its ranks."""
        if not len(self._studies):
            return math.nan, None
        studies = self._studies
        probabilities_NL = predict_at_site(
            self._network(), studies, self._config, self._num_threads, self._comm, self._topology
        )
        metrics = compute_metrics(probabilities_NL, studies.targets, studies.known, studies.label_names)
        auroc = math.nan if metrics.macro_auroc is None else metrics.macro_auroc
        return auroc, metrics.mean_accuracy


def _read_auroc(answer: float) -> float:
    """Return a site's AUROC, 0 to 1, or NaN where it is undefined."""
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
    model: torch.nn.Module,
    studies: StudySet,
    config: Config,
    num_threads: int,
    comm: Communicator,
    topology: Topology,
) -> NDArray[np.float32]:
    """Return probabilities (N, L) of all studies of a site's set, its batches shared out among the site's ranks.

    They are the same on all of them, and bit for bit those of one rank. Collective: all ranks of the site.
    """
    num_ranks = len(topology.ranks_of_site)
    own = share_of(studies.num_images, config.training.batch_size, topology.rank_in_site, num_ranks)
    probabilities_NL = np.zeros(studies.targets.shape, dtype=np.float32)
    probabilities_NL[own] = predict(model, studies, own, config, num_threads, comm)
    if num_ranks > 1:
        for start in range(0, len(studies), ROWS_AT_ONCE):
            rows = torch.from_numpy(probabilities_NL[start : start + ROWS_AT_ONCE])
            # Each row comes from one rank, and zeros from the others: the sum is exact.
            comm.begin_allreduce({f"rows from {start}": rows}, "scores", "site")()
    return probabilities_NL


@torch.inference_mode()
def predict(
    model: torch.nn.Module,
    studies: StudySet,
    positions: Sequence[int] | NDArray[np.int64],
    config: Config,
    num_threads: int = 1,
    comm: Communicator | None = None,
) -> NDArray[np.float32]:
    """Return probabilities (len(positions), L), 0 to 1, of studies of a set, in the order of the positions.

    The network computes in float32, without TensorFloat-32 on a GPU, whatever the config's `precision` is.

    Args:
        comm: where given, its watchdog is told of every batch. Not collective.
    """
    model.eval()
    device = next(model.parameters()).device
    positions = np.asarray(positions)
    order = share_of(studies.num_images[positions], config.training.batch_size, rank=0, num_ranks=1)
    batches = plain_batches(
        studies,
        positions[order].tolist(),
        config.training.batch_size,
        config.model.image_size,
        num_threads,
        config.loader.prefetch,
        device,
    )
    rows = []
    with _full_float32():
        for batch in batches:
            if comm:
                comm.watchdog.works("validating", comm.ledger.step)
            logits_BL = forward(model, batch.images, "fp32")
            rows.append(torch.sigmoid(logits_BL).cpu().numpy())
    probabilities_NL = np.empty((len(positions), studies.targets.shape[1]), dtype=np.float32)
    if rows:
        probabilities_NL[order] = np.concatenate(rows)
    return probabilities_NL


@contextmanager
def _full_float32() -> Iterator[None]:
    """Keep a GPU's convolutions from rounding to TensorFloat-32, torch's default for float32."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before
