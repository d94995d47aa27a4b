"""A process that takes ten steps by a bare loop or by the engine, with a checkpoint, and prints its peak in MB."""

import resource
import sys
import tempfile
from pathlib import Path

import torch

from bench.steps import EngineStep, Step
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology
from cxr_hvd.config.sections import Model
from cxr_hvd.models.build import build_model
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import build_plan
from cxr_hvd.study.labels import LABELS
from cxr_hvd.training.checkpoint.snapshot import take_snapshot
from cxr_hvd.training.checkpoint.writer import CheckpointWriter
from cxr_hvd.training.history import History
from cxr_hvd.training.run_folder import RunFolder

NUM_STEPS, SAVE_AT = 10, 5


def main() -> None:
    """Take the steps."""
    torch.set_num_threads(1)
    model = build_model(Model(), len(LABELS), seed=1)
    topology = Topology(0, ("site",), (0,))
    with tempfile.TemporaryDirectory(prefix="cxr-bench-") as name:
        plan = build_plan(tensor_specs(model))
        step = EngineStep(model, plan, LocalComm(), topology) if sys.argv[1] == "engine" else Step(model)
        folder = RunFolder(Path(name), "site")
        folder.open_new(overwrite=False)
        writer = CheckpointWriter(folder, Job(LocalComm(), topology), keep=2)
        for number in range(NUM_STEPS):
            step()
            if number == SAVE_AT and isinstance(step, EngineStep):
                writer.begin(take_snapshot(step.engine.state, topology, step.plan, number, History()))
        writer.finish()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


if __name__ == "__main__":
    main()
