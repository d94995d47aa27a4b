"""What stands in a study file for a patient or a study: keyed hashes that only the site can trace back.

HMAC-SHA256 with the site's own secret: without the key nobody can test a guess, and equal patients stay equal
within a site. The key never leaves the machine it was made on.
"""

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from cxr_hvd.errors import DataError, UsageError

KEY_BYTES = 32
HASH_CHARACTERS = 32


def default_key_path(site: str) -> Path:
    """Return where a site's key lies unless `--key` says otherwise.

    Raises:
        UsageError: this user has no home.
    """
    try:
        config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    except RuntimeError as error:  # in a container, for example: no HOME, and no such user
        raise UsageError(
            "expected a home folder for this site's key, found neither HOME nor an entry of this user; name "
            "a place with --key"
        ) from error
    return config / "cxr-hvd" / f"{site}.key"


def create_key(path: Path) -> None:
    """Make a new secret key of 32 random bytes at `path`, readable by its owner alone.

    Raises:
        UsageError: the file cannot be made, or there is one already.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot make a key here ({type(error).__name__}); choose a place with --key"
        ) from error


def load_key(path: Path) -> bytes:
    """Read a site's secret key.

    Raises:
        DataError: there is none, it is too short, or others may read it.
    """
    try:
        mode = path.stat().st_mode
        # A pipe would be waited for.
        if not stat.S_ISREG(mode):
            raise DataError(f"{path}: expected a key file, found a folder, a pipe or a device; check --key")
        key = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: expected a key file, found none ({type(error).__name__}); check --key"
        ) from error
    if len(key) < KEY_BYTES:
        raise DataError(
            f"{path}: expected a key of {KEY_BYTES} or more bytes, found {len(key)}; "
            "restore it, or remove it to make a new one"
        )
    if mode & 0o077:
        raise DataError(
            f"{path}: expected a key that only its owner can read, found mode {mode & 0o777:o}; chmod 600 it"
        )
    return key


def keyed_hash(key: bytes) -> Callable[[str, str], str]:
    """Return a function from kind (`patient`, `study`) and identifier to 32 hexadecimal characters."""

    def hashed(kind: str, identifier: str) -> str:
        return hmac.new(key, f"{kind}:{identifier}".encode(), hashlib.sha256).hexdigest()[:HASH_CHARACTERS]

    return hashed


def kept(kind: str, identifier: str) -> str:
    """Return the identifier as it is, for `--keep-ids`."""
    return identifier
