"""What each site weighs in an average."""

import math
from collections.abc import Mapping, Sequence

from cxr_hvd.errors import ConfigError


def site_weights(weighting: str, studies_per_site: Sequence[int]) -> list[float]:
    """Return what each site weighs in an average, summing to 1: all alike, or by its training studies."""
    shares = [1] * len(studies_per_site) if weighting == "uniform" else studies_per_site
    return [share / sum(shares) for share in shares]


def read_weights(weights: Mapping[str, float] | None, site_names: Sequence[str]) -> list[float]:
    """Return what each site weighs, summing to 1, in the order of the sites.

    Args:
        weights: from a site's name to a positive number of any scale; None: all alike.

    Raises:
        ConfigError: a site is missing or unknown, or a weight is not positive.
    """
    if weights is None:
        return site_weights("uniform", [1] * len(site_names))
    if set(weights) != set(site_names):
        raise ConfigError(
            f"weights: expected one for each of {', '.join(site_names)}, found {', '.join(weights) or 'none'}"
        )
    for site, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"weights: expected a positive number for {site}, found {weight}")
    total = sum(weights.values())
    return [weights[site] / total for site in site_names]
