"""The outer optimizer is torch's SGD, with what the average has moved for a gradient."""

import copy

import torch
from torch import nn

from bench.outer import OuterOptimizer, Trial


def test_it_is_sgd_on_what_the_average_has_moved() -> None:
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for trial in (Trial(1e-3), Trial(1e-3, 0.7, 0.9), Trial(1e-3, 1.0, 0.5)):
        networks = [copy.deepcopy(start) for _ in range(2)]
        outer, peer = OuterOptimizer(networks[0], trial), copy.deepcopy(start)
        sgd = torch.optim.SGD(
            peer.parameters(), trial.outer_rate, momentum=trial.momentum, nesterov=trial.momentum > 0
        )
        for _ in range(4):
            for network in networks:
                network(torch.randn(5, 3))  # statistics move, too
                for parameter in network.parameters():
                    parameter.data.add_(torch.randn_like(parameter))
            columns = list(zip(*(network.state_dict().values() for network in networks), strict=True))
            means = [torch.stack([t.double() for t in column]).mean(0).float() for column in columns]
            for tensor, mean in zip(peer.state_dict(keep_vars=True).values(), means, strict=True):
                if isinstance(tensor, nn.Parameter):
                    tensor.grad = tensor.detach() - mean
                else:
                    tensor.copy_(mean)
            sgd.step()
            outer.step(networks)
            for network in networks:
                for name, tensor in network.state_dict().items():
                    torch.testing.assert_close(tensor, peer.state_dict()[name], msg=name)
