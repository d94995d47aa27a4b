"""Releases of results: which test studies a site has let be judged across sites, so that none can be told apart.

What two releases of nearly the same test studies say differs by what the few patients between them add, exactly.
So a test set that differs from an earlier one by fewer than 10 patients is refused. The same test set may be
judged again, by the same networks or by others (decision 0031).

`RUN/SITE/releases.json` is the site's own memory, mode 0600, and never sent: patients stand in it as HMAC-SHA256
under a random key of the file. It is looked for in all run folders that are judged and in those beside them.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from cxr_hvd.data.studies import StudySet
from cxr_hvd.errors import CheckpointError, DataError
from cxr_hvd.files import write_text
from cxr_hvd.record import Name, Record, first_problem, read_record
from cxr_hvd.stats.metrics import MIN_OF_CLASS
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.run_folder import RunFolder, disk_errors

RELEASES = "releases.json"
MAX_BYTES = 1 << 30

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Patients = Mapping[str, bytes]
"""By patient id, what the networks are judged on: images, targets, and which of them count."""


class Release(Record):
    """One release.

    Attributes:
        networks_sha256: of the list of networks.
        patients: for each patient's keyed digest the keyed digest of the patient's test studies.
    """

    time: Name
    networks_sha256: Digest
    networks: tuple[Name, ...]
    patients: dict[Digest, Digest]


class Releases(Record):
    """All releases that a run folder remembers; the newest of each test set and list of networks."""

    releases_schema: Literal[1] = 1
    key: Digest
    releases: tuple[Release, ...] = ()

    def digest(self, patients: Patients) -> dict[str, str]:
        """Return patients and their studies as this file's keyed digests."""
        key = bytes.fromhex(self.key)
        return {
            hmac.digest(key, patient.encode(), "sha256").hex(): hmac.digest(key, content, "sha256").hex()
            for patient, content in patients.items()
        }


def describe_patients(file: StudyFile, studies: StudySet) -> dict[str, bytes]:
    """Return what each patient's test studies are, by patient id; it stays in memory."""
    first_image = [0, *file.num_images.cumsum(dtype="int64").tolist()]
    of_patient: dict[str, list[bytes]] = {}
    for place, index in enumerate(file.indices(Split.TEST).tolist()):
        images = file.digests[first_image[index] : first_image[index + 1]].tobytes()
        truth = studies.targets[place].tobytes() + studies.known[place].tobytes()
        content = hashlib.sha256(images + truth).digest()
        of_patient.setdefault(str(file.patient_ids[index]), []).append(content)
    return {patient: b"".join(sorted(contents)) for patient, contents in of_patient.items()}


def check_releases(folders: Iterable[RunFolder], patients: Patients) -> None:
    """Check that no earlier release was of nearly the same test studies.

    Args:
        folders: of the site, in the runs that are judged.

    Raises:
        DataError: one was.
        CheckpointError: a file of earlier releases cannot be read.
    """
    for path in _find_files(folders):
        earlier = read_releases(path)
        now = earlier.digest(patients)
        for release in earlier.releases:
            num_changed = len(dict(now.items() ^ release.patients.items()))
            if 0 < num_changed < MIN_OF_CLASS:
                raise DataError(
                    f"{path}: expected the test studies of the release of {release.time}, or some of "
                    f"{MIN_OF_CLASS} other patients and more, found a difference of {num_changed} patient(s): the "
                    "two results would tell of these few; judge the earlier test studies, or wait for more"
                )


def note_release(folders: Sequence[RunFolder], patients: Patients, networks: Sequence[str]) -> None:
    """Write down in each run folder that results of these test studies leave now.

    Raises:
        CheckpointError: it cannot be written, so nothing may leave.
    """
    digest = networks_digest(networks)
    for folder in folders:
        path = folder.path / RELEASES
        earlier = read_releases(path) if path.exists() else Releases(key=secrets.token_hex(32))
        release = Release(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            networks_sha256=digest,
            networks=tuple(networks),
            patients=earlier.digest(patients),
        )
        others = [
            other
            for other in earlier.releases
            if (other.networks_sha256, other.patients) != (digest, release.patients)
        ]
        with disk_errors(path):
            write_text(path, earlier.model_copy(update={"releases": (*others, release)}).model_dump_json() + "\n")


def networks_digest(networks: Sequence[str]) -> str:
    """Return the SHA-256 of a list of networks."""
    return hashlib.sha256("\n".join(networks).encode()).hexdigest()


def read_releases(path: Path) -> Releases:
    """Read a file of releases.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        return read_record(path, Releases, MAX_BYTES)
    except ValidationError as error:
        problem = first_problem(error)
    except (OSError, ValueError) as error:
        problem = type(error).__name__
    raise CheckpointError(
        f"{path}: expected the site's list of earlier releases, found none to read ({problem}); what was released "
        "is not known: restore the file from a backup"
    )


def _find_files(folders: Iterable[RunFolder]) -> list[Path]:
    """Return the files of releases in these folders, and in the same site's folders beside them."""
    paths = {
        path
        for folder in folders
        for above, pattern in (
            (folder.run.absolute().parent, "*"),
            (folder.run.absolute().parent.parent, "*/seed-*"),
        )
        for path in above.glob(f"{pattern}/{folder.path.name}/{RELEASES}")
    }
    return sorted(paths)
