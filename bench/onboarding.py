"""A hospital that joins later: onboarded, from nothing, and the others' networks as they are, by its studies.

Trains D on two sites, seed by seed; then, for each seed and number of training studies, a third site's network on
the others' shared blocks and one from nothing, with the same budget. Prints what each is worth on the third site's
TEST studies. Stopped, the same command goes on where it stood; `--table` prints what is there. Study files are
made before, as docs/results.md shows:

    python -m bench.onboarding --sites nih.h5 guangzhou.h5 --third indiana.h5 --out runs/onboarding
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from bench.report import write_report
from bench.weights import train
from cxr_hvd.deploy.onboarding.config import Budget
from cxr_hvd.deploy.onboarding.onboard import OnboardingOptions, judge, prepare, train_both
from cxr_hvd.deploy.onboarding.record import ONBOARDING, OnboardingRecord, read_onboarding
from cxr_hvd.deploy.onboarding.scores import ScoredNetwork, judged_studies, score_others
from cxr_hvd.deploy.onboarding.source import Source, load_source
from cxr_hvd.files import keep_private, replaced_file
from cxr_hvd.study.layout import Split, StudyRow, View
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.study.study_writer import StudyFileWriter
from cxr_hvd.training.train import LaunchOptions

SIZES = (50, 100, 200, 400, 0)
"""Training studies of the third site; 0: all of them."""

SOURCE_STEPS = 200
COMPARED = ("best of the others", "ensemble", "averaged", "from nothing")


def source_config(files: Sequence[Path], seed: int) -> dict[str, object]:
    """Return the config of the two sites that were there before."""
    return {
        "experiment": "D",
        "seed": seed,
        "sites": {file.stem: {"ranks": 1, "data": str(file)} for file in files},
        "labels": {"uncertain": "zeros", "blank": "ignore"},
        "model": {"name": "densenet121", "image_size": 64},
        "training": {
            "max_steps": SOURCE_STEPS,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "schedule": "one-cycle",
            "precision": "fp32",
        },
    }


def write_subset(file: StudyFile, path: Path, num_train: int, seed: int) -> None:
    """Write a study file with some of the training studies, and all others in their order.

    Smaller sets of one seed lie within larger ones.
    """
    train_rows = file.indices(Split.TRAIN)
    chosen = np.random.default_rng(seed).permutation(train_rows)[:num_train]
    kept = np.sort(np.concatenate([chosen, *(file.indices(split) for split in (Split.VALIDATE, Split.TEST))]))
    with replaced_file(path) as unfinished:
        unfinished.unlink()
        writer = StudyFileWriter(unfinished, file.header, len(kept))
        for index in kept.tolist():
            num_images = int(file.num_images[index])
            row = StudyRow(
                study_id=str(file.study_ids[index]),
                patient_id=str(file.patient_ids[index]),
                split=Split(int(file.splits[index])),
                views=tuple(View(int(view)) for view in file.views[index, :num_images]),
                labels=tuple(file.labels[index].tolist()),
            )
            writer.append(row, file.images(index))
        writer.close()


def onboard_with(
    source: Source, path: Path, others: list[ScoredNetwork], run: Path, seed: int, num_steps: int
) -> list[ScoredNetwork]:
    """Onboard a third site from one study file, unless that is done; return the others' scores, once made."""
    settings = (f"seed={seed}", "validation.every_epochs=0", "training.precision=fp32")
    options = OnboardingOptions(
        run, budget=Budget(num_steps, batch_size=8), settings=settings, launch=LaunchOptions(resume="auto")
    )
    with StudyFile(path) as file:
        prepared = prepare(source, file, options)
        studies = judged_studies(file, prepared.config)
        train_both(prepared)
        others = others or score_others(source.networks, source.start, studies, prepared.config)
        judge(prepared, source, file, studies, others)
    return others


def onboard_all(third: Path, sources: Path, out: Path, seed: int, num_steps: int) -> None:
    """Onboard the third site with every number of training studies, from the sources of one seed."""
    others: list[ScoredNetwork] = []
    for size in SIZES:
        run = out / f"third-{seed}-{size or 'all'}"
        if (run / ONBOARDING).exists():
            continue
        source = load_source(sources / f"D-{seed}", "latest")
        path = third
        if size:
            path = out / f"{third.stem}-{seed}-{size}.h5"
            path.parent.mkdir(parents=True, exist_ok=True)
            with StudyFile(third) as file:
                write_subset(file, path, size, seed)
        others = onboard_with(source, path, others, run, seed, num_steps)
        if size:
            path.unlink()
        print(f"seed {seed}, {size or 'all'} studies: done", flush=True)


