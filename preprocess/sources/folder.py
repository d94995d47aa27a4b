"""Resolve the paths of images that a table names; only files inside the source's folder are read."""

import os
from pathlib import Path

from cxr_hvd.errors import DataError

_MAX_RESOLVED = 4096


class ImageFolder:
    """Turn relative paths that a table names into resolved paths that lie inside `root`.

    A table comes from elsewhere: `..`, an absolute path or a symbolic link that leads out of the folder would
    make this program copy any file of the machine into a study file.
    """

    def __init__(self, root: Path, argument: str = "ROOT") -> None:
        if not root.is_dir():
            raise DataError(
                f"{root}: expected a folder, found {'a file' if root.exists() else 'nothing'}; check {argument}"
            )
        self.root = root.resolve()
        self._resolved: dict[str, str] = {}

    def path(self, relative: str, where: str) -> Path:
        """Return the resolved path of the file that `where` (a table's row) names; `a//b` and `./a/b` are `a/b`.

        Raises:
            DataError: the path leaves the folder, or no file is there.
        """
        if "//" in relative or relative.startswith("./") or "/./" in relative:
            relative = "/" * relative.startswith("/") + "/".join(
                part for part in relative.split("/") if part not in ("", ".")
            )
        folder, _, name = relative.rpartition("/")
        if relative.startswith("/") or "\0" in relative or ".." in relative.split("/"):
            raise DataError(
                f"{where}: expected a path inside the data folder, found one that leaves it; "
                "repair the row, nothing outside ROOT is read"
            )
        if "\\" in relative:
            raise DataError(
                f"{where}: expected a path with '/', found one with '\\' as Windows writes it; "
                "replace them in the table"
            )
        if not name:
            raise DataError(
                f"{where}: expected the path of a file, found a blank one or a folder's; repair the row"
            )
        if folder not in self._resolved:
            if len(self._resolved) >= _MAX_RESOLVED:  # A folder's rows stand together.
                self._resolved.clear()
            self._resolved[folder] = os.path.realpath(self.root / folder)
        path = f"{self._resolved[folder]}/{name}"
        if os.path.islink(path):  # noqa: PTH114  (no Path: this runs for every image)
            path = os.path.realpath(path)
        if not path.startswith(f"{self.root}/"):
            raise DataError(
                f"{where}: expected a file inside the data folder, found a symbolic link that leads out of it; "
                "copy the file into ROOT"
            )
        return Path(path)
