"""Plan, sites, contract and averaging without a launcher; the laws that need ranks are in tests/laws."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cxr_hvd.comm.communicator import allgather_text, together
from cxr_hvd.comm.contract import first_difference, flat_items
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import NOT_SAID, Topology, assign
from cxr_hvd.config.schema import PRESETS
from cxr_hvd.errors import ConfigError, DataError
from cxr_hvd.models.build import build_model, tensor_specs
from cxr_hvd.partial.averager import GradientsExchange, WeightsExchange, site_weights
from cxr_hvd.partial.buffers import SharedMean, flatten
from cxr_hvd.partial.plan import Kind, Scope, TensorSpec, build_plan
from cxr_hvd.partial.wire import SHORT_DTYPES, ShortWire

MODEL = build_model("densenet121", 14, seed=0)
SPECS = tensor_specs(MODEL)
BLOCKS = list(dict.fromkeys(spec.block for spec in SPECS))


# ---- the plan


def test_densenet_has_nine_blocks_and_every_tensor_is_in_one() -> None:
    dense = {f"denseblock{n}" for n in range(1, 5)} | {f"transition{n}" for n in range(1, 4)}
    assert set(BLOCKS) == dense | {"stem", "head"}
    assert {spec.name for spec in SPECS} == set(MODEL.state_dict())


def test_experiment_d_keeps_the_first_and_the_last_blocks() -> None:
    plan = build_plan(SPECS, PRESETS["ends"])
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
    plan = build_plan(SPECS, PRESETS["ends"], batchnorm)  # type: ignore[arg-type]
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
    plan = build_plan(SPECS, PRESETS["ends"], every=2)
    told = sum(row.bytes_per_step for row in plan.summary())
    tensors = MODEL.state_dict()
    assert told == sum(tensors[name].nbytes for name in plan.names(Scope.SHARED)) / 2
    parameters = sum(row.num_parameters for row in plan.summary())
    assert parameters == sum(parameter.numel() for parameter in MODEL.parameters())


# ---- sites


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.randoms())
def test_ranks_are_dealt_out_whole(counts: list[int], random: object) -> None:
    sites = {f"site{index}": count for index, count in enumerate(counts)}
    dealt = assign(sites, [NOT_SAID] * sum(counts))
    assert [dealt.count(index) for index in range(len(counts))] == counts
    random.shuffle(dealt)  # type: ignore[attr-defined]
    assert assign(sites, dealt) == dealt
    topologies = [Topology(rank, tuple(sites), tuple(dealt)) for rank in range(len(dealt))]
    assert sum(topology.is_leader for topology in topologies) == 1
    assert sum(topology.is_site_leader for topology in topologies) == len(counts)
    for topology in topologies:
        assert topology.ranks_of_site[topology.rank_in_site] == topology.rank


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([NOT_SAID], "want 3 ranks .a 1, b 2., found 1: start with -np 3, or train one alone with --site a"),
        ([NOT_SAID] * 4, "found 4: start with -np 3"),
        ([0, NOT_SAID, 1], "CXR_SITE is not set on rank 1"),
        ([0, 0, 1], "CXR_SITE deals them out as"),
    ],
)
def test_ranks_that_do_not_fit_are_an_error(said: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        assign({"a": 1, "b": 2}, said)


# ---- contract and texts


def test_a_difference_names_item_sites_and_values() -> None:
    topology = Topology(0, ("north", "south"), (0, 1, 1))
    statements = [{"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "1", "b": "3", "c": "4"}]
    said = first_difference(topology, statements)
    assert said.startswith(
        "the sites differ on b: '2' at site north, rank 0; '3' at site south, rank 1, site south"
    )
    assert "1 more items differ" in said


def test_a_long_difference_shows_where_it_begins() -> None:
    topology = Topology(0, ("north", "south"), (0, 1))
    said = first_difference(topology, [{"a": "x" * 500 + "left"}, {"a": "x" * 500 + "right"}])
    assert "left" in said
    assert "right" in said
    assert len(said) < 300


def test_a_missing_item_is_a_difference() -> None:
    said = first_difference(Topology(0, ("n", "s"), (0, 1)), [{"a": "1"}, {}])
    assert "'nothing' at site s" in said


def test_nested_settings_become_dotted_names() -> None:
    assert flat_items({"a": {"b": 1, "c": [1]}, "d": None}, "config") == {
        "config.a.b": "1",
        "config.a.c": "[1]",
        "config.d": "null",
    }


def test_alone_a_rank_hears_itself_and_its_errors_stay() -> None:
    comm = LocalComm()
    assert allgather_text(comm, "grüß", "test") == ["grüß"]
    assert allgather_text(comm, "", "test") == [""]
    with pytest.raises(DataError, match="own"), together(comm, "testing"):
        raise DataError("own")


# ---- averaging


def test_flat_buffers_are_the_model() -> None:
    model = build_model("densenet121", 14, seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = build_plan(tensor_specs(model), PRESETS["ends"])
    buffers = flatten(model, plan.buffers((Scope.SHARED,)))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert sum(buffer.numel() for buffer in buffers.values()) == sum(
        before[name].numel() for name in plan.names(Scope.SHARED)
    )
    for buffer in buffers.values():
        buffer.fill_(3.0)
    after = model.state_dict()
    assert all(bool((after[name] == 3.0).all()) for name in plan.names(Scope.SHARED))
    assert all(torch.equal(after[name], before[name]) for name in plan.names(Scope.PRIVATE))


def test_alone_averaging_changes_nothing() -> None:
    model = build_model("densenet121", 14, seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = build_plan(tensor_specs(model), ())
    alone = Topology(0, ("alone",), (0,))
    optimizer = torch.optim.SGD(model.parameters())
    WeightsExchange(model, plan, Job(LocalComm(), alone), [1.0]).after_update(0, False, optimizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_site_weights_sum_to_one() -> None:
    assert site_weights("uniform", [1, 99]) == [0.5, 0.5]
    assert site_weights("studies", [1, 3]) == [0.25, 0.75]


# ---- short wires


@pytest.mark.parametrize("dtype", SHORT_DTYPES.values(), ids=SHORT_DTYPES)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_sent_as_it_is_and_never_kept(dtype: torch.dtype, value: float) -> None:
    """Whatever a step brings, all ranks see it, and the rounding errors that are kept stay finite."""
    wire, buffer = ShortWire(LocalComm(), dtype), torch.tensor([value, 0.1, 1.0])
    wire.begin_allreduce("block", buffer, "gradients")()
    assert torch.equal(buffer.isfinite(), torch.tensor([False, True, True]))
    assert torch.equal(buffer[0], torch.tensor(value)) or math.isnan(value)
    assert all(bool(error.isfinite().all()) for error in wire.state().values())
    total = torch.zeros(3)
    for _ in range(2):  # what was kept is sent after the value that was not finite, too
        step = torch.tensor([0.1, 0.1, 1.0])
        wire.begin_allreduce("block", step, "gradients")()
        total += step
    torch.testing.assert_close(total, torch.tensor([0.2, 0.2, 2.0]), rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", SHORT_DTYPES.values(), ids=SHORT_DTYPES)
def test_a_finite_value_never_becomes_infinite_on_a_short_wire(dtype: torch.dtype) -> None:
    """Also where it lies between the short type's largest value and float32's."""
    wire, buffer = ShortWire(LocalComm(), dtype), torch.tensor([torch.finfo(torch.float32).max, -1e5])
    wire.begin_allreduce("block", buffer, "gradients")()
    assert bool(buffer.isfinite().all())
    assert all(bool(error.isfinite().all()) for error in wire.state().values())


@pytest.mark.parametrize("wire", SHORT_DTYPES)
def test_an_infinite_gradient_is_seen_after_the_exchange_and_forgotten_after_it(wire: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    specs = [
        TensorSpec(name, "head", Kind.PARAMETER, tuple(each.shape), "float32")
        for name, each in model.named_parameters()
    ]
    plan = build_plan(specs, (), exchange="gradients", wire=wire)  # type: ignore[arg-type]
    # A job of two sites as its first rank sees it, with a second rank that sends zeros.
    exchange = GradientsExchange(model, plan, Job(LocalComm(), Topology(0, ("a", "b"), (0, 1))), [0.5, 0.5])

    def step(images: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad(set_to_none=True)
        loss = model(images).sum()
        exchange.begin(0, 1)
        loss.backward()  # type: ignore[no-untyped-call]
        exchange.before_update()
        return [each.grad for each in model.parameters() if each.grad is not None]

    assert not all(bool(gradient.isfinite().all()) for gradient in step(torch.full((1, 3), math.inf)))
    assert exchange.nonfinite_blocks() == ["head"]
    assert all(bool(each.isfinite().all()) for each in exchange.state().values())
    assert torch.equal(step(torch.ones(1, 3))[0], torch.full((2, 3), 0.5))


@pytest.mark.parametrize("dtype", SHORT_DTYPES.values(), ids=SHORT_DTYPES)
def test_an_infinite_weight_is_seen_after_a_mean_of_weights(dtype: torch.dtype) -> None:
    buffer = torch.ones(2)
    mean = SharedMean({"block": buffer}, "weights", ShortWire(LocalComm(), dtype))
    buffer[0] = math.inf
    for wait in mean.begin(0.5):
        wait()
    assert buffer.tolist() == [math.inf, 1.0]
    assert all(bool(each.isfinite().all()) for name, each in mean.state().items() if "reference" not in name)
