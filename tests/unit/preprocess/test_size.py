"""Memory stays bounded whatever the size of the data set: tables of CheXpert's size, no image."""

import csv
import random
import sys
from pathlib import Path

import pytest

from lab.launch import run
from tests.helpers.synthetic import CHEXPERT_COLUMNS, NAME

MAX_MIB = 500
NUM_PATIENTS = 66_000

# Tables and selection as on any rank; then as the leader, who keeps tables for all studies while merging.
PROBE = """
import sys
from pathlib import Path
import numpy as np
from cxr_hvd.study.layout import image_digest
from cxr_hvd.study.study_file import StudyFile
from preprocess import convert
from preprocess.parallel import blocks
from preprocess.identifiers import keyed_hash
from preprocess.plan import Conversion
from preprocess.parallel.progress import Silence
from preprocess.parallel.ranks import OneRank

shade = np.zeros((2, 2), np.uint8)
convert.load_image = lambda image, size, pipeline: shade
blocks._signature = lambda studies: ""
blocks.image_digest = lambda image, digest=image_digest(shade): digest
data, out, key = map(Path, sys.argv[1:])
conversion = Conversion("chexpert", data, out, "north", image_size=2, key=key)
result = convert.convert_site(conversion, OneRank(), Silence())
with StudyFile(conversion.out) as file:
    # Not ru_maxrss: a child begins with the peak of the process that started it, here of all tests before.
    [peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")]
    print(len(file), result.num_images, int(peak) // 1024)
"""


def write_tables(root: Path) -> int:
    """Write tables of 200,000 studies and more, as CheXpert's; return the number of images."""
    rng = random.Random(0)
    num_images = 0
    for name, first, last in (("train", 1, NUM_PATIENTS), ("valid", 70_001, 70_200)):
        (root / NAME).mkdir(parents=True, exist_ok=True)
        with (root / NAME / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(CHEXPERT_COLUMNS)
            for patient in range(first, last + 1):
                for study in range(1, rng.choice((1, 1, 1, 2, 3, 4, 5, 8)) + 1):
                    labels = rng.choices(("1.0", "0.0", "-1.0", "", ""), k=14)
                    for view in range(1, rng.choice((1, 1, 1, 1, 2)) + 1):
                        way, taken = ("Frontal", "AP") if view == 1 else ("Lateral", "")
                        path = f"{NAME}/{name}/patient{patient:05d}/study{study}/view{view}_{way.lower()}.jpg"
                        rows.writerow((path, "Male", "60", way, taken, *labels))
                        num_images += 1
    return num_images


@pytest.mark.slow
def test_a_table_of_200_000_studies_fits(tmp_path: Path) -> None:
    num_images = write_tables(tmp_path / "data")
    command = [sys.executable, "-c", PROBE, *[str(tmp_path / name) for name in ("data", "out.h5", "key")]]
    job = run(command, 500)
    assert job.exit_code == 0, job.output
    num_studies, num_loaded, peak_mib = map(int, job.output.split()[-3:])
    assert num_studies > 200_000 and num_loaded == num_images
    assert peak_mib < MAX_MIB, f"{peak_mib} MiB for {num_studies} studies"
    print(f"{num_studies:,} studies, {num_images:,} images: {peak_mib} MiB")