def records(out: Path, seeds: Sequence[int]) -> dict[int, dict[int, OnboardingRecord]]:
    """Return what is there, by the number of training studies and the seed."""
    return {
        size: {
            seed: read_onboarding(path)
            for seed in seeds
            if (path := out / f"third-{seed}-{size or 'all'}" / ONBOARDING).exists()
        }
        for size in SIZES
    }


def auroc(record: OnboardingRecord, name: str, is_of_all: bool) -> float:
    """Return a network's macro AUROC over the labels of the others, or over all labels."""
    network = record.network((record.best_other or "") if name == "best of the others" else name)
    estimate = None if network is None else network.of_site if is_of_all else network.of_others
    if estimate is None or estimate.value is None:
        raise SystemExit(f"{name}: expected an AUROC, found none: too few studies of each class")
    return estimate.value


def table(by_size: dict[int, dict[int, OnboardingRecord]]) -> str:
    """Return Markdown tables: AUROCs as mean ± standard deviation over seeds, and paired differences."""
    first = next(record for by_seed in by_size.values() for record in by_seed.values())
    lines = [
        f"{first.num_test} TEST studies of {first.num_patients} patients. Labels of the others: "
        f"{', '.join(first.labels_of_others)}; all labels: these and "
        f"{', '.join(label for label in first.labels if label not in first.labels_of_others)}.",
        "",
    ]
    for is_of_all, title in ((False, "labels of the others"), (True, "all labels")):
        names = ("onboarded", "from nothing", "best of the others", "ensemble", "averaged")
        lines += [f"| macro AUROC, {title} | seeds | {' | '.join(names)} |", f"|---|--:|{'--:|' * len(names)}"]
        for size, by_seed in by_size.items():
            cells = [_mean([auroc(record, name, is_of_all) for record in by_seed.values()]) for name in names]
            if by_seed:
                lines.append(f"| {_size(size, by_seed)} training studies | {len(by_seed)} | {' | '.join(cells)} |")
        lines += ["", f"| onboarded − , {title} | seeds | {' | '.join(COMPARED)} |"]
        lines.append(f"|---|--:|{'---|' * len(COMPARED)}")
        for size, by_seed in by_size.items():
            cells = list(_differences(by_seed, is_of_all))
            if by_seed:
                lines.append(f"| {_size(size, by_seed)} training studies | {len(by_seed)} | {' | '.join(cells)} |")
        lines.append("")
    chosen = {seed: record.best_other for by_seed in by_size.values() for seed, record in by_seed.items()}
    lines.append(
        "Best of the others by VALIDATE: " + ", ".join(f"seed {s}: {b}" for s, b in sorted(chosen.items()))
    )
    return "\n".join(lines)


def _size(size: int, by_seed: dict[int, OnboardingRecord]) -> str:
    return f"{size or next(iter(by_seed.values())).num_train:,}"


def _differences(by_seed: dict[int, OnboardingRecord], is_of_all: bool) -> Iterator[str]:
    for name in COMPARED:
        gains = [auroc(r, "onboarded", is_of_all) - auroc(r, name, is_of_all) for r in by_seed.values()]
        if len(gains) < 3:  # two seeds are no test
            yield ", ".join(f"{gain:+.3f}" for gain in gains).replace("-", "−")
            continue
        mean, error = statistics.mean(gains), statistics.stdev(gains) / len(gains) ** 0.5
        reach = float(student.ppf(0.975, len(gains) - 1)) * error
        p_value = float(2 * student.sf(abs(mean) / error, len(gains) - 1)) if error else 1.0
        shown = f"p = {p_value:.3f}" if p_value >= 0.0005 else "p < 0.001"
        yield f"{mean:+.3f} [{mean - reach:+.3f}, {mean + reach:+.3f}], {shown}".replace("-", "−")


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    sd = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{sd}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=Path, nargs=2, required=True, help="study files of the sites of D")
    parser.add_argument("--third", type=Path, required=True, help="study file of the site that joins later")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sources", type=Path, help="runs D-SEED of the two sites, where they are made already")
    parser.add_argument("--steps", type=int, default=100, help="of both trainings of the third site")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--document", type=Path, help="put the tables between their marks there, too")
    parser.add_argument("--table", action="store_true", help="print what is there, and train nothing")
    arguments = parser.parse_args()
    keep_private()
    sources = arguments.sources or arguments.out / "sources"
    for seed in () if arguments.table else arguments.seeds:
        launcher = ("horovodrun", "-np", "2", "-H", "localhost:2")
        train(source_config(arguments.sites, seed), sources / f"D-{seed}", SOURCE_STEPS, launcher)
        onboard_all(arguments.third, sources, arguments.out, seed, arguments.steps)
    tables = table(records(arguments.out, arguments.seeds))
    print(tables)
    if arguments.document:
        write_report(arguments.document, "results/onboarding", tables)


if __name__ == "__main__":
    main()
