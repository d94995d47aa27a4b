"""The loss is a mean over known labels: its parts add up, unknown labels count nowhere, and no gradient is NaN."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cxr_hvd.config.sections import Loss
from cxr_hvd.errors import ConfigError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.training.loss import MAX_WEIGHT, MultiLabelLoss, build_loss

NUM_LABELS = len(LABELS)
WEIGHT_L = torch.linspace(0.1, 20, NUM_LABELS)
LOSSES = {
    "bce": MultiLabelLoss(),
    "weighted": MultiLabelLoss(WEIGHT_L),
    "focal": MultiLabelLoss(gamma=2.0),
    "weighted focal": MultiLabelLoss(WEIGHT_L, gamma=0.5),
}
losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
Batch = tuple[Tensor, Tensor, Tensor]


def draw(seed: int, num_studies: int = 8, dtype: torch.dtype = torch.float32) -> Batch:
    """Draw logits, targets and known labels (B, L)."""
    rng = torch.Generator().manual_seed(seed)
    shape = (num_studies, NUM_LABELS)
    logits_BL = (4 * torch.randn(shape, generator=rng, dtype=dtype)).requires_grad_()
    targets_BL = (torch.rand(shape, generator=rng) < 0.3).to(dtype)
    return logits_BL, targets_BL, torch.rand(shape, generator=rng) < 0.6


def reference(loss: MultiLabelLoss, logits_BL: Tensor, targets_BL: Tensor, known_BL: Tensor) -> float:
    """Return the loss by the formulas of the papers, in plain float64, label by label."""
    terms: list[float] = []
    logits_BL = logits_BL.detach()
    for row, column in known_BL.nonzero().tolist():
        is_present = float(targets_BL[row, column]) == 1
        p = 1 / (1 + math.exp(-float(logits_BL[row, column])))
        p_truth = p if is_present else 1 - p
        weight_L = loss.positive_weight_L
        weight = float(weight_L[column]) if is_present and weight_L is not None else 1.0
        terms.append(-weight * (1 - p_truth) ** (loss.gamma or 0.0) * math.log(p_truth))
    return sum(terms) / max(1, len(terms))


# ---- what the loss is


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.floats(0, 1))
def test_plain_loss_is_the_masked_mean_bit_for_bit(seed: int, num_studies: int, share: float) -> None:
    logits_BL, targets_BL, _ = draw(seed, num_studies)
    known_BL = torch.rand(targets_BL.shape, generator=torch.Generator().manual_seed(seed)) < share
    terms_BL = functional.binary_cross_entropy_with_logits(logits_BL, targets_BL, reduction="none")
    expected = (terms_BL * known_BL).sum() / known_BL.sum().clamp(min=1)
    [expected_gradient] = torch.autograd.grad(expected, logits_BL)
    for num_known in (None, int(known_BL.sum()), known_BL.sum()):
        loss = MultiLabelLoss()(logits_BL, targets_BL, known_BL, num_known)
        assert torch.equal(loss, expected)
        assert torch.equal(torch.autograd.grad(loss, logits_BL)[0], expected_gradient)


@losses
def test_every_loss_is_that_of_its_paper(loss: MultiLabelLoss) -> None:
    for seed in range(2):
        batch = draw(seed, num_studies=3, dtype=torch.float64)
        assert float(loss(*batch).detach()) == pytest.approx(reference(loss, *batch), rel=1e-6)
        assert torch.autograd.gradcheck(partial(loss, targets_BL=batch[1], known_BL=batch[2]), batch[:1])


def test_focal_loss_of_gamma_zero_is_cross_entropy() -> None:
    logits_BL, targets_BL, known_BL = draw(0)
    plain, focal = (MultiLabelLoss(gamma=gamma)(logits_BL, targets_BL, known_BL) for gamma in (None, 0.0))
    assert torch.equal(plain, focal)
    assert torch.equal(*(torch.autograd.grad(each, logits_BL)[0] for each in (plain, focal)))


def test_focal_loss_makes_a_sure_and_right_answer_count_less() -> None:
    logits = torch.tensor([[-3.0], [0.0], [3.0]])
    ones, known = torch.ones(3, 1), torch.eye(3, dtype=torch.bool)
    plain, focal = MultiLabelLoss(), MultiLabelLoss(gamma=2.0)
    ratio = [float(focal(logits, ones, known[:, [i]]) / plain(logits, ones, known[:, [i]])) for i in range(3)]
    assert ratio == pytest.approx([0.9526**2, 0.25, 0.0474**2], abs=1e-3)


# ---- its laws


@losses
@pytest.mark.parametrize("num_parts", [1, 2, 4, 8])
def test_parts_of_a_batch_add_up_to_the_whole(loss: MultiLabelLoss, num_parts: int) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        logits_BL, targets_BL, known_BL = draw(1, dtype=dtype)
        known_BL[:3] = False  # parts do not know equally many
        whole = loss(logits_BL, targets_BL, known_BL)
        [whole_gradient] = torch.autograd.grad(whole, logits_BL)
        for num_known in (int(known_BL.sum()), known_BL.sum()):
            parts = zip(
                logits_BL.chunk(num_parts), targets_BL.chunk(num_parts), known_BL.chunk(num_parts), strict=True
            )
            total = torch.zeros((), dtype=dtype)
            for logits, targets, known in parts:
                total = total + loss(logits, targets, known, num_known)
            torch.testing.assert_close(total, whole, rtol=tolerance, atol=0)
            [total_gradient] = torch.autograd.grad(total, logits_BL)
            torch.testing.assert_close(total_gradient, whole_gradient, rtol=tolerance, atol=1e-9)


@losses
def test_unknown_labels_count_nowhere(loss: MultiLabelLoss) -> None:
    logits_BL, targets_BL, known_BL = draw(2)
    value = loss(logits_BL, targets_BL, known_BL)
    [gradient] = torch.autograd.grad(value, logits_BL)
    assert not gradient[~known_BL].any()
    assert bool(gradient[known_BL].all())
    other = torch.where(known_BL, logits_BL.detach(), 50.0)
    assert torch.equal(value, loss(other, torch.where(known_BL, targets_BL, 1.0), known_BL))


@losses
@pytest.mark.parametrize("num_known", [None, 0, torch.tensor(0)])
def test_a_batch_without_a_known_label_gives_zero_and_no_gradient(
    loss: MultiLabelLoss, num_known: int | Tensor | None
) -> None:
    logits_BL, targets_BL, known_BL = draw(3)
    value = loss(logits_BL, targets_BL, torch.zeros_like(known_BL), num_known)
    assert float(value.detach()) == 0
    assert not torch.autograd.grad(value, logits_BL)[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gamma", [None, 0.0, 0.1, 0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("weight", [None, 0.01, 100.0])
def test_sure_logits_give_finite_losses_and_gradients(
    gamma: float | None, weight: float | None, dtype: torch.dtype
) -> None:
    sure = [0.0, 1e-4, 15, 17, 88, 89, 100, 104, 1e3, 6e4]
    raw_BL = torch.tensor([sure, [-each for each in sure]], dtype=dtype).requires_grad_()
    loss = MultiLabelLoss(None if weight is None else torch.full((len(sure),), weight), gamma)
    for target in (0.0, 1.0):
        value = loss(raw_BL.float(), torch.full(raw_BL.shape, target), torch.ones(raw_BL.shape, dtype=torch.bool))
        [gradient] = torch.autograd.grad(value, raw_BL)
        assert bool(value.isfinite()) and bool(gradient.isfinite().all())
        # Where the truth was given no chance, focal loss pulls towards it as plain cross-entropy does.
        pull = (weight or 1.0) if target == 1 else -1.0
        assert float(gradient[int(target), -1]) == pytest.approx(-pull / raw_BL.numel(), rel=0.02)


# ---- weights of labels


def counts(present: int, absent: int, unknown: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return one label's targets and known marks, (N, 1); unknown ones have target 0, as policies give it."""
    targets = np.array([1] * present + [0] * absent + [0] * unknown, dtype=np.float32)[:, None]
    return targets, np.arange(len(targets))[:, None] < present + absent


