"""How fast batches are made, beside torchvision's transforms as a user would write them: `python -m bench.loader`.

Both read one study file that is in the page cache, and change each image by itself with the same strengths, in one
thread. The peer is a map-style data set of the published input, 20 channels with zeros after a study's last image,
collated by torch; a row tells how much of it is left when only its transforms are counted. Neither stops to train.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path

import cv2
import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms import v2

from bench.report import Figure, describe_machine, ratios, table, turns, write_report
from cxr_hvd.config.sections import Augmentation, Labels
from cxr_hvd.data.loader import train_batches
from cxr_hvd.data.studies import Shuffle, StudySet
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import MAX_IMAGES, Split, StudyFileHeader, StudyRow, View
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.study.study_writer import StudyFileWriter

SIDE, BATCH, NUM_STUDIES = 256, 16, 256
# Of 1, 2, 3 ... images, as the phantoms in MIMIC-CXR's layout: 1.7 images a study.
IMAGES_PER_STUDY = np.array([0.62, 0.22, 0.08, 0.04, 0.015, 0.01, 0.004, 0.004, 0.003, 0.002, 0.002])
STEPS, PEER_STEPS = 32, 6  # counted in each round
STRENGTHS = {"default": Augmentation(), "noise and cut-out, too": Augmentation(noise=0.05, cutout=0.25)}


def main() -> None:
    """Measure, print the table, and write it where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to, between its marks")
    options = parser.parse_args()
    figures = measure(options.rounds)
    machine = describe_machine("torch", "torchvision", "opencv-python-headless")
    command = " ".join(["python -m bench.loader", *sys.argv[1:]])
    report = f"Command: `{command}`. Machine: {machine}.\n\n{table(figures)}"
    print(report)
    if options.out:
        write_report(options.out, "bench/loader.py", report)


def measure(num_rounds: int) -> list[Figure]:
    """Time our batches and the peer's in turn, for each set of strengths; return ratios of studies a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="cxr-bench-") as name:
            path = write_file(Path(name) / "studies.h5")
            return [
                figure
                for strength_name, strength in STRENGTHS.items()
                for figure in _compare(path, strength_name, strength, num_rounds)
            ]
    finally:
        torch.set_num_threads(threads)


def _compare(path: Path, strength_name: str, strength: Augmentation, num_rounds: int) -> list[Figure]:
    with StudyFile(path) as file, h5py.File(path, locking=False) as peer_file:
        shuffle = Shuffle(NUM_STUDIES, BATCH, 1, 0, (0, 1))
        peer = PaddedStudies(peer_file, transforms(strength))

        def ours(threads: int = 1, is_first_pass: bool = False) -> float:
            studies = StudySet([file], Split.TRAIN, Labels().policy(LABELS))
            batches = train_batches(studies, shuffle, count(), SIDE, strength, threads)
            with closing(batches):
                # Memory is new to the first batches; the first pass also checks digests.
                if is_first_pass:
                    return seconds_a_step(lambda step: next(batches), shuffle.steps_per_epoch - 6, 4)
                return seconds_a_step(lambda step: next(batches), STEPS, shuffle.steps_per_epoch + 4)

        def whole_peer(step: int) -> None:
            default_collate([peer[position] for position, _ in shuffle.batch_at(step)])

        def transforms_alone(step: int) -> None:
            for position, _ in shuffle.batch_at(step):
                peer.images(position)

        ways: dict[str, Callable[[], float]] = {
            "ours": ours,
            "first pass": lambda: ours(is_first_pass=True),
            "2 threads": lambda: ours(threads=2),
            "peer": lambda: seconds_a_step(whole_peer, PEER_STEPS),
            "its transforms": lambda: seconds_a_step(transforms_alone, PEER_STEPS),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for name, is_counted in turns(list(ways), num_rounds):
            took_s = ways[name]()
            if is_counted:
                seconds[name].append(took_s)
    rates = ", ".join(f"{name} {BATCH / statistics.median(times):,.0f}/s" for name, times in seconds.items())

    def figure(what: str, of: str, to: str = "ours", target: float | None = None) -> Figure:
        note = f"studies: {rates}" if target else ""
        return Figure(f"batches, {strength_name}: {what}", ratios(seconds[of], seconds[to]), target, note)

    return [
        figure("one thread to torchvision's v2, image by image", "peer", target=15),
        figure("one thread to v2's transforms alone", "its transforms"),
        figure("one thread to v2, first pass, digests checked", "peer", "first pass"),
        figure("two threads to one", "ours", "2 threads"),
    ]


def seconds_a_step(take: Callable[[int], object], num_steps: int, num_uncounted: int = 0) -> float:
    """Take steps after some that do not count."""
    for step in range(num_uncounted):
        take(step)
    started = time.perf_counter()
    for step in range(num_uncounted, num_uncounted + num_steps):
        take(step)
    return (time.perf_counter() - started) / num_steps


class PaddedStudies:
    """What a user would give a DataLoader: study i as (20, 256, 256) float32, its labels as (14,)."""

    def __init__(self, file: h5py.File, transform: Callable[[Tensor], Tensor]) -> None:
        self._images, self._labels = file["images"], file["labels"][:]
        self._num_images = file["num_images"][:]
        self._transform = transform

    def __len__(self) -> int:
        return len(self._num_images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        padded = torch.zeros(MAX_IMAGES, SIDE, SIDE)
        for channel, image in enumerate(self.images(index)):
            padded[channel] = image
        return padded, torch.from_numpy(self._labels[index])

    def images(self, index: int) -> list[Tensor]:
        """Return a study's images (H, W), each changed by itself."""
        stored = torch.from_numpy(self._images[index, : self._num_images[index]])
        return [self._transform(image[None])[0] for image in stored]


