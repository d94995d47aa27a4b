"""The examination: ask all questions, judge the answers, and show the findings."""

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.table import Table
from rich.text import Text

from cxr_hvd.doctor import questions, verdicts
from cxr_hvd.doctor.verdicts import Finding

PROJECT = Path(__file__).resolve().parents[2]


def examine(launches: bool = True) -> list[Finding]:
    """Run all checks.

    Args:
        launches: also start ranks, twice, which takes 5 to 15 s; on GPUs once or twice more.

    Blocking: at most about six minutes, since every question and every launch has a time limit.
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
        verdicts.judge_mpirun(mpirun, answers["horovod"], questions.ask_other_launcher()),
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
    has_horovod = not verdicts.is_not_installed(answers["horovod"])
    if launches and has_horovod:
        if not ("error" in mpirun or verdicts.is_without_mpi(answers["horovod"])):
            ranks = questions.launch(questions.mpirun_command(mpirun))
            findings.append(verdicts.judge_launch("two ranks, mpirun", ranks))
        ranks = questions.launch(questions.horovodrun_command())
        findings.append(verdicts.judge_launch("two ranks, horovodrun --gloo", ranks))
        num_gpus = len(answers["torch"].get("gpus", []))
        for num_ranks in verdicts.gpu_launches(num_gpus, bool(answers["horovod"].get("nccl"))):
            launcher = questions.horovodrun_command(num_ranks)
            ranks = questions.launch(launcher, program=questions.GPU_RANKS)
            findings.append(verdicts.judge_gpu_launch(num_ranks, ranks))
    return verdicts.fit_to_installation(findings, (PROJECT / "Makefile").is_file(), has_horovod)


def has_failed(findings: list[Finding]) -> bool:
    """Return whether any finding keeps training from running."""
    return any(finding.status == "fail" for finding in findings)


def to_dicts(findings: list[Finding]) -> list[dict[str, str | None]]:
    """Return the findings for JSON: keys `name`, `status`, `found`, `mend`."""
    return [
        {"name": finding.name, "status": finding.status, "found": finding.detail, "mend": finding.mend}
        for finding in findings
    ]


def render(findings: list[Finding]) -> Table:
    """Return a table for a terminal; the command that mends a finding stands below it."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for column, style in (("status", ""), ("name", "bold"), ("detail", "")):
        table.add_column(column, style=style, no_wrap=column != "detail", overflow="fold")
    marks = {"ok": Text("ok", "green"), "warn": Text("warn", "yellow"), "fail": Text("FAIL", "red")}
    for finding in findings:
        table.add_row(marks[finding.status], finding.name, finding.detail)
        if finding.mend:
            table.add_row("", "", Text.assemble(("mend:", "cyan"), f" {finding.mend}"))
    return table
