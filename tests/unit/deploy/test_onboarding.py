"""What a hospital that joins later trains: exactly the private tensors, whatever the others kept to themselves."""

from pathlib import Path

import pytest
import torch

from cxr_hvd.config.file import parse_config
from cxr_hvd.deploy.onboarding.advice import RULE, advise
from cxr_hvd.deploy.onboarding.config import Budget, divide, from_nothing_tree, onboarding_tree
from cxr_hvd.deploy.onboarding.record import AurocDifference, AurocEstimate, JudgedNetwork, OnboardingRecord
from cxr_hvd.deploy.onboarding.source import Source
from cxr_hvd.errors import UsageError
from cxr_hvd.models.statistics import measure_statistics
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import Scope
from cxr_hvd.partial.tensor_spec import Kind
from cxr_hvd.training.sharing import plan_sharing
from tests.helpers.networks import noise, tiny_network


def source_of(**sharing: object) -> Source:
    """Return a tiny network that two sites trained with this section `sharing`."""
    tree = {"experiment": "D", "sites": {"north": {"data": "n.h5"}, "south": {"data": "s.h5"}}, "sharing": sharing}
    config = parse_config({**tree, "model": {"name": "tiny", "image_size": 32}}, "test")
    network = tiny_network()
    specs = tuple(tensor_specs(network.model))
    scopes = (Scope.PRIVATE, Scope.LOCAL)
    planned = [tensor for tensor in plan_sharing(config, specs).tensors if tensor.scope in scopes]
    private = frozenset(tensor.spec.name for tensor in planned if tensor.spec.kind is not Kind.COUNTER)
    return Source(Path("runs/D"), {"north": network}, network, specs, private, config)


@pytest.mark.parametrize("private", ["ends", "norms", "head", "stem+head", ["*.norm5.weight", "transition1"]])
@pytest.mark.parametrize("batchnorm", ["with-block", "private", "shared"])
@pytest.mark.parametrize("more", [(), ("denseblock2",)])
def test_the_plan_trains_what_was_private_and_freezes_the_rest(
    private: str | list[str], batchnorm: str, more: tuple[str, ...]
) -> None:
    """Parameters as the others kept them; statistics only where a norm's weights are trained, too."""
    source = source_of(private=private, batchnorm=batchnorm)
    tree = onboarding_tree(source, divide(source, more), "third", Path("t.h5"), 100, Budget(steps=7), Path("run"))
    plan = plan_sharing(parse_config(tree, "test"), source.specs)
    for planned in plan.tensors:
        spec, is_trained = planned.spec, planned.scope is Scope.PRIVATE
        is_chosen = spec.name in source.private or spec.block in more
        if spec.kind is Kind.PARAMETER:
            assert is_trained is is_chosen, spec.name
        elif spec.kind is Kind.STATISTIC:
            assert is_chosen or not is_trained, spec.name
        assert planned.scope is not Scope.SHARED
    fresh = parse_config(from_nothing_tree(tree), "test")
    assert (fresh.experiment, fresh.model.freeze, fresh.model.weights) == ("A", [], None)
    assert fresh.training == parse_config(tree, "test").training and fresh.training.max_steps == 7


def test_private_statistics_of_shared_norms_are_measured_and_nothing_else() -> None:
    division = divide(source_of(private="ends", batchnorm="private"))
    assert division.frozen == ("transition1", "denseblock2", "transition2", "denseblock3", "transition3")
    assert not divide(source_of(private="ends")).statistics
    model = tiny_network().model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = noise(8)
    measure_statistics(model, division.statistics, [images, images])
    for name, tensor in model.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(tensor, before[name]) is (name not in division.statistics), name
    first = next(name for name in before if name in division.statistics and name.endswith("running_mean"))
    seen: list[torch.Tensor] = []
    norm = model.get_submodule(first.removesuffix(".running_mean"))
    norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(images)
    torch.testing.assert_close(model.state_dict()[first], seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_all_or_nothing_private_is_refused() -> None:
    with pytest.raises(UsageError, match="private blocks, found none"):
        divide(source_of(private="none"))
    assert divide(source_of(private="none"), ["head"]).trained == ("head",)
    with pytest.raises(UsageError, match="shared blocks, found none"):
        divide(source_of(private="all"))


def record_with(over_best: tuple[float, float], over_nothing: tuple[float, float]) -> OnboardingRecord:
    def judged(name: str, kind: str, bounds: tuple[float, float]) -> JudgedNetwork:
        value = sum(bounds) / 2
        gain = AurocDifference(value=value, low=bounds[0], high=bounds[1], p_value=0.5)
        auroc = AurocEstimate(value=0.7, low=0.6, high=0.8)
        network = {"network": name, "kind": kind, "step": 1, "untrained": [], "validation": 0.7, "labels": {}}
        values = {"of_others": auroc, "of_site": auroc, "gain_of_others": gain, "gain_of_site": gain}
        return JudgedNetwork.model_validate({**network, **values})

    counts = dict.fromkeys(("num_steps", "batch_size", "seed", "num_train", "num_validate", "num_test"), 1)
    return OnboardingRecord(
        **counts,
        source="runs/D",
        others=["north", "south"],
        site="third",
        trained=["head"],
        frozen=["stem"],
        learning_rate=0.1,
        num_patients=1,
        labels=["Edema"],
        labels_of_others=["Edema"],
        best_other="north",
        networks=[judged("north", "other", over_best), judged("from nothing", "from nothing", over_nothing)],
    )


def test_advice_follows_from_the_two_intervals_and_says_that_it_is_a_rule_of_thumb() -> None:
    above, apart_not, below = (0.01, 0.03), (-0.01, 0.03), (-0.03, -0.01)
    words_best = {above: "Onboarding paid", apart_not: "cannot be told apart", below: "Onboarding cost"}
    words_nothing = {
        above: "shared blocks help",
        apart_not: "cannot be told apart",
        below: "hold this hospital back",
    }
    for over_best, best in words_best.items():
        for over_nothing, nothing in words_nothing.items():
            first, second, rule = advise(record_with(over_best, over_nothing))
            assert best in first and nothing in second and rule == RULE
            assert ("more private blocks" in second) is (over_nothing != above)
