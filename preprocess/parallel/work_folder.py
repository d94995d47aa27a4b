"""Keep finished work in a folder beside the output, so that a killed job goes on where it stopped.

`.NAME.work/` holds finished blocks (`blocks.py`), the study file as far as it is merged, and the lock. It is
readable by its owner alone, for these are a hospital's images. A block's name carries the digest of the job, so
another job's leftovers are never taken for this one's: they are removed at the start.

Only one job at a time writes an output: the leader holds an exclusive `flock` on a file in the folder, which
the kernel lets go when the process ends, however it ends.
"""

import fcntl
import os
import re
import shutil
import socket
import stat
from pathlib import Path
from typing import Self

from cxr_hvd.errors import DataError, UsageError
from cxr_hvd.files import sync

_DIGITS = 16


class WorkFolder:
    """The work of one job, named by its digest, beside the output `out`.

    Every rank has one; `open` and `remove` are the leader's.
    """

    def __init__(self, out: Path, digest: str) -> None:
        self.out = out
        self.path = out.with_name(f".{out.name}.work")
        self.digest = digest
        self._stem = digest[:_DIGITS]
        self._lock: int | None = None

    def block(self, index: int) -> Path:
        """Return where a finished block lies."""
        return self.path / f"{self._stem}-{index:06d}.block"

    @property
    def merged(self) -> Path:
        """Where the study file grows until it gets its name."""
        return self.path / f"{self._stem}.h5"

    @property
    def finished(self) -> Path:
        """Holds the digest of the study file's content, from just before it gets its name."""
        return self.path / f"{self._stem}.finished"

    def open(self) -> Self:
        """Make the folder or go on in it, keep others out, and remove what another job left.

        Raises:
            UsageError: another job is writing this output.
            DataError: the folder cannot be made.
        """
        try:
            self._lock = self._locked()
            for entry in self.path.iterdir():
                is_ours = entry.name.startswith(self._stem) and entry.suffix in (".block", ".finished")
                if not is_ours and entry.name != "lock":
                    entry.unlink()
        except OSError as error:
            raise disk_error(self.out, error) from error
        return self

    def _locked(self) -> int:
        path = self.path / "lock"
        while True:
            self.path.mkdir(mode=0o700, exist_ok=True)
            status = self.path.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                raise UsageError(
                    f"{self.path}: expected a folder of this user for unfinished work, found a link or somebody "
                    "else's; choose another --out"
                )
            self.path.chmod(0o700)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue  # A job that ended removed the folder in between.
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 200).decode("ascii", "replace").strip() or "another process"
                os.close(descriptor)
                raise UsageError(
                    f"{self.out}: expected to write it alone, found another job at it ({holder}); "
                    "wait for its end, stop it, or choose another --out"
                ) from None
            # The lock is worth something only on the file that others will find under this name.
            try:
                is_same = os.path.samestat(os.fstat(descriptor), path.stat())
            except FileNotFoundError:
                is_same = False
            if is_same:
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                return descriptor
            os.close(descriptor)

    def publish(self, content_digest: str) -> None:
        """Give the merged file, complete and on the disk, the name of the output."""
        try:
            self.finished.write_text(content_digest, encoding="ascii")
            sync(self.finished)
            sync(self.merged)
            self.merged.replace(self.out)
            sync(self.out.parent)
        except OSError as error:
            raise disk_error(self.out, error) from error

    @staticmethod
    def is_begun(out: Path) -> bool:
        """Say whether some earlier job left work for this name."""
        return out.with_name(f".{out.name}.work").is_dir()

    @staticmethod
    def may_be_published(out: Path) -> bool:
        """Say whether some earlier job got as far as giving its file this name, and no further."""
        return next(out.with_name(f".{out.name}.work").glob("*.finished"), None) is not None

    def published_digest(self) -> str | None:
        """Return the digest of the content that an earlier run of this very job was about to publish, or None."""
        try:
            return self.finished.read_text(encoding="ascii")
        except OSError:
            return None

    def remove(self) -> None:
        """Remove the folder and let go of the lock, in this order: who gets the lock next makes a new one."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._let_go()

    def leave(self) -> bool:
        """Let go of the lock; keep finished blocks for the next run, if there are any, and say so."""
        if self._lock is None:
            return False
        self.merged.unlink(missing_ok=True)
        for part in self.path.glob("*.part"):
            part.unlink(missing_ok=True)
        has_blocks = next(self.path.glob("*.block"), None) is not None
        if has_blocks:
            self._let_go()
        else:
            self.remove()
        return has_blocks

    def _let_go(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def disk_error(out: Path, error: OSError) -> DataError:
    """Return the error of one line for a disk that refuses."""
    # HDF5 wraps the number in a long story.
    wrapped = re.search(r"errno = (\d+)", str(error))
    reason = os.strerror(int(wrapped[1])) if wrapped else error.strerror or type(error).__name__
    return DataError(
        f"{out.parent}: cannot write the study file here ({reason}); check space, limits and permissions, "
        "then run again: finished work is kept"
    )
