"""The records of a site's run folder: what training writes there, and what `inspect-run` and others read.

The status of a rank is in `launch.rank_status`, since launchers read it, too. Imports no torch.
"""

from pydantic import Field

from cxr_hvd.config.sections import SiteName
from cxr_hvd.record import Finite, Name, Record, Seconds, Share, Step


class StepRow(Record):
    """One line of `metrics.jsonl`: what a step came to. What was not finite is None.

    Attributes:
        step: number of the step, from 0.
        loss: mean loss of the site leader's rank.
        loss_of_site: mean loss of each site's ranks.
        learning_rate: the rate of this step.
        gradient_norm: of the rank's whole gradient, before clipping.
        is_skipped: whether no rank took the optimizer's step.
        data_s, compute_s, averaging_s: seconds spent in each, on the rank.
        studies_per_s: of all ranks.
    """

    step: Step
    loss: float | None = None
    loss_of_site: dict[SiteName, float | None]
    learning_rate: float
    gradient_norm: float | None = None
    is_skipped: bool
    data_s: Seconds
    compute_s: Seconds
    averaging_s: Seconds
    studies_per_s: Finite


class Verdict(Record):
    """One line of `validation.jsonl`: what one validation came to.

    Attributes:
        step: steps done before it.
        macro_auroc: this site's mean AUROC over defined labels, 0 to 1; None where it has none.
        mean_accuracy: this site's; None where it has no study.
        agreed_auroc: the mean of the sites' AUROCs; None where no site has one.
        is_best: whether none before was better by more than `min_delta`.
        seconds: how long it took.
        auroc_of_site: each site's mean AUROC over defined labels, by the site's name; None where it has none.
        thresholds: from which probability on this site's network says present, by label, chosen on these studies;
            labels on which they cannot tell are left out.
    """

    step: Step
    macro_auroc: Share | None
    mean_accuracy: Share | None
    agreed_auroc: Share | None
    is_best: bool
    seconds: Seconds
    auroc_of_site: dict[SiteName, Share | None] = Field(default_factory=dict)
    thresholds: dict[Name, Finite] = Field(default_factory=dict)


class Budget(Record):
    """How long all ranks train, and what that is for each site.

    Attributes:
        num_steps: steps of the whole run.
        steps_per_epoch: steps of one epoch.
        studies_per_site: training studies, in the order of the config's sites.
        passes_per_epoch: how often a site sees each of its studies in one epoch.
        validation_studies_per_site: studies on which each site judges its network while it trains.
    """

    num_steps: Step
    steps_per_epoch: Step
    studies_per_site: list[int] = Field(default_factory=list)
    passes_per_epoch: list[float] = Field(default_factory=list)
    validation_studies_per_site: list[int] = Field(default_factory=list)


class RunEnvironment(Record):
    """`environment.json`: with what a run trains, and how long.

    Attributes:
        cxr_hvd: version of this program.
        python, machine: version of Python, and architecture.
        threads: torch's threads in a rank.
        packages: version of each package that matters.
        data: digest of each site's study file.
        label_names: what the network's outputs are, in order.
        weights: digest of the tensors that the network started from; empty where they were fresh.
        weights_of_run: whether they were those of the site's own earlier run.
        weights_trained_labels: labels whose outputs they had learnt.
        budget: how long all ranks train.
    """

    cxr_hvd: str = ""
    python: str = ""
    machine: str = ""
    threads: int | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    data: dict[str, str] = Field(default_factory=dict)
    label_names: list[str] = Field(default_factory=list)
    weights: str = ""
    weights_of_run: bool = False
    weights_trained_labels: list[str] = Field(default_factory=list)
    budget: Budget
