"""Examine this machine: is all there that training together needs, and do two ranks really add up?

Owns the checks behind `cxr-hvd doctor`. Every check yields a `Finding`, and every finding that is not in order
names the command that mends it. What a package says of itself is asked in a process of its own, so that one that
crashes on import, or waits for ever, is a finding and not the end of the examination. Asking (`questions`)
is kept apart from judging (`verdicts`, pure functions), so that each verdict can be tested on made-up answers.

Leaves to others: printing and the exit code (`cxr_hvd.cli.app`), mending (`tools/install.sh`).
"""

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from rich.table import Table
from rich.text import Text

from cxr_hvd.doctor import questions, verdicts
from cxr_hvd.doctor.verdicts import Finding

SOURCES = Path(__file__).resolve().parents[2]


def examine(launches: bool = True) -> list[Finding]:
    """Look at everything.

    Args:
        launches: Also start two ranks, twice; this is what takes the time (5 to 15 s).

    Blocking: at most about four minutes, for every question and every launch has its limit.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        answers = dict(
            zip(questions.QUESTIONS, pool.map(questions.ask, questions.QUESTIONS.values()), strict=True)
        )
    mpirun = questions.ask_mpirun()
    findings = [
        verdicts.judge_python(sys.version_info[:3]),
        verdicts.judge_torch(answers["torch"]),
        verdicts.judge_works("torchvision", answers["torchvision"]),
        verdicts.judge_horovod(answers["horovod"]),
        verdicts.judge_mpirun(mpirun),
        verdicts.judge_mpi4py(answers["mpi4py"], mpirun, answers["horovod"]),
        verdicts.judge_h5py(answers["h5py"]),
        verdicts.judge_works("opencv", answers["opencv"]),
        verdicts.judge_libraries(answers["libraries"]),
        verdicts.judge_gpu(answers["torch"], has_driver=Path("/proc/driver/nvidia/version").exists()),
        verdicts.judge_nccl(answers["torch"], answers["horovod"]),
        verdicts.judge_threads(questions.count_cores(), os.environ.get("OMP_NUM_THREADS")),
        verdicts.judge_disk(str(Path.cwd()), shutil.disk_usage(Path.cwd()).free / 1e9),
        verdicts.judge_shm(questions.size_mib(Path("/dev/shm"))),
    ]
    has_horovod = not verdicts.is_missing(answers["horovod"])
    if launches and has_horovod:
        findings += [
            verdicts.judge_launch("two ranks, mpirun", questions.launch(questions.mpirun_command(mpirun))),
            verdicts.judge_launch(
                "two ranks, horovodrun --gloo", questions.launch(questions.horovodrun_command())
            ),
        ]
    return verdicts.fit(findings, (SOURCES / "Makefile").is_file(), has_horovod)


def has_failed(findings: list[Finding]) -> bool:
    """Return whether anything was found that keeps training from running."""
    return any(finding.status == "fail" for finding in findings)


def to_dicts(findings: list[Finding]) -> list[dict[str, str | None]]:
    """Return the findings as JSON can hold them: keys `name`, `status`, `found`, `mend`."""
    return [asdict(finding) for finding in findings]


def render(findings: list[Finding]) -> Table:
    """Return a table for a terminal, with what mends a finding below it."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for column, style in (("status", ""), ("name", "bold"), ("found", "")):
        table.add_column(column, style=style, no_wrap=column != "found", overflow="fold")
    marks = {"ok": Text("ok", "green"), "warn": Text("warn", "yellow"), "fail": Text("FAIL", "red")}
    for finding in findings:
        table.add_row(marks[finding.status], finding.name, finding.found)
        if finding.mend:
            table.add_row("", "", Text.assemble(("mend:", "cyan"), f" {finding.mend}"))
    return table
