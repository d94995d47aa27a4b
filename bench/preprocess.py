"""How fast preprocessing is, beside what a user would write instead: `make bench`.

Everything is measured on one machine in one run, peers in turn, round after round, so that a busy neighbour
slows all of them; what counts are ratios, given as the median over rounds with the least and the greatest. The
images are phantoms, scaled to the two sizes that CheXpert comes in, with noise that gives files of their weight.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from bench.report import Figure, describe_machine, in_turn, table, write_report
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import View
from cxr_hvd.study.study_file import StudyFile
from preprocess.phantom.phantom import write_phantom
from preprocess.pixels.pipelines import load_image
from preprocess.plan import IMAGE_SIZE
from preprocess.records import ImageRecord
from preprocess.sources.chexpert import COLUMNS

NAME = "CheXpert-v1.0-small"
PAGE_BYTES = IMAGE_SIZE**2
NUM_ORIGINALS = 12


@dataclass(frozen=True)
class Size:
    """One of the two sizes of CheXpert: height, width, the decoder's reduction, and how many images to measure."""

    name: str
    height: int
    width: int
    flag: int
    num_in_loop: int
    num_in_job: int


SIZES = (
    Size("320x390", 320, 390, cv2.IMREAD_GRAYSCALE, 250, 4000),
    Size("2544x3056", 2544, 3056, cv2.IMREAD_REDUCED_GRAYSCALE_4, 24, 192),
)


def main() -> None:
    """Measure, print the table, and write it where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=5, help="rounds of whole jobs")
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to, between its marks")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="cxr-bench-") as name:
        folder = Path(name)
        originals = draw_originals(folder)
        figures = []
        for size in SIZES:
            images = write_layout(folder / size.name, originals[size.name], size.num_in_job)
            figures += measure_loops(size, images, options.rounds)
            figures += measure_jobs(folder, size, options.jobs)
        figures += measure_file(folder / f"{SIZES[0].name}.h5", options.rounds)
    machine = describe_machine("opencv-python-headless", "pillow")
    report = (
        f"Command: `python -m bench.preprocess {' '.join(sys.argv[1:])}`. Machine: {machine}.\n\n{table(figures)}"
    )
    print(report)
    if options.out:
        write_report(options.out, "bench/preprocess.py", report)


def draw_originals(folder: Path) -> dict[str, list[Path]]:
    """Draw phantoms and write each in both sizes, with the grain of a detector; return the files by size."""
    write_phantom(folder / "phantom", "chexpert", NUM_ORIGINALS, 1)
    drawn = sorted((folder / "phantom").rglob("*.jpg"))[:NUM_ORIGINALS]
    rng = np.random.default_rng(0)
    originals: dict[str, list[Path]] = {}
    for size in SIZES:
        originals[size.name] = []
        for number, path in enumerate(drawn):
            image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            image = cv2.resize(image, (size.width, size.height), interpolation=cv2.INTER_CUBIC)
            grain = rng.normal(0, 3, image.shape)
            to = folder / f"{size.name}-{number}.jpg"
            cv2.imwrite(str(to), np.clip(image + grain, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
            originals[size.name].append(to)
    return originals


def write_layout(root: Path, originals: Sequence[Path], num_images: int) -> list[Path]:
    """Lay out hard links to the originals as CheXpert, one or two images a study; return them."""
    images, rows = [], {"train": [",".join(COLUMNS)], "valid": [",".join(COLUMNS)]}
    for number in range(num_images):
        table = "valid" if number % 20 == 19 else "train"
        study = (
            f"{NAME}/{table}/patient{number // 3 * 3:05d}" if table == "train" else f"{NAME}/valid/patient{number}"
        )
        relative = f"{study}/study{1 + number % 3 // 2}/view{number % 3}_frontal.jpg"
        path = root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(originals[number % len(originals)])
        images.append(path)
        rows[table].append(f"{relative},Frontal,AP" + ",0.0" * len(LABELS))
    for table, lines in rows.items():
        (root / NAME / f"{table}.csv").write_text("\n".join(lines) + "\n")
    return images


def measure_loops(size: Size, images: Sequence[Path], num_rounds: int) -> list[Figure]:
    """Time ours, the bare loop and Pillow in turn on one core; return ratios."""
    chosen = list(images[: size.num_in_loop])
    records = [ImageRecord(path, View.AP, "row") for path in chosen]

    def ours() -> None:
        for record in records:
            load_image(record, IMAGE_SIZE)

    def bare() -> None:
        decode_bare(chosen, size.flag)

    def pillow() -> None:
        for path in chosen:
            with Image.open(path) as image:
                np.asarray(image.convert("L").resize((IMAGE_SIZE, IMAGE_SIZE)))

    seconds = in_turn({"ours": ours, "bare": bare, "pillow": pillow}, num_rounds)
    rates = {name: len(chosen) / statistics.median(times) for name, times in seconds.items()}
    note = ", ".join(f"{name} {rate:,.0f}/s" for name, rate in rates.items())
    to_bare = [bare / ours for ours, bare in zip(seconds["ours"], seconds["bare"], strict=True)]
    to_pillow = [pillow / ours for ours, pillow in zip(seconds["ours"], seconds["pillow"], strict=True)]
    wanted = 1.5 if size.height > 1000 else 1.0
    return [
        Figure(f"{size.name}: one core, loading to the bare decode and resize", to_bare, 0.9, note),
        Figure(f"{size.name}: one core, loading to Pillow's open and resize", to_pillow, wanted, note),
    ]


def measure_jobs(folder: Path, size: Size, num_rounds: int) -> list[Figure]:
    """Run whole jobs on one and on two ranks in turn, bare loops in one and in two processes between them.

    Two bare loops at once show what a second core is worth today: no program gains more from it.
    """
    root, out = folder / size.name, folder / f"{size.name}.h5"
    rates: dict[str, list[float]] = {"one rank": [], "two ranks": [], "one bare": [], "two bare": []}
    peak_mib = 0.0
    for _ in range(num_rounds):
        for name, num in (("one", 1), ("two", 2)):
            rates[f"{name} bare"].append(run_bare(root, size, num))
            result = run_job(root, out, num)
            rates[f"{name} rank{'s' * (num > 1)}"].append(result["num_images"] / result["load_s"])
            peak_mib = max(peak_mib, result["peak_mib"])
    note = ", ".join(f"{name} {statistics.median(rate):,.0f}/s" for name, rate in rates.items())
    speedup, worth, pace = (
        [one / other for one, other in zip(rates[to], rates[of], strict=True)]
        for to, of in (("two ranks", "one rank"), ("two bare", "one bare"), ("one rank", "one bare"))
    )
    of_possible = [one / other for one, other in zip(speedup, worth, strict=True)]
    return [
        Figure(f"{size.name}: two ranks to one", speedup, 1.8, note),
        Figure(f"{size.name}: that, to two bare loops to one", of_possible, 0.9, note),
        Figure(f"{size.name}: written, synced, one rank, to the bare decode and resize", pace, 0.8, note),
        Figure(f"{size.name}: peak memory of the leader, MiB", [peak_mib], 500, "", is_at_most=True),
    ]


def run_bare(root: Path, size: Size, num_processes: int) -> float:
    """Run bare loops over the job's images in so many processes at once; return images a second, all together."""
    paths = sorted((root / NAME).rglob("*.jpg"))[: size.num_in_job // 2]
    with ProcessPoolExecutor(num_processes) as processes:
        list(processes.map(decode_bare, [paths[:1]] * num_processes, [size.flag] * num_processes))  # start them
        started = time.perf_counter()
        list(processes.map(decode_bare, [paths] * num_processes, [size.flag] * num_processes))
    return num_processes * len(paths) / (time.perf_counter() - started)


def decode_bare(paths: Sequence[Path], flag: int) -> None:
    """Decode and resize, and nothing else."""
    cv2.setNumThreads(1)
    for path in paths:
        decoded = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), flag)
        cv2.resize(decoded, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA)


