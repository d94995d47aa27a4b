"""The plan of what a run shares, from its config. Needs no torch."""

from collections.abc import Iterable

from cxr_hvd.config.schema import Config
from cxr_hvd.errors import ConfigError
from cxr_hvd.partial.plan import Scope, SharingPlan, build_plan
from cxr_hvd.partial.tensor_spec import Kind, TensorSpec


def plan_sharing(config: Config, specs: Iterable[TensorSpec]) -> SharingPlan:
    """Build the sharing plan that a config asks for, of the tensors of its network.

    Raises:
        ConfigError: a name or glob matches nothing, or nothing is left to train.
    """
    sharing = config.sharing
    plan = build_plan(
        specs,
        config.private,
        sharing.batchnorm,
        sharing.every,
        sharing.exchange,
        sharing.wire,
        config.moments,
        config.model.freeze,
        sharing.overlap,
    )
    trained = (Scope.SHARED, Scope.PRIVATE)
    if not any(planned.spec.kind is Kind.PARAMETER and planned.scope in trained for planned in plan.tensors):
        raise ConfigError("model.freeze: expected a block that is trained, found all frozen: name fewer blocks")
    return plan
