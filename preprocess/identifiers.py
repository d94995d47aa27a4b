"""Replace the identifiers of patients and studies by keyed hashes that only the site can trace back.

HMAC-SHA256 with the site's own secret: without the key nobody can test a guess, and equal patients stay equal
within a site. The key never leaves the machine it was made on.
"""

import hashlib
import hmac
import os
from collections.abc import Callable
from pathlib import Path

from cxr_hvd import secret
from cxr_hvd.errors import DataError, UsageError

HASH_CHARACTERS = 32

# From kind (`patient`, `study`) and identifier to what stands in the study file.
HashId = Callable[[str, str], str]


def default_key_path(site: str) -> Path:
    """Return where a site's key lies unless `--key` says otherwise.

    Raises:
        UsageError: this user has no home.
    """
    try:
        config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    except RuntimeError as error:  # neither HOME nor an entry in passwd
        raise UsageError("this account has no home folder for the site's key: name a file with --key") from error
    return Path(config) / "cxr-hvd" / f"{site}.key"


def load_key(path: Path) -> bytes:
    """Read a site's secret key.

    Raises:
        DataError: there is none, it is too short, or others may read it.
    """
    try:
        return secret.load_key(path)
    except UsageError as error:
        raise DataError(f"{error}; with another key equal patients get other ids") from error


def keyed_hash(key: bytes) -> HashId:
    """Return a function from kind (`patient`, `study`) and identifier to 32 hexadecimal characters."""

    def hash_id(kind: str, identifier: str) -> str:
        return hmac.new(key, f"{kind}:{identifier}".encode(), hashlib.sha256).hexdigest()[:HASH_CHARACTERS]

    return hash_id


def keep_id(kind: str, identifier: str) -> str:
    """Return the identifier as it is, for `--keep-ids`."""
    return identifier
