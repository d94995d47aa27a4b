"""What the runs of a set-up were, as their run folders tell: plan, bytes, time, commands, losses."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cxr_hvd.experiment.scored_runs import ScoredRun
from cxr_hvd.experiment.variants import private_of
from cxr_hvd.files import read_plain
from cxr_hvd.models.layout import tensor_specs
from cxr_hvd.monitor.curves import mean_width, running_mean, thinned
from cxr_hvd.monitor.snapshot import load_run
from cxr_hvd.training.run_folder import RunFolder
from cxr_hvd.training.sharing import plan_sharing

CURVE_POINTS = 200
MAX_RECORD_BYTES = 1 << 24


def describe(name: str, runs: Sequence[ScoredRun]) -> dict[str, Any]:
    """Return what a set-up is and what its runs took; see `comparison`."""
    first = runs[0]
    config = RunFolder(first.path, first.scores.origin.sites[0]).config()
    plan = plan_sharing(config, tensor_specs(config.model.name, len(first.scores.origin.label_names)))
    times = [time for run in runs if (time := time_of(run))]
    num_steps = first.scores.origin.step
    return {
        "name": name,
        "experiment": config.experiment,
        "seeds": [run.seed for run in runs],
        "trains_on": "all sites' studies, merged" if config.is_merged else "each site's own studies",
        "private_said": private_of(config),
        "batchnorm": config.sharing.batchnorm,
        "exchange": config.sharing.exchange,
        "every": config.sharing.every,
        "wire": config.sharing.wire,
        "num_steps": num_steps,
        "batch_size": config.training.batch_size,
        "num_ranks": sum(site.ranks for site in config.sites.values()),
        "image_size": config.model.image_size,
        "blocks": [{**asdict(row), "scope": str(row.scope)} for row in plan.summary()],
        "bytes_per_exchange": plan.bytes_per_exchange(),
        "bytes_per_run": plan.bytes_per_exchange() * plan.num_exchanges(num_steps),
        "seconds": [seconds for seconds, _ in times],
        "studies_per_s": [pace for _, pace in times],
        "config_sha256": [run.scores.origin.config_sha256 for run in runs],
        "commands": [commands_of(run) for run in runs],
    }


def commands_of(run: ScoredRun) -> dict[str, Any]:
    """Return the commands that make a run again, after a launcher such as `horovodrun -np 2`."""
    config = run.path.parent / "config.yaml"
    said = str(config) if config.is_file() else str(run.path / run.scores.origin.sites[0] / "config.yaml")
    train = ["cxr-hvd", "train", said, "--run", str(run.path), "--set", f"seed={run.seed}"]
    return {
        "seed": run.seed,
        "train": shlex.join(train),
        "score": shlex.join(["cxr-hvd", "evaluate", str(run.path), "--across-sites"]),
    }


def time_of(run: ScoredRun) -> tuple[float, float] | None:
    """Return the seconds that a run's steps took and its mean studies a second; None where it does not tell."""
    site = load_run(run.path).furthest
    if site is None or site.rows is None:
        return None
    rows = site.rows
    seconds = np.nansum([rows.data_s, rows.compute_s, rows.averaging_s])
    paces = rows.studies_per_s[np.isfinite(rows.studies_per_s)]
    return (float(seconds), float(len(paces) / np.sum(1 / paces))) if len(paces) and (paces > 0).all() else None


def curves_of(run: ScoredRun) -> list[dict[str, Any]]:
    """Return the training loss of each site, smoothed and thinned."""
    curves = []
    for site in load_run(run.path).read_sites:
        losses = site.rows.loss_of_site.get(site.name) if site.rows else None
        if site.rows is None or losses is None:
            continue
        smooth = running_mean(losses, max(mean_width(len(losses)), 5))
        shown = thinned(len(losses), CURVE_POINTS)
        curves.append(
            {
                "experiment": run.name,
                "seed": run.seed,
                "site": site.name,
                "steps": site.rows.steps[shown].tolist(),
                "loss": [float(value) if np.isfinite(value) else None for value in smooth[shown]],
            }
        )
    return curves


def read_command(paths: Sequence[Path]) -> str | None:
    """Return the command of the first experiment among these folders; None where none tells."""
    for path in paths:
        try:
            return str(json.loads(read_plain(path / "experiment.json", MAX_RECORD_BYTES))["command"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return None
