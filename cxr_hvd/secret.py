"""Files of a secret key: made of random bytes, readable by their owner alone, never replaced.

Two kinds of key lie in such files: the one that all sites share to prove who takes part (`comm.key`), and a
site's own one for pseudonyms (`preprocess.identifiers`). Both can be guessed at by who has seen what was made with
them, so that a word that somebody thought of is no key.
"""

import os
import secrets
import stat
from pathlib import Path

from cxr_hvd.errors import UsageError
from cxr_hvd.files import open_plain, sync

KEY_BYTES = 32
MAX_KEY_BYTES = 1 << 16


def create_key(path: Path) -> None:
    """Make a new key of 32 random bytes at `path`, readable by its owner alone.

    Raises:
        UsageError: the file cannot be made, or there is one already.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, 0o600)
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                os.fsync(descriptor)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        sync(path.parent)
    except OSError as error:
        raise UsageError(f"{path}: cannot make a key here ({error.strerror}); choose another place") from error


def load_key(path: Path) -> bytes:
    """Read a key file, as it is: at least 32 bytes.

    Raises:
        UsageError: it cannot be read, is too short or too long, or others than its owner may read it.
    """
    try:
        with open_plain(path, follows_links=True) as file:
            mode, key = stat.S_IMODE(os.fstat(file.fileno()).st_mode), file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"{path}: expected a key file, found none to read ({error.strerror}); check --key"
        ) from error
    if mode & 0o077:
        raise UsageError(f"{path}: expected a key that only its owner can read, found mode {mode:o}; chmod 600 it")
    if not KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise UsageError(
            f"{path}: expected a key of at least {KEY_BYTES} random bytes, found {len(key)}; a shorter one could "
            "be guessed: make one with cxr-hvd key new FILE"
        )
    return key
