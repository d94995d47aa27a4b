"""What a new hospital may read out of an onboarding: a rule of thumb from two differences, and no more. Pure.

The two differences are those of the onboarded network to the best of the others' and to the one from nothing, each
with its 95% interval over test patients. An interval that holds 0 decides nothing.
"""

from cxr_hvd.deploy.onboarding.record import AurocDifference, OnboardingRecord

RULE = (
    "These sentences are a rule of thumb: they follow from two differences on these test patients, with one "
    "training of each network. Other seeds, longer trainings and other patients may say otherwise."
)
MORE = "more private blocks (--private) or a joint run (cxr-hvd train with this hospital as a site)"


def advise(record: OnboardingRecord) -> list[str]:
    """Return what the differences say, the rule last."""
    best = record.network(record.best_other or "")
    nothing = record.network("from nothing")
    sentences = []
    if best is not None:
        sentences.append(_beside_best(best.network, best.gain_of_others))
    if nothing is not None:
        over_others = nothing.gain_of_others if best is not None else None
        sentences.append(_beside_nothing(over_others or nothing.gain_of_site))
    only_here = [label for label in record.labels if label not in record.labels_of_others]
    if only_here and best is not None:
        sentences.append(
            f"For {', '.join(only_here)} only networks that were trained here have an answer: none of the others "
            "knew them."
        )
    return [*sentences, RULE]


def _beside_best(name: str, gain: AurocDifference | None) -> str:
    if gain is None or gain.low is None or gain.high is None or gain.value is None:
        return f"Whether onboarding gained over {name}'s network cannot be judged on these studies."
    interval = f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    if gain.low > 0:
        return f"Onboarding paid: it is above {name}'s network as it is by {interval}."
    if gain.high < 0:
        return (
            f"Onboarding cost: {name}'s network as it is, is better ({interval}). Use that one, or give more "
            "training studies or steps."
        )
    return f"Onboarding and {name}'s network as it is cannot be told apart on these patients ({interval})."


def _beside_nothing(gain: AurocDifference | None) -> str:
    if gain is None or gain.low is None or gain.high is None or gain.value is None:
        return "Whether the others' shared blocks help here cannot be judged on these studies."
    interval = f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    if gain.high < 0:
        return (
            f"The others' shared blocks hold this hospital back: from nothing with the same budget is better "
            f"({interval}). Then {MORE} should pay."
        )
    if gain.low > 0:
        return (
            f"The others' shared blocks help: onboarding is above training from nothing by {interval}. A joint "
            "run may add to that, since shared blocks then see this hospital's studies; nothing here measures it."
        )
    return (
        f"Onboarding and training from nothing cannot be told apart on these patients ({interval}): {MORE} may "
        "pay; try them on more test patients."
    )
