"""A profile records the steps that it should, says where all of their time went, and leaves the rest alone."""

import gzip
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn
from torch.profiler import record_function

from cxr_hvd.errors import CheckpointError
from cxr_hvd.training.profiling import Profile
from cxr_hvd.training.spending import (
    OTHER,
    PARTS,
    Operator,
    Span,
    Spending,
    operator_table,
    split,
    sum_up,
)

# ---- a recording


def take_step(model: nn.Module, step: int) -> None:
    """Take a step with the engine's marks and one that names it; averaging begins during backward."""
    with record_function(f"mark-{step}"):
        with record_function("data"):
            time.sleep(0.01)
            images = torch.rand(4, 1, 16, 16)
        with record_function("forward"):
            loss = model(images).sum()
        with record_function("backward"):
            loss.backward()
            with record_function("exchange"):
                time.sleep(0.02)
        with record_function("update"):
            torch.optim.SGD(model.parameters(), lr=0.1).step()
        with record_function("status"):
            pass
        with record_function("checkpoint"):
            pass


def run(profile: Profile, num_steps: int) -> Profile:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 3))
    with profile:
        for step in range(num_steps):
            take_step(model, step)
            profile.step()
        take_step(model, num_steps)  # what the job does once its steps are over
    return profile


def events_of(profile: Profile) -> list[dict[str, Any]]:
    with gzip.open(profile.trace, "rt", encoding="utf-8") as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    return events


def marks_of(profile: Profile) -> set[int]:
    """Return the steps that are in the trace."""
    names = {str(event.get("name")) for event in events_of(profile)}
    return {int(name.removeprefix("mark-")) for name in names if name.startswith("mark-")}


def said(profile: Profile) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(profile.summary())
    return capture.get()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return run(Profile(tmp_path_factory.mktemp("run") / "profile", 3, first_step=100, num_steps=4, wait=2), 9)


def test_the_steps_of_the_window_are_recorded_and_no_other(whole: Profile) -> None:
    assert marks_of(whole) == {2, 3, 4, 5}
    assert whole.spending is not None and whole.spending.num_steps == 4


def test_the_trace_has_every_part_in_every_step(whole: Profile) -> None:
    assert whole.trace.name == "trace-rank3.json.gz"
    names = [event.get("name") for event in events_of(whole) if event.get("cat") == "user_annotation"]
    assert {part: names.count(part) for part in PARTS} == dict.fromkeys(PARTS, 4)


def test_the_parts_of_a_step_add_up_to_it(whole: Profile) -> None:
    spent = whole.spending
    assert spent is not None
    assert list(spent.part_us) == [*PARTS, OTHER]
    assert sum(spent.part_us.values()) == pytest.approx(spent.total_us)
    assert all(part_us >= 0 for part_us in spent.part_us.values())
    assert spent.part_us["data"] >= 4 * 10_000
    assert spent.part_us["exchange"] >= 4 * 20_000


def test_operators_are_counted_without_what_they_call(whole: Profile) -> None:
    spent = whole.spending
    assert spent is not None
    calls = {operator.name: operator.num_calls for operator in spent.operators}
    assert calls["aten::conv2d"] == calls["aten::linear"] == calls["aten::convolution_backward"] == 4
    assert not set(PARTS) & set(calls)
    operators_us = sum(each.cpu_us for each in spent.operators if not each.name.startswith("mark-"))
    assert 0 < operators_us < spent.total_us - spent.part_us["exchange"]


def test_the_tables_say_what_was_recorded(whole: Profile) -> None:
    text = said(whole)
    assert "Where steps 103 to 106 of rank 3 went" in text
    assert "averaging" in text and "aten::" in text and "memory at most" in text
    shares = [float(row.split("│")[3].strip(" %")) for row in text.splitlines() if row.count("│") == 4]
    assert sum(shares[: len(PARTS) + 1]) == pytest.approx(100, abs=0.5)
    written = whole.trace.with_name("profile-rank3.txt").read_text()
    assert written.splitlines()[:12] == text.splitlines()[:12]
    assert {path.name for path in whole.trace.parent.iterdir()} == {whole.trace.name, "profile-rank3.txt"}


# ---- runs that end early


def test_a_run_that_ends_in_the_window_leaves_what_was_recorded(tmp_path: Path) -> None:
    profile = run(Profile(tmp_path, 0, first_step=0, num_steps=10, wait=1), 3)
    assert profile.spending is not None and profile.spending.num_steps == 2
    assert sum(profile.spending.part_us.values()) == pytest.approx(profile.spending.total_us)
    counted = {operator.name for operator in profile.spending.operators if operator.name.startswith("mark-")}
    assert counted == {"mark-1", "mark-2"}  # the trace has what came after, too: the tables have not
    assert "Where steps 2 to 3 of rank 0 went" in said(profile)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3])
