"""The plan: which tensors are shared, private and local; which patterns choose them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_hvd.config.sections import Model
from cxr_hvd.errors import ConfigError
from cxr_hvd.models.build import build_model
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.fragments import MAX_DELAY
from cxr_hvd.partial.plan import Scope, build_plan
from cxr_hvd.partial.tensor_spec import Kind, TensorSpec

MODEL = build_model(Model(), 14, seed=0)
SPECS = tensor_specs(MODEL)
BLOCKS = list(dict.fromkeys(spec.block for spec in SPECS))


def test_densenet_has_nine_blocks_and_every_tensor_is_in_one() -> None:
    dense = {f"denseblock{n}" for n in range(1, 5)} | {f"transition{n}" for n in range(1, 4)}
    assert set(BLOCKS) == dense | {"stem", "head"}
    assert {spec.name for spec in SPECS} == set(MODEL.state_dict())


def test_experiment_d_keeps_the_first_and_the_last_blocks() -> None:
    plan = build_plan(SPECS, "ends")
    private = {planned.spec.block for planned in plan.tensors if planned.scope is Scope.PRIVATE}
    assert private == {"stem", "denseblock1", "denseblock4", "head"}
    assert "features.conv0.weight" in plan.names(Scope.PRIVATE)
    assert "features.norm5.running_mean" in plan.names(Scope.PRIVATE)
    assert "features.transition2.norm.running_var" in plan.names(Scope.SHARED)


@given(st.lists(st.sampled_from(BLOCKS), unique=True), st.sampled_from(["with-block", "private", "shared"]))
def test_every_tensor_has_one_scope(private: list[str], batchnorm: str) -> None:
    plan = build_plan(SPECS, private, batchnorm)  # type: ignore[arg-type]
    names = [name for scope in Scope for name in plan.names(scope)]
    assert sorted(names) == sorted(spec.name for spec in SPECS)
    counters = {spec.name for spec in SPECS if spec.kind is Kind.COUNTER}
    assert set(plan.names(Scope.LOCAL)) == counters


@pytest.mark.parametrize(("batchnorm", "scope"), [("private", Scope.PRIVATE), ("shared", Scope.SHARED)])
def test_batchnorm_statistics_follow_their_policy(batchnorm: str, scope: Scope) -> None:
    plan = build_plan(SPECS, "ends", batchnorm)  # type: ignore[arg-type]
    statistics = {spec.name for spec in SPECS if spec.kind is Kind.STATISTIC}
    assert statistics <= set(plan.names(scope))


def test_globs_choose_tensors_and_blocks() -> None:
    plan = build_plan(SPECS, ["*.norm*", "transition?"])
    private = set(plan.names(Scope.PRIVATE))
    assert "features.denseblock2.denselayer1.norm1.weight" in private
    assert "features.transition1.conv.weight" in private
    assert "features.denseblock2.denselayer1.conv1.weight" not in private


@pytest.mark.parametrize(
    ("pattern", "hint"), [("denseblok4", "did you mean 'denseblock4'"), ("layer9*", "blocks: stem")]
)
def test_a_pattern_that_matches_nothing_is_an_error(pattern: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="matches no block and no tensor") as caught:
        build_plan(SPECS, ["head", pattern])
    assert hint in str(caught.value)


def test_the_bytes_of_the_plan_are_those_of_its_shared_tensors() -> None:
    plan = build_plan(SPECS, "ends", every=2)
    told = sum(row.bytes_per_step for row in plan.summary())
    tensors = MODEL.state_dict()
    assert told == sum(tensors[name].nbytes for name in plan.names(Scope.SHARED)) / 2
    parameters = sum(row.num_parameters for row in plan.summary())
    assert parameters == sum(parameter.numel() for parameter in MODEL.parameters())


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30), st.integers(1, 40))
def test_fragments_of_an_overlapped_average_hold_every_shared_number_once(sizes: list[int], every: int) -> None:
    """And each is done before the next begins, and all within `every` steps; they are about alike in size."""
    specs = [TensorSpec(f"t{i}", f"b{i // 3}", Kind.PARAMETER, (size,), "float32") for i, size in enumerate(sizes)]
    plan, waiting = (build_plan(specs, (), every=every, overlap=overlap) for overlap in (True, False))
    assert 1 <= plan.delay <= MAX_DELAY
    assert plan.num_fragments * plan.delay <= every
    buffers = plan.buffers((Scope.SHARED,))
    assert [spec for buffer in buffers for spec in buffer.specs] == specs
    fragments = [buffer.fragment for buffer in buffers]
    assert fragments == sorted(fragments)
    assert max(fragments) < plan.num_fragments
    assert plan.bytes_per_exchange() == waiting.bytes_per_exchange()
    assert len({buffer.name for buffer in buffers}) == len(buffers)
    for number in range(plan.num_fragments):
        size = sum(buffer.num_elements for buffer in buffers if buffer.fragment == number)
        assert size <= sum(sizes) / plan.num_fragments + max(sizes)


def test_an_overlapped_plan_says_when_what_travels() -> None:
    specs = [TensorSpec(f"t{i}", "head", Kind.PARAMETER, (10,), "float32") for i in range(8)]
    words = str(build_plan(specs, (), every=8, overlap=True))
    assert "weights every 8 steps, one of 4 fragments every 2 steps while training goes on" in words
    assert ", taken in 2 steps later" in words
    assert "in one fragment every step" in str(build_plan(specs, (), overlap=True))
