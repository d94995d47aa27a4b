"""The plan of what a run shares, from its config. Needs no torch."""

from collections.abc import Iterable

from cxr_hvd.config.schema import Config
from cxr_hvd.partial.plan import SharingPlan, TensorSpec, build_plan


def plan_sharing(config: Config, specs: Iterable[TensorSpec]) -> SharingPlan:
    """Build the sharing plan that a config asks for, of the tensors of its network."""
    sharing = config.sharing
    return build_plan(
        specs,
        config.private,
        sharing.batchnorm,
        sharing.every,
        sharing.exchange,
        sharing.wire,
        config.moments,
    )