def run_job(root: Path, out: Path, num_ranks: int) -> dict[str, float]:
    """Run one job and return its result."""
    command = [sys.executable, "-m", "preprocess.cli", "chexpert", str(root), "--out", str(out)]
    command += ["--keep-ids", "--overwrite", "--json"]
    prefix = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", str(num_ranks)]
    finished = subprocess.run([*prefix, *command], capture_output=True, text=True, check=False, timeout=600)
    if finished.returncode:
        raise SystemExit(f"the job failed: {finished.stderr[-2000:]}")
    result: dict[str, float] = json.loads(finished.stdout)
    return result


def measure_file(path: Path, num_rounds: int) -> list[Figure]:
    """Return the file's size to its images', and random reads to copies in memory of the same bytes."""
    with StudyFile(path) as file:
        real_bytes = int(file.num_images.sum(dtype=np.int64)) * PAGE_BYTES
        order = np.random.default_rng(0).permutation(len(file)).tolist()
        pages = np.concatenate([file.images(index) for index in range(len(file))])
        first = np.concatenate([[0], np.cumsum(file.num_images, dtype=np.int64)]).tolist()

        def read() -> None:
            for index in order:
                file.images(index)

        def copy() -> None:
            for index in order:
                pages[first[index] : first[index + 1]].copy()

        seconds = in_turn({"read": read, "copy": copy}, num_rounds)
    ratios = [copied / read for read, copied in zip(seconds["read"], seconds["copy"], strict=True)]
    rates = {name: len(order) / statistics.median(times) for name, times in seconds.items()}
    note = ", ".join(f"{name} {rate:,.0f} studies/s" for name, rate in rates.items())
    size = path.stat().st_size / real_bytes
    return [
        Figure(
            "bytes of the study file to those of its images", [size], 1.02, f"{real_bytes / 1e6:,.0f} MB", True
        ),
        Figure("random study read to a copy in memory", ratios, 0.3, note),
    ]


if __name__ == "__main__":
    main()
