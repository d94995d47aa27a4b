"""What the runs of a set-up were, as their run folders tell: plan, bytes, time, commands, losses."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from cxr_hvd.experiment.comparison import BlockScope, LossCurve, RunCommands, SetUp
from cxr_hvd.experiment.scored_runs import ScoredRun
from cxr_hvd.experiment.variants import describe_data, private_of
from cxr_hvd.models.layout import tensor_specs
from cxr_hvd.monitor.curves import mean_width, running_mean, thinned
from cxr_hvd.monitor.snapshot import load_run
from cxr_hvd.training.run_folder import RunFolder
from cxr_hvd.training.sharing import plan_sharing

CURVE_POINTS = 200


def describe_setup(name: str, runs: Sequence[ScoredRun]) -> SetUp:
    """Return what a set-up is and what its runs took, from their run folders."""
    origin = runs[0].scores.origin
    config = RunFolder(runs[0].path, origin.sites[0]).config()
    plan = plan_sharing(config, tensor_specs(config.model, len(origin.label_names)))
    durations = [duration for run in runs if (duration := measure_run(run))]
    return SetUp(
        name=name,
        experiment=config.experiment,
        seeds=tuple(run.seed for run in runs),
        trains_on=describe_data(config),
        private_said=private_of(config),
        batchnorm=config.sharing.batchnorm,
        exchange=config.sharing.exchange,
        every=config.sharing.every,
        wire=config.sharing.wire,
        num_steps=origin.step,
        batch_size=config.training.batch_size,
        num_ranks=sum(site.ranks for site in config.sites.values()),
        image_size=config.model.image_size,
        blocks=tuple(BlockScope(**asdict(row) | {"scope": str(row.scope)}) for row in plan.summary()),
        bytes_per_exchange=plan.bytes_per_exchange(),
        bytes_per_run=plan.bytes_per_exchange() * plan.num_exchanges(origin.step),
        seconds=tuple(seconds for seconds, _ in durations),
        studies_per_s=tuple(pace for _, pace in durations),
        config_sha256=tuple(run.scores.origin.config_sha256 for run in runs),
        commands=tuple(list_commands(run) for run in runs),
    )


def list_commands(run: ScoredRun) -> RunCommands:
    """Return the commands that make a run again."""
    common = run.path.parent / "config.yaml"
    config = common if common.is_file() else run.path / run.scores.origin.sites[0] / "config.yaml"
    train = ["cxr-hvd", "train", str(config), "--run", str(run.path), "--set", f"seed={run.seed}"]
    score = ["cxr-hvd", "evaluate", str(run.path), "--pooled"]
    return RunCommands(seed=run.seed, train=shlex.join(train), score=shlex.join(score))


def measure_run(run: ScoredRun) -> tuple[float, float] | None:
    """Return the seconds that a run's steps took and its mean studies a second; None where it does not tell."""
    site = load_run(run.path).furthest
    if site is None or site.rows is None:
        return None
    rows = site.rows
    seconds = np.nansum([rows.data_s, rows.compute_s, rows.averaging_s])
    paces = rows.studies_per_s[np.isfinite(rows.studies_per_s)]
    return (float(seconds), float(len(paces) / np.sum(1 / paces))) if len(paces) and (paces > 0).all() else None


def read_curves(run: ScoredRun) -> list[LossCurve]:
    """Return the training loss of each site, smoothed and thinned."""
    curves = []
    for site in load_run(run.path).read_sites:
        losses = site.rows.loss_of_site.get(site.name) if site.rows else None
        if site.rows is None or losses is None:
            continue
        smooth = running_mean(losses, max(mean_width(len(losses)), 5))
        places = thinned(len(losses), CURVE_POINTS)
        curves.append(
            LossCurve(
                experiment=run.name,
                seed=run.seed,
                site=site.name,
                steps=tuple(site.rows.steps[places].tolist()),
                loss=tuple(float(value) if np.isfinite(value) else None for value in smooth[places]),
            )
        )
    return curves
