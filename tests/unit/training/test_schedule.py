"""Schedules stay in their bounds and meet their warm-up; the loss scale follows the flags and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cxr_hvd.training.loss_scale import FIRST_SCALE, GROWTH_STEPS, MAX_SCALE, LossScale, LossScaleState
from cxr_hvd.training.schedule import SCHEDULES, learning_rate_factor, stepwise

names = st.sampled_from(sorted(SCHEDULES))
falling = st.sampled_from(["constant", "cosine", "step"])

# ---- schedules


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 1000])
def test_schedules_stay_between_zero_and_one(name: str, num_steps: int) -> None:
    factors = [SCHEDULES[name](step, num_steps) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert name == "constant" or factors[-1] <= max(factors)


@settings(deadline=None)
@given(names, st.integers(1, 300), st.integers(0, 400))
def test_factors_stay_above_zero_and_at_most_one(name: str, num_steps: int, warmup_steps: int) -> None:
    factors = [learning_rate_factor(name, step, num_steps, warmup_steps) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)


@settings(deadline=None)
@given(falling, st.integers(1, 300), st.integers(0, 400))
def test_the_rate_rises_in_equal_parts_to_the_schedules_top_and_then_falls(
    name: str, num_steps: int, warmup_steps: int
) -> None:
    factors = [learning_rate_factor(name, step, num_steps, warmup_steps) for step in range(num_steps)]
    rise, rest = factors[:warmup_steps], factors[warmup_steps:]
    part = 1 / (warmup_steps + 1)
    assert rise == pytest.approx([part * (step + 1) for step in range(len(rise))])
    if rest:
        assert rest[0] == 1.0
        assert rest == sorted(rest, reverse=True)
        assert [1.0, *rise][-1] == pytest.approx(1 - part if rise else 1.0)


@settings(deadline=None)
@given(names, st.integers(1, 300), st.integers(0, 299))
def test_after_the_warm_up_the_schedule_is_that_of_a_run_without(
    name: str, num_steps: int, warmup_steps: int
) -> None:
    warmed = [
        learning_rate_factor(name, step, warmup_steps + num_steps, warmup_steps)
        for step in range(warmup_steps, warmup_steps + num_steps)
    ]
    assert warmed == [SCHEDULES[name](step, num_steps) for step in range(num_steps)]


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 100))
def test_a_run_no_longer_than_its_warm_up_has_the_first_rates_of_a_longer_one(num_steps: int, more: int) -> None:
    warmup_steps = num_steps + more
    short = [learning_rate_factor("cosine", step, num_steps, warmup_steps) for step in range(num_steps)]
    assert short == [learning_rate_factor("cosine", step, 1000, warmup_steps) for step in range(num_steps)]


def test_step_divides_by_ten_at_half_and_at_three_quarters() -> None:
    factors = [stepwise(step, 8) for step in range(8)]
    assert factors == [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert [stepwise(step, 3) for step in range(3)] == [1, 1, 0.1]
    assert stepwise(0, 1) == 1


# ---- loss scale


flags = st.lists(
    st.one_of(
        st.booleans().map(lambda is_finite: [is_finite]),
        st.integers(1, 2 * GROWTH_STEPS).map(lambda count: [True] * count),
        st.integers(1, 30).map(lambda count: [False] * count),
    ),
    max_size=8,
).map(lambda runs: [flag for run in runs for flag in run])


@settings(deadline=None)
@given(flags)
def test_the_scale_keeps_its_bounds_and_depends_on_the_flags_alone(history: list[bool]) -> None:
    one, other = LossScale(), LossScale()
    for is_finite in history:
        before = one.scale
        one.update(is_finite)
        assert 1 <= one.scale <= MAX_SCALE
        assert 0 <= one.good_steps < GROWTH_STEPS
        assert one.scale / before in ((1, 2) if is_finite else (0.5, 1))
    for is_finite in history:
        other.update(is_finite)
    assert one == other


@settings(deadline=None)
@given(flags, flags)
def test_a_resumed_scale_goes_on_as_one_that_never_stopped(before: list[bool], after: list[bool]) -> None:
    whole, first, second = LossScale(), LossScale(), LossScale()
    for is_finite in before:
        first.update(is_finite)
    second.load_state(first.state())
    for is_finite in after:
        second.update(is_finite)
    for is_finite in before + after:
        whole.update(is_finite)
    assert second == whole


def test_the_scale_halves_at_once_and_doubles_after_two_thousand_good_steps_in_a_row() -> None:
    scale = LossScale()
    scale.update(False)
    assert scale.scale == FIRST_SCALE / 2
    for is_finite in [True] * (GROWTH_STEPS - 1) + [False] + [True] * (GROWTH_STEPS - 1):
        scale.update(is_finite)
    assert scale.scale == FIRST_SCALE / 4
    scale.update(True)
    assert scale.scale == FIRST_SCALE / 2


def test_the_scale_reaches_both_of_its_bounds_and_leaves_them_again() -> None:
    scale = LossScale()
    for _ in range(40):
        scale.update(False)
    assert scale.scale == 1
    for _ in range(30 * GROWTH_STEPS):
        scale.update(True)
    assert scale.scale == MAX_SCALE
    scale.update(False)
    assert scale.scale == MAX_SCALE / 2


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"scale": 2.0},
        {"scale": 3.0, "good_steps": 0},
        {"scale": 0.5, "good_steps": 0},
        {"scale": 2 * MAX_SCALE, "good_steps": 0},
        {"scale": float("nan"), "good_steps": 0},
        {"scale": 2.0, "good_steps": -1},
        {"scale": 2.0, "good_steps": GROWTH_STEPS},
    ],
)
def test_a_state_that_no_run_can_have_is_refused(state: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        LossScaleState.model_validate(state)
