"""The folder of an experiment: its record, the set-ups' configs, and what of it is done.

OUT/experiment.json            what was asked
OUT/NAME/config.yaml           a set-up's config, whole
OUT/NAME/seed-S/               its run folder, as `cxr-hvd train` makes, with scores.safetensors
"""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from cxr_hvd import __version__
from cxr_hvd.errors import CheckpointError
from cxr_hvd.experiment.experiment_file import NAME, ExperimentRecord, RunRecord, read_experiment
from cxr_hvd.experiment.plan import ExperimentPlan, PlannedRun
from cxr_hvd.experiment.scores import NAME as SCORES
from cxr_hvd.experiment.scores import read_origin
from cxr_hvd.experiment.variants import resolved
from cxr_hvd.files import write_text
from cxr_hvd.training.run_folder import LATEST, RunFolder, disk_errors, sites_in
from cxr_hvd.yaml_text import dump_yaml


def is_scored(planned: PlannedRun, data_sha256: Mapping[str, str]) -> bool:
    """Return whether a run is done and scored.

    Raises:
        CheckpointError: there are scores, but of another config or of other data.
    """
    path = planned.folder / SCORES
    if not path.exists():
        return False
    origin = read_origin(path)
    wanted = (planned.config_sha256, data_sha256)
    if (origin.config_sha256, origin.data_sha256) != wanted:
        raise CheckpointError(
            f"{planned.folder}: its scores are of another config or of other study files than those asked for: "
            "name another --out, or remove the folder"
        )
    return True


def open_folder(plan: ExperimentPlan) -> None:
    """Make the experiment's folder, with each set-up's config; what was scored before stays.

    Raises:
        CheckpointError: a file of its names is there that no experiment made, or it cannot be written.
    """
    record = plan.out / NAME
    written = dict.fromkeys([record, *(planned.config_path for planned in plan.runs)])
    if taken := [] if read_experiment(record) else [path for path in written if os.path.lexists(path)]:
        raise CheckpointError(
            f"{taken[0]}: expected nothing or a file of an earlier experiment, found something else, which is not "
            "replaced; name another --out"
        )
    with disk_errors(plan.out):
        plan.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        for planned in plan.runs:
            planned.folder.parent.mkdir(mode=0o700, exist_ok=True)
            first = resolved(planned.config) | {"seed": plan.runs[0].config.seed}
            write_text(planned.config_path, dump_yaml(first))
        write_text(record, json.dumps(record_plan(plan).model_dump(mode="json"), indent=1) + "\n")


def record_plan(plan: ExperimentPlan) -> ExperimentRecord:
    """Return the record of what is to be done."""
    return ExperimentRecord(
        tool=f"cxr-hvd {__version__}",
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        num_steps=plan.num_steps,
        data_sha256=plan.data_sha256,
        variants=tuple(dict.fromkeys(planned.variant for planned in plan.runs)),
        runs=tuple(
            RunRecord(
                variant=planned.variant,
                seed=planned.config.seed,
                config_sha256=planned.config_sha256,
                train=shlex.join(["cxr-hvd", *planned.train_words()]),
                score=shlex.join(["cxr-hvd", *planned.score_words()]),
            )
            for planned in plan.runs
        ),
    )


def thin_checkpoints(run: Path) -> None:
    """Keep of a scored run's checkpoints what is needed to judge or use its networks, not to train on."""
    for site in sites_in(run):
        folder = RunFolder(run, site)
        latest = (folder.checkpoints / LATEST).resolve()
        for checkpoint in folder.checkpoints.glob("step-*"):
            if checkpoint != latest:
                shutil.rmtree(checkpoint)
        for kind in ("optimizer", "exchange"):
            for file in latest.glob(f"{kind}-*.safetensors"):
                file.unlink()
        best = folder.checkpoints / "best"
        if best.is_symlink() and not best.exists():
            best.unlink()
