"""Turn images into a study file for as long as a network is asked about them.

The other program does it, `cxr-preprocess images`, as a process of its own: the same pixels as in training, from
the same code. The study file lies in a folder that only its owner can open, and is removed whatever happens.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cxr_hvd.environment import MPI_SIZES
from cxr_hvd.errors import CxrHvdError, DataError, UsageError
from cxr_hvd.files import replaced_file
from cxr_hvd.study.study_file import StudyFile

LAUNCHED = (*MPI_SIZES, "PMIX_RANK")
ERROR = "cxr-preprocess: error: "
STOP_S = 10.0
_COUNTS = re.compile(r"reading images: ([\d,]+) of ([\d,]+) images")

OnImages = Callable[[int, int], None]
"""Called with the number of images that are read, and of all."""


@dataclass(frozen=True)
class PlacedImage:
    """Where an image lies.

    Attributes:
        given: the PATH that was given. path: the image's, relative to it.
        study: what its user finds its study by, from `given` on. study_id: in the study file.
        reason: why it cannot be used; blank where it can.
    """

    given: str
    path: str
    study: str
    study_id: str
    reason: str = ""


@dataclass(frozen=True)
class ImageStudies:
    """Studies made of images.

    Attributes:
        file: their study file; None where no image can be used.
        images: all of them, study by study.
    """

    file: StudyFile | None
    images: tuple[PlacedImage, ...]

    @property
    def set_aside(self) -> tuple[PlacedImage, ...]:
        """The images that cannot be used."""
        return tuple(image for image in self.images if image.reason)

    @property
    def num_without(self) -> int:
        """How many studies have no image that can be used."""
        return sum(all(image.reason for image in images) for images in self.studies())

    def studies(self) -> Iterator[tuple[PlacedImage, ...]]:
        """Yield the images of each study, in order."""
        by_study: dict[str, list[PlacedImage]] = {}
        for image in self.images:
            by_study.setdefault(image.study_id, []).append(image)
        yield from map(tuple, by_study.values())


@contextmanager
def opened_images(
    paths: Sequence[Path],
    pixels: str,
    table: Path | None = None,
    folder: Path | None = None,
    on_images: OnImages = lambda num_done, num_images: None,
) -> Iterator[ImageStudies]:
    """Give the studies of folders of images and of single images.

    Args:
        paths: what the images are looked for in. pixels: the pipeline that makes them.
        table: which images are a study; None: those of a folder, or of a StudyInstanceUID.
        folder: where the study file is made, 64 KiB an image; None: the system's folder for temporary files.

    Raises:
        CxrHvdError: what the other program says; a single image that cannot be used is none of it.
    """
    try:
        made = Path(tempfile.mkdtemp(prefix=".cxr-hvd-images-", dir=folder))  # 0700
    except OSError as error:
        raise CxrHvdError(f"{folder}: cannot make a folder for images here ({error.strerror})") from error
    try:
        out = made / "images.h5"
        options = ["--pixels", pixels, "--keep-ids", "--max-bad", "100%", "--json"]
        options += ["--table", str(table)] if table is not None else []
        exit_code, line = _run(["images", *options, "--out", str(out), "--", *map(str, paths)], on_images)
        images = _read_lists(out)
        # Where no image can be used, the other program fails; here each study says so.
        if exit_code and not (images and all(image.reason for image in images)):
            raise (UsageError if exit_code == UsageError.exit_code else DataError)(line)
        if exit_code:
            yield ImageStudies(None, images)
            return
        with StudyFile(out) as file:
            yield ImageStudies(file, images)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def write_set_aside(path: Path, images: Sequence[PlacedImage]) -> None:
    """Write which images could not be used, and why; where there are none, an earlier list goes."""
    if not images:
        path.unlink(missing_ok=True)
        return
    with replaced_file(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("file", "path", "study", "reason"))
        rows.writerows((image.given, image.path, image.study, image.reason) for image in images)


def _run(arguments: list[str], on_images: OnImages) -> tuple[int, str]:
    """Run `cxr-preprocess` on one rank; return its exit code and what it said was wrong."""
    # -P: a folder `preprocess` that happens to lie where the user stands is not taken for the program.
    command = [sys.executable, "-P", "-m", "preprocess.cli", *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    line = ""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    assert process.stderr is not None
    try:
        for text in process.stderr:
            if counts := _COUNTS.search(text):
                on_images(*(int(count.replace(",", "")) for count in counts.groups()))
            elif text.strip() and not line.startswith(ERROR):
                line = text.strip()
        exit_code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stderr.close()
    return exit_code, line.removeprefix(ERROR) or f"cxr-preprocess images failed with exit code {exit_code}"


def _read_lists(out: Path) -> tuple[PlacedImage, ...]:
    """Read where the images lie and which were set aside, from the lists beside the study file."""
    reasons = {row["where"]: row["reason"] for row in _rows(out.with_name(f"{out.name}.quarantine.csv"))}
    return tuple(
        PlacedImage(row["given"], row["path"], row["study"], row["study_id"], reasons.get(row["where"], ""))
        for row in _rows(out.with_name(f"{out.name}.images.csv"))
    )


def _rows(path: Path) -> Iterator[dict[str, str]]:
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
