"""What a run's state means to its operator: which ranks need help, what to do, and lengths of time in words."""

from collections.abc import Iterable, Mapping, Sequence

from cxr_hvd.monitor.view import RankView, RunView, State


def advice_on(view: RunView) -> list[str]:
    """Say what to do about ranks that failed or fell silent: one line for all to which the same happened."""
    groups: dict[tuple[State, str], dict[str, list[RankView]]] = {}
    for site in view.sites:
        for rank in site.ranks:
            if rank.state in ("failed", "silent"):
                groups.setdefault((rank.state, rank.doing), {}).setdefault(site.name, []).append(rank)
    newest = view.newest_common_step
    resume = (
        "start anew with --resume auto" if newest is None else f"go on from step {newest:,} with --resume auto"
    )
    lines = []
    for (state, doing), ranks_of_site in groups.items():
        who = _say_who(view, ranks_of_site)
        if state == "failed":
            lines.append(f"{who} {doing}; mend that, then {resume}")
        else:
            silent_s = min(rank.for_s or 0.0 for ranks in ranks_of_site.values() for rank in ranks)
            lines.append(
                f"{who} silent for {say_time(silent_s)}, last {doing}: killed, frozen or cut off; look at the "
                f"last line of its output, see that the job has ended, then {resume}"
            )
    return lines


def _say_who(view: RunView, ranks_of_site: Mapping[str, Sequence[RankView]]) -> str:
    num_ranks = sum(len(ranks) for ranks in ranks_of_site.values())
    if 1 < num_ranks == sum(len(site.ranks) for site in view.sites):
        return "all ranks"
    return " and ".join(
        f"{site} {say_ranks(rank.rank_in_site for rank in ranks)}" for site, ranks in ranks_of_site.items()
    )


def say_ranks(ranks: Iterable[int]) -> str:
    """Return `rank 0`, or `ranks 0-3, 5`."""
    numbers = sorted(ranks)
    return f"{'rank' if len(numbers) == 1 else 'ranks'} {say_numbers(numbers)}"


def say_numbers(numbers: Iterable[int]) -> str:
    """Return ascending numbers as `0-3, 5`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)


def say_time(seconds: float) -> str:
    """Return a length of time in its two largest units, such as `3 h 20 min`."""
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes:.0f} min"
    if hours < 48:
        return f"{int(hours)} h {int(minutes) % 60} min"
    return f"{int(hours / 24)} d {int(hours) % 24} h"