def weight_of(settings: Loss, targets_NL: NDArray[np.float32], known_NL: NDArray[np.bool_]) -> Tensor:
    names = LABELS[: targets_NL.shape[1]]
    weight_L = build_loss(settings, names, targets_NL, known_NL).positive_weight_L
    assert weight_L is not None and weight_L.dtype == torch.float32
    return weight_L


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 50))
def test_balanced_weights_are_absent_over_present_within_their_bounds(
    present: int, absent: int, unknown: int
) -> None:
    [weight] = weight_of(Loss(positive_weight="balanced"), *counts(present, absent, unknown)).tolist()
    if present and absent:
        assert weight == pytest.approx(min(MAX_WEIGHT, max(1 / MAX_WEIGHT, absent / present)))
    else:
        assert weight == 1


def test_balanced_weights_give_present_and_absent_labels_the_same_sum() -> None:
    targets_NL = (np.random.default_rng(0).random((200, 3)) < [0.1, 0.5, 0.9]).astype(np.float32)
    known_NL = np.random.default_rng(1).random((200, 3)) < 0.7
    loss = build_loss(Loss(positive_weight="balanced"), LABELS[:3], targets_NL, known_NL)
    logits = torch.zeros(200, 3, requires_grad=True)
    value = loss(logits, torch.from_numpy(targets_NL), torch.from_numpy(known_NL))
    [gradient] = torch.autograd.grad(value, logits)
    torch.testing.assert_close(gradient.sum(dim=0), torch.zeros(3), atol=1e-6, rtol=0)


def test_named_labels_get_their_weight_and_all_others_one() -> None:
    settings = Loss(positive_weight={LABELS[2]: 5.0, LABELS[0]: 0.5})
    targets_NL = np.zeros((4, NUM_LABELS), dtype=np.float32)
    weight_L = weight_of(settings, targets_NL, np.ones((4, NUM_LABELS), dtype=bool))
    assert weight_L.tolist() == [0.5, 1, 5] + [1] * (NUM_LABELS - 3)


def test_a_weight_for_a_label_that_the_file_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=f"found '{LABELS[5]}'; leave it out"):
        build_loss(Loss(positive_weight={LABELS[5]: 2.0}), LABELS[:2], *counts(1, 1, 0))


def test_the_config_says_which_loss_it_is() -> None:
    data = counts(1, 3, 0)
    assert build_loss(Loss(), LABELS[:1], *data) == MultiLabelLoss()
    assert build_loss(Loss(name="focal", gamma=1.5), LABELS[:1], *data) == MultiLabelLoss(gamma=1.5)
    both = build_loss(Loss(name="focal", positive_weight="balanced"), LABELS[:1], *data)
    assert both.gamma == 2.0 and both.positive_weight_L is not None and both.positive_weight_L.tolist() == [3]


def test_a_loss_moves_with_its_weights() -> None:
    moved = MultiLabelLoss(WEIGHT_L, gamma=1.0).to("meta")
    assert moved.positive_weight_L is not None and moved.positive_weight_L.device.type == "meta"
    assert moved.gamma == 1.0
    assert MultiLabelLoss(gamma=1.0).to("meta") == MultiLabelLoss(gamma=1.0)
