"""`cxr-hvd` with a fault: `python -m tests.helpers.faulty_training RANK FAULT STEP VERB ...`, under a launcher.

What happens to one rank, in or after the step of this number (from 0): `kill`, `freeze` (SIGSTOP), `stall` (its
own work never ends), `raise`, `fill-memory` (a GPU's), `nan` (its images), `signal` (SIGUSR1), `orphan` (no more
than a note of its pid), `truncate` and `unlink` (its study file). While the checkpoint of this many steps is
written: `kill-copied`, `kill-writing`, `kill-written`, `kill-renamed`, `kill-linked`. In evaluation, at this
batch: `kill-judging`. `none` does nothing.

Every rank leaves its pid in the folder PIDS of the environment, so that tests can see that it has gone.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cxr_hvd.cli import app as cli
from cxr_hvd.training import validation
from cxr_hvd.training.checkpoint import writer
from cxr_hvd.training.engine import Engine

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("HOROVOD_RANK", "0"))


def kill(*_: Any, **__: Any) -> None:
    Path(os.environ["PIDS"]).with_name("killed").write_text(str(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, is_time: Callable[..., bool], fault: Callable[..., None]) -> None:
    """Have the fault happen before a function is called, when it is time."""
    original = getattr(owner, name)

    def changed(*arguments: Any, **named: Any) -> Any:
        if is_time(*arguments, **named):
            fault(*arguments, **named)
        return original(*arguments, **named)

    setattr(owner, name, changed)


def stall(*_: Any) -> None:
    time.sleep(10_000)


def freeze(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def fail(*_: Any) -> None:
    raise RuntimeError("a defect of the program")


def fill_memory(*_: Any) -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which "
        "78.44 MiB is free. Including non-PyTorch memory, this process has 79.02 GiB memory in use."
    )


def poison(engine: Engine, batch: Any, *_: Any) -> None:
    batch.images[:, 0] = float("nan")  # not in channels without an image: their memory is used again


def ask(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def truncate(*_: Any) -> None:
    path = Path(os.environ["STUDY_FILE"])
    os.truncate(path, path.stat().st_size // 2)


def unlink(*_: Any) -> None:
    Path(os.environ["STUDY_FILE"]).unlink()


IN_STEP = {
    "kill": kill, "stall": stall, "freeze": freeze, "raise": fail, "fill-memory": fill_memory, "nan": poison,
    "signal": ask, "truncate": truncate, "unlink": unlink,
}  # fmt: skip


def put_in(fault: str, step: int) -> None:
    """Change the program on this rank."""
    if fault in IN_STEP:
        before(Engine, "train_step", lambda engine, batch, at, *_: at == step, IN_STEP[fault])
    elif fault == "kill-copied":
        before(writer, "write_files", lambda beside, *_: f"step-{step}." in beside.name, kill)
    elif fault == "kill-writing":
        files = iter(range(1_000))
        before(writer, "sync", lambda path: f"step-{step}." in path.parent.name and next(files) == 1, kill)
    elif fault == "kill-written":
        before(writer, "finish_folder", lambda path: path.name == f"step-{step}", kill)
    elif fault == "kill-renamed":
        before(writer, "point_link", lambda link, target: target.name == f"step-{step}", kill)
    elif fault == "kill-linked":
        is_linked = lambda own: (own._folder.checkpoints / "latest").readlink().name == f"step-{step}"  # noqa: E731
        before(writer.CheckpointWriter, "_remove_old", is_linked, kill)
    elif fault == "kill-judging":
        batches = iter(range(1_000))
        before(validation, "forward", lambda *_: next(batches) == step, kill)
    else:
        assert fault == "none", fault


def main() -> None:
    """Put the fault in, then run the command line."""
    rank, fault, step = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    sys.argv = [cli.PROGRAM, *sys.argv[4:]]
    Path(os.environ["PIDS"], f"{RANK}").write_text(str(os.getpid()))
    if rank == RANK:
        put_in(fault, step)
    cli.main()


if __name__ == "__main__":
    main()
