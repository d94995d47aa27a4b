"""Blocks that a run does not train (`model.freeze`): no gradient, no moments, no change of statistics.

What is frozen says the plan, since frozen tensors do not travel either.
"""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from cxr_hvd.partial.plan import Scope, SharingPlan
from cxr_hvd.partial.tensor_spec import Kind


def freeze(model: nn.Module, plan: SharingPlan) -> None:
    """Take the gradient from all parameters that the plan has frozen."""
    parameters = dict(model.named_parameters())
    for planned in plan.tensors:
        if planned.spec.kind is Kind.PARAMETER and planned.scope in (Scope.FROZEN, Scope.LOCAL):
            parameters[planned.spec.name].requires_grad_(False)


def frozen_norms(model: nn.Module, plan: SharingPlan) -> list[nn.Module]:
    """Return the norms that keep their running statistics: those that are frozen, or whose parameters all are.

    They are to stay in evaluation mode while the rest of the model trains.
    """
    still = {
        planned.spec.name
        for planned in plan.tensors
        if planned.spec.kind is Kind.STATISTIC and planned.scope in (Scope.FROZEN, Scope.LOCAL)
    }

    def is_frozen(path: str, norm: nn.Module) -> bool:
        parameters = list(norm.parameters(recurse=False))
        has_frozen_statistics = any(f"{path}.{name}" in still for name, _ in norm.named_buffers(recurse=False))
        return has_frozen_statistics or (bool(parameters) and not any(p.requires_grad for p in parameters))

    return [
        module
        for path, module in model.named_modules()
        if isinstance(module, _NormBase) and is_frozen(path, module)
    ]
