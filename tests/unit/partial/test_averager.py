"""Flat buffers and averaging without a launcher; the laws that need ranks are in tests/laws."""

import torch

from cxr_hvd.comm.job import Job
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology
from cxr_hvd.config.sections import Model
from cxr_hvd.models.build import build_model
from cxr_hvd.partial.averager import PartialAverager
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.buffers import flatten
from cxr_hvd.partial.plan import Scope, build_plan
from cxr_hvd.partial.weighting import site_weights


def test_flat_buffers_are_the_model() -> None:
    model = build_model(Model(), 14, seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = build_plan(tensor_specs(model), "ends")
    flat = flatten(model, plan.buffers((Scope.SHARED,)))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    num_shared = sum(before[name].numel() for name in plan.names(Scope.SHARED))
    assert flat.values.numel() == sum(flat.parts.values()) == num_shared
    flat.values.fill_(3.0)
    after = model.state_dict()
    assert all(bool((after[name] == 3.0).all()) for name in plan.names(Scope.SHARED))
    assert all(torch.equal(after[name], before[name]) for name in plan.names(Scope.PRIVATE))


def test_alone_averaging_changes_nothing() -> None:
    model = build_model(Model(), 14, seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = build_plan(tensor_specs(model), ())
    alone = Topology(0, ("alone",), (0,))
    optimizer = torch.optim.SGD(model.parameters())
    PartialAverager.of_plan(model, optimizer, Job(LocalComm(), alone), plan, [1.0]).average()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_site_weights_sum_to_one() -> None:
    assert site_weights("uniform", [1, 99]) == [0.5, 0.5]
    assert site_weights("studies", [1, 3]) == [0.25, 0.75]
