"""How fast batches are made, beside torchvision's transforms as a user would write them: `python -m bench.loader`.

Both read one study file that is in the page cache, and change each image by itself with the same strengths, in one
thread. The peer is a map-style data set of the published input, 20 channels with zeros after a study's last image,
collated by torch; a row tells how much of it is left when only its transforms are counted. Neither stops to train.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms import v2

from bench.report import Figure, describe_machine, in_turn, table, write_report
from cxr_hvd.config import Augmentation, Labels
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.study_file import MAX_IMAGES, Split, StudyFile, StudyFileHeader, StudyRow, View
from cxr_hvd.study.study_writer import StudyFileWriter
from cxr_hvd.training.loader import Shuffle, StudySet, train_batches

SIDE, BATCH, NUM_STUDIES = 256, 16, 256
# Of 1, 2, 3 ... images, as the phantoms in MIMIC-CXR's layout: 1.7 images a study.
IMAGES_PER_STUDY = np.array([0.62, 0.22, 0.08, 0.04, 0.015, 0.01, 0.004, 0.004, 0.003, 0.002, 0.002])
STEPS, PEER_STEPS = 32, 4
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
                for said, strength in STRENGTHS.items()
                for figure in _compare(path, said, strength, num_rounds)
            ]
    finally:
        torch.set_num_threads(threads)


def _compare(path: Path, said: str, strength: Augmentation, num_rounds: int) -> list[Figure]:
    with StudyFile(path) as file, h5py.File(path, locking=False) as peer_file:
        studies = StudySet([file], Split.TRAIN, Labels().policy(LABELS))
        shuffle = Shuffle(len(studies), BATCH, 1, 0, (0, 1))
        peer = PaddedStudies(peer_file, transforms(strength))

        def ours(threads: int) -> Callable[[], None]:
            def run() -> None:
                for _ in train_batches(studies, shuffle, range(STEPS), SIDE, strength, threads):
                    pass

            return run

        def whole_peer() -> None:
            for step in range(PEER_STEPS):
                default_collate([peer[position] for position, _ in shuffle.batch_at(step)])

        def transforms_alone() -> None:
            for step in range(PEER_STEPS):
                for position, _ in shuffle.batch_at(step):
                    peer.images(position)

        ways = {
            "ours": ours(1),
            "ours, 2 threads": ours(2),
            "peer": whole_peer,
            "its transforms": transforms_alone,
        }
        seconds = in_turn(ways, num_rounds)
    steps = {name: PEER_STEPS if name in ("peer", "its transforms") else STEPS for name in ways}
    per_batch = {name: [each / steps[name] for each in times] for name, times in seconds.items()}
    note = ", ".join(
        f"{name} {BATCH / statistics.median(times):,.0f} studies/s" for name, times in per_batch.items()
    )

    def against(name: str, other: str = "ours") -> list[float]:
        return [one / own for one, own in zip(per_batch[name], per_batch[other], strict=True)]

    return [
        Figure(f"batches, {said}: one thread to torchvision's v2, image by image", against("peer"), 15, note),
        Figure(f"batches, {said}: one thread to v2's transforms alone", against("its transforms"), None, ""),
        Figure(f"batches, {said}: two threads to one", against("ours", "ours, 2 threads"), None, ""),
    ]


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