def test_a_run_that_ends_before_the_window_leaves_no_trace(tmp_path: Path, num_steps: int) -> None:
    profile = run(Profile(tmp_path, 0, first_step=0, num_steps=5, wait=3), num_steps)
    assert profile.spending is None
    assert "the run ended before step 4 was over" in said(profile)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 9])
def test_an_error_goes_through_and_leaves_no_profiler_behind(tmp_path: Path, num_steps: int) -> None:
    profile = Profile(tmp_path, 0, first_step=0, num_steps=2, wait=1)
    with pytest.raises(ZeroDivisionError), profile:
        for _ in range(num_steps):
            profile.step()
        raise ZeroDivisionError
    assert not torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
    assert profile.trace.exists() == (num_steps >= 3)
    assert marks_of(run(Profile(tmp_path / "next", 0, first_step=0, num_steps=1, wait=1), 3)) == {1}


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write the profile of rank 0"):
        run(Profile(tmp_path / "file", 0, first_step=0, num_steps=1, wait=1), 3)


# ---- the sums


def event(name: str, start_us: float, end_us: float, cpu_us: float = 0, gpu_us: float = 0, on: str = "CPU") -> Any:
    """Return what is read of one of torch's events."""
    return SimpleNamespace(
        name=name,
        device_type=SimpleNamespace(name=on),
        time_range=SimpleNamespace(start=start_us, end=end_us),
        self_cpu_time_total=cpu_us,
        self_device_time_total=gpu_us,
    )


EVENTS = [
    event("ProfilerStep*", 0, 100),
    event("forward", 10, 40),
    event("aten::conv2d", 12, 30, cpu_us=3, gpu_us=20),
    event("kernel", 15, 35, gpu_us=20, on="CUDA"),
    event("forward", 15, 35, on="CUDA"),
    event("backward", 40, 90),
    event("exchange", 50, 60),
    event("ProfilerStep*", 105, 205),
    event("aten::conv2d", 110, 120, cpu_us=4, gpu_us=9),
    event("data", 190, 205),
    event("ProfilerStep*", 210, 211),
    event("aten::conv2d", 210, 211, cpu_us=1, gpu_us=1),
]


@settings(deadline=None)
@given(st.permutations(EVENTS))
def test_whole_steps_are_summed_whatever_the_order_of_events(events: list[Any]) -> None:
    assert sum_up(events, 2) == Spending(
        num_steps=2,
        total_us=200,
        part_us=dict.fromkeys(PARTS, 0.0)
        | {"data": 15, "forward": 30, "backward": 40, "exchange": 10, OTHER: 105},
        operators=[Operator("aten::conv2d", num_calls=2, cpu_us=7, gpu_us=29)],
    )


def test_a_recording_without_a_step_has_no_sum() -> None:
    assert sum_up([], 3) is None
    assert sum_up(EVENTS[1:7], 3) is None


def test_operators_are_ranked_on_the_gpu_where_there_is_one() -> None:
    for gpu_us, expected in (((1.0, 2.0), ["b", "a"]), ((0.0, 0.0), ["a", "b"])):
        operators = [Operator("a", 2, 9.0, gpu_us[0]), Operator("b", 2, 8.0, gpu_us[1])]
        table = operator_table(Spending(2, 100.0, {}, operators))
        assert list(table.columns[0].cells) == expected


@pytest.mark.parametrize("gpu_us", [0.0, 1.0])
def test_a_profile_on_a_gpu_says_that_the_timeline_takes_time_from_nccl(gpu_us: float, tmp_path: Path) -> None:
    profile = Profile(tmp_path, 0, 0)
    profile.spending = Spending(2, 100.0, dict.fromkeys(PARTS, 0.0), [Operator("a", 2, 9.0, gpu_us)])
    assert ("NCCL wait for the processor" in said(profile).replace("\n", " ")) == bool(gpu_us)


moments = st.tuples(st.sampled_from(sorted(PARTS)), st.integers(0, 50), st.integers(0, 50))


@settings(deadline=None)
@given(st.lists(moments, max_size=12))
def test_each_moment_counts_once(drawn: list[tuple[str, int, int]]) -> None:
    spans = [Span(name, min(start, end), max(start, end)) for name, start, end in drawn]
    covered = {moment for span in spans for moment in range(int(span.start_us), int(span.end_us))}
    nested = all(
        a.end_us <= b.start_us or b.end_us <= a.end_us for a in spans for b in spans if a.start_us <= b.start_us
    )
    if nested:
        assert sum(split(spans).values()) == len(covered)


def test_the_innermost_part_gets_the_time() -> None:
    spans = [Span("exchange", 4, 6), Span("backward", 2, 10), Span("status", 5, 6), Span("forward", 0, 2)]
    part_us = split(spans)
    assert {name: us for name, us in part_us.items() if us} == {
        "forward": 2, "backward": 6, "exchange": 1, "status": 1,
    }  # fmt: skip
    across = split([Span("backward", 0, 10), Span("exchange", 8, 14)])
    assert (across["backward"], across["exchange"]) == (8, 6)
