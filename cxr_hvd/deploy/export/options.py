"""What an export is to hold, and where it may go."""

import re
from dataclasses import dataclass
from pathlib import Path

from cxr_hvd.deploy.export.bundle import METADATA
from cxr_hvd.errors import UsageError

LICENCE_PATTERN = r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}"


@dataclass(frozen=True)
class ExportOptions:
    """What an export is to hold.

    Attributes:
        with_private: private blocks, too.
        has_programs: programs of `torch.export` and ONNX; the weights alone otherwise.
        licence: an identifier; None where none was chosen.
        check: a study file whose studies the programs are checked on; None: the run's own, or synthetic ones.
    """

    with_private: bool = False
    has_programs: bool = True
    licence: str | None = None
    check: Path | None = None


def read_licence(name: str | None) -> str | None:
    """Return the identifier of a licence in the Hub's form, small letters.

    Raises:
        UsageError: it is no identifier.
    """
    if name is not None and not re.fullmatch(LICENCE_PATTERN, name):
        raise UsageError(f"--license {name}: expected an identifier such as cc-by-4.0 or apache-2.0")
    return name.lower() if name else None


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse to write where something is already, unless it is an earlier export and `overwrite`.

    Raises:
        UsageError: what is there.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir() or not (folder / METADATA).is_file():
        raise UsageError(
            f"{folder}: expected a new folder or an earlier export, found something else, which is not replaced; "
            "choose another --to"
        )
    if not overwrite:
        raise UsageError(
            f"{folder}: expected a new folder, found an earlier export; choose another --to or add --overwrite"
        )
