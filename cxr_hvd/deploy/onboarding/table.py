"""The results of an onboarding as tables for a terminal."""

from rich.table import Table

from cxr_hvd.console import Console
from cxr_hvd.deploy.onboarding.record import AurocDifference, AurocEstimate, OnboardingRecord
from cxr_hvd.stats.metrics import FREQUENT


def print_onboarding(record: OnboardingRecord, console: Console) -> None:
    """Print what each network is worth on the new hospital's TEST studies, and what follows."""
    if record.best_other is None:
        console.print(
            f"{record.source} came without private blocks: these start fresh, and nothing of the others is judged",
            highlight=False,
            soft_wrap=True,
        )
    console.print(_means(record))
    console.print(_labels(record))
    for sentence in record.advice:
        console.print(sentence, highlight=False, soft_wrap=True)


def _means(record: OnboardingRecord) -> Table:
    title = f"{record.site}: {record.num_test:,} TEST studies of {record.num_patients:,} patients"
    same = f"{record.num_steps:,} steps of {record.batch_size}, {record.num_train:,} training studies"
    table = Table(
        title=f"{title}; {same}",
        title_justify="left",
        caption=f"labels {FREQUENT}: {len(record.labels_of_others)} that the others know, {len(record.labels)} in "
        "all. A label that a network was never trained on counts as 0.5. [95% interval over patients]",
        caption_justify="left",
    )
    table.add_column("network")
    table.add_column("labels of the others", justify="right")
    table.add_column("onboarded − it", justify="right")
    table.add_column("all labels", justify="right")
    table.add_column("onboarded − it", justify="right")
    for judged in record.networks:
        best = ", best of the others on VALIDATE" if judged.network == record.best_other else ""
        name = f"{judged.network}'s as it is{best}" if judged.kind == "other" else judged.network
        table.add_row(
            name,
            estimate(judged.of_others),
            difference(judged.gain_of_others),
            estimate(judged.of_site),
            difference(judged.gain_of_site),
            style="bold" if judged.network == "onboarded" else "",
        )
    return table


def _labels(record: OnboardingRecord) -> Table:
    table = Table(title="AUROC, label by label", title_justify="left")
    table.add_column("label")
    for judged in record.networks:
        table.add_column(judged.network, justify="right")
    for label in record.labels:
        cells = [judged.labels.get(label) for judged in record.networks]
        table.add_row(
            label, *("never trained" if cell is None else estimate(cell, has_interval=False) for cell in cells)
        )
    return table


def estimate(value: AurocEstimate, has_interval: bool = True) -> str:
    """Write an AUROC with its interval."""
    if value.value is None:
        return "undefined"
    interval = f" [{value.low:.3f}, {value.high:.3f}]" if value.low is not None and value.high is not None else ""
    return f"{value.value:.3f}{interval if has_interval else ''}"


def difference(value: AurocDifference | None) -> str:
    """Write a difference with its interval; nothing where there is none."""
    if value is None or value.value is None:
        return ""
    if value.low is None or value.high is None:
        return f"{value.value:+.3f}"
    return f"{value.value:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"