def transforms(strength: Augmentation) -> Callable[[Tensor], Tensor]:
    """Return torchvision's transforms of an image (1, H, W) uint8 with these strengths."""
    chain: list[torch.nn.Module] = [
        v2.RandomHorizontalFlip(strength.flip),
        v2.RandomAffine(
            strength.rotation_deg,
            translate=(strength.shift, strength.shift),
            scale=(1 - strength.scale, 1 + strength.scale),
            interpolation=v2.InterpolationMode.BILINEAR,
        ),
        v2.ColorJitter(brightness=strength.brightness, contrast=strength.contrast),
        v2.ToDtype(torch.float32, scale=True),
    ]
    if strength.noise:
        chain.append(v2.GaussianNoise(sigma=strength.noise / 2))
    if strength.cutout:
        chain.append(v2.RandomErasing(p=1, scale=(0.001, strength.cutout**2), ratio=(1, 1)))
    composed: Callable[[Tensor], Tensor] = v2.Compose(chain)
    return composed


def write_file(path: Path) -> Path:
    """Write a study file of smooth random images."""
    header = StudyFileHeader(
        site="bench",
        source="bench",
        label_names=LABELS,
        image_size=SIDE,
        seed=0,
        pixels="bench-1",
        source_sha256="0" * 64,
        created="2026-01-01T00:00:00+00:00",
        tool="bench",
    )
    rng = np.random.default_rng(0)
    writer = StudyFileWriter(path, header, NUM_STUDIES)
    for index in range(NUM_STUDIES):
        num_images = int(rng.choice(len(IMAGES_PER_STUDY), p=IMAGES_PER_STUDY / IMAGES_PER_STUDY.sum())) + 1
        labels = tuple(rng.choice([0.0, 1.0], len(LABELS)).tolist())
        row = StudyRow(f"study{index}", f"patient{index}", Split.TRAIN, (View.PA,) * num_images, labels)
        noise = rng.integers(0, 256, (num_images, SIDE, SIDE), dtype=np.uint8)
        writer.append(row, np.stack([cv2.GaussianBlur(image, (0, 0), 3) for image in noise]))
    writer.close()
    return path


if __name__ == "__main__":
    main()
