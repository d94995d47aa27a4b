"""Compare networks on one hospital's TEST studies: AUROCs and differences, with intervals over its patients.

One set of draws of patients serves all networks and labels, so that what two networks share cancels in their
difference. Each network is one training: what another seed would change is in no interval here. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cxr_hvd.deploy.onboarding.record import AurocDifference, AurocEstimate, JudgedNetwork
from cxr_hvd.deploy.onboarding.scores import JudgedStudies, ScoredNetwork
from cxr_hvd.stats.bootstrap import Draws, draw, interval_of, resampled
from cxr_hvd.stats.intervals import components_difference
from cxr_hvd.stats.metrics import MIN_OF_CLASS, why_no_label
from cxr_hvd.stats.sample import Floats
from cxr_hvd.stats.weighted import Auroc, columns_with
from cxr_hvd.study.layout import Split

ONBOARDED, NOTHING = "onboarded", "from nothing"


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Attributes:
        labels: with enough present and absent TEST studies.
        labels_of_others: those of them that one of the others' networks was trained on.
        best_other: the best of the others' networks on VALIDATE studies; None where there is none.
        networks: in the order that they came in.
    """

    labels: list[str]
    labels_of_others: list[str]
    best_other: str | None
    networks: list[JudgedNetwork]


def compare_networks(networks: Sequence[ScoredNetwork], studies: JudgedStudies, num_resamples: int) -> Compared:
    """Judge networks on TEST studies; the one called `onboarded` against all others."""
    names, test = studies.label_names, studies.samples[Split.TEST]
    columns = columns_with(test, MIN_OF_CLASS)
    known = frozenset().union(*(network.trained_labels for network in networks if network.kind == "other"))
    has_others = any(network.kind == "other" for network in networks)
    columns_of_others = tuple(column for column in columns if names[column] in known or not has_others)
    draws = draw(test.patients_N, num_seeds=1, num_resamples=num_resamples)

    def table(network: ScoredNetwork, chosen: tuple[int, ...]) -> Floats:
        return resampled(Auroc(test, chosen), network.scores[Split.TEST][None], draws)

    means = {
        network.name: (table(network, columns_of_others), table(network, columns))
        for network in networks
        if columns
    }
    judged = []
    for network in networks:
        labels = {
            names[column]: _estimate(table(network, (column,)), draws)
            for column in columns
            if names[column] in network.trained_labels
        }
        of_others, of_site = means.get(network.name, (np.empty((0, 0)), np.empty((0, 0))))
        versus = means.get(ONBOARDED) if network.name != ONBOARDED else None
        judged.append(
            JudgedNetwork(
                network=network.name,
                kind=network.kind,  # type: ignore[arg-type]
                step=network.step,
                untrained=[names[column] for column in columns if names[column] not in network.trained_labels],
                validation=_validation(network, studies, known),
                of_others=_estimate(of_others, draws, bool(columns_of_others)),
                of_site=_estimate(of_site, draws, bool(columns)),
                labels=labels,
                gain_of_others=_difference(versus[0], of_others) if versus and columns_of_others else None,
                gain_of_site=_difference(versus[1], of_site) if versus else None,
            )
        )
    return Compared(
        [names[column] for column in columns],
        [names[column] for column in columns_of_others],
        _best_other(judged),
        judged,
    )


def _best_other(judged: Sequence[JudgedNetwork]) -> str | None:
    others = [network for network in judged if network.kind == "other"]
    return max(others, key=lambda network: network.validation or 0.0).network if others else None


def _validation(network: ScoredNetwork, studies: JudgedStudies, known: frozenset[str]) -> float | None:
    """Return the mean AUROC on VALIDATE studies over the labels with both classes that the others know."""
    if network.kind != "other":
        return None
    sample = studies.samples[Split.VALIDATE]
    frequent = columns_with(sample, MIN_OF_CLASS) or columns_with(sample)
    columns = tuple(column for column in frequent if not known or studies.label_names[column] in known)
    if not columns:
        return None
    once = np.ones((1, len(sample.targets_NL)))
    value = float(Auroc(sample, columns)(network.scores[Split.VALIDATE], once)[0])
    return value if np.isfinite(value) else None


def _estimate(table_SB: Floats, draws: Draws, has_labels: bool = True) -> AurocEstimate:
    if not has_labels:
        return AurocEstimate(value=None, low=None, high=None, note=why_no_label(1, MIN_OF_CLASS))
    interval = interval_of(table_SB, draws)
    return AurocEstimate(value=interval.value, low=interval.low, high=interval.high, note=interval.note)


def _difference(table_a_SB: Floats, table_b_SB: Floats) -> AurocDifference:
    of_pair = components_difference(table_a_SB, table_b_SB)
    return AurocDifference(
        value=of_pair.value, low=of_pair.low, high=of_pair.high, p_value=of_pair.p_value, note=of_pair.note
    )
