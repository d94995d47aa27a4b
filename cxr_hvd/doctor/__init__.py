"""Check whether this machine can train: packages, MPI, GPU, disk, and a real sum over two ranks.

The package behind `cxr-hvd doctor`. Every check yields a `Finding`; a finding that is not in order names the
command that mends it. Other processes examine the packages, so a crash or a hang at import is a finding.
`questions` asks, `verdicts` judges the answers (pure functions), `examination` does both for the whole machine.

Leaves to others: printing and the exit code (`cxr_hvd.cli.monitor`), mending (`tools/install.sh`).
"""

from cxr_hvd.doctor.examination import examine, has_failed, render, to_dicts
from cxr_hvd.doctor.verdicts import Finding

__all__ = ["Finding", "examine", "has_failed", "render", "to_dicts"]
