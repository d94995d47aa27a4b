"""The two formats of files that `torch.save` writes: a zip archive, and the one before torch 1.6.

Both are a pickle, read here as data (`pickle_data`), beside flat storages of numbers that it names. Owns where in
a file these are, and the checks of every size before memory is taken for it. Byte order little only.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO, FileIO

import torch

from cxr_hvd.models.pickle_data import Name, PersistentId, UnreadableError, read_pickle
from cxr_hvd.terminal import shown

MAX_PICKLE_BYTES = 1 << 26
MAX_READ_BYTES = 1 << 24
MAX_SIZE = 1 << 40

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

ReadStorage = Callable[["Storage"], bytearray]
"""Gives the bytes of a storage, as many as it is to have."""


@dataclass(frozen=True)
class Storage:
    """A flat piece of memory that tensors are views of."""

    key: str
    dtype: torch.dtype
    num_elements: int

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize


def open_archive(file: FileIO, num_bytes: int) -> tuple[object, ReadStorage]:
    """Return what a file's pickle describes, and a function that reads its storages.

    Args:
        file: seekable.
        num_bytes: its length.

    Raises:
        UnreadableError: it is in neither format. Damaged files raise errors of `zipfile` and of the disk, too.
    """
    file.seek(0)
    return _open_zip(file) if file.read(4) == b"PK\x03\x04" else _open_legacy(file, num_bytes)


def storage_of(identity: object) -> Storage | None:
    """Return the storage that a persistent id names; None where it names something else."""
    if not isinstance(identity, PersistentId) or not isinstance(identity.value, tuple) or len(identity.value) < 5:
        return None
    word, kind, key, _, num_elements, *views = identity.value
    if word != "storage" or not isinstance(kind, Name) or not isinstance(key, str):
        return None
    module, _, name = kind.text.rpartition(" ")
    if module not in ("torch", "torch.cuda") or name not in DTYPES or any(view is not None for view in views):
        raise UnreadableError(f"a storage of the kind {shown(kind.text)}")
    if not isinstance(num_elements, int) or not 0 <= num_elements <= MAX_SIZE:
        raise UnreadableError("a storage of an impossible size")
    return Storage(key, DTYPES[name], num_elements)


def _open_zip(file: FileIO) -> tuple[object, ReadStorage]:
    """Read `NAME/data.pkl` of a zip archive; the storages are its members `NAME/data/KEY`."""
    archive = zipfile.ZipFile(_BoundedReads(file))
    names = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(names) != 1:
        raise UnreadableError("a zip archive without one NAME/data.pkl")
    folder = names[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and _read_member(archive, f"{folder}byteorder") != b"little":
        raise UnreadableError("numbers in the byte order of another machine")
    pickled = read_pickle(BytesIO(_read_member(archive, names[0])))
    return pickled.content, lambda storage: _read_member(archive, f"{folder}data/{storage.key}", storage.num_bytes)


class _BoundedReads:
    """A file of which nobody reads much at a time: a zip archive's directory may claim any length."""

    def __init__(self, file: FileIO) -> None:
        self._file, self.seek, self.tell, self.seekable = file, file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > MAX_READ_BYTES:
            raise UnreadableError("a zip archive with too large a directory")
        return self._file.read(size if size >= 0 else MAX_READ_BYTES)


def _read_member(archive: zipfile.ZipFile, name: str, num_bytes: int | None = None) -> bytearray:
    """Read a member of exactly `num_bytes`; of at most `MAX_PICKLE_BYTES` where left out."""
    member = archive.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise UnreadableError("a compressed archive; torch.save compresses nothing")
    if member.file_size > MAX_PICKLE_BYTES if num_bytes is None else member.file_size != num_bytes:
        raise UnreadableError(f"{shown(name)} of {member.file_size:,} bytes")
    content = bytearray()
    with archive.open(member) as opened:
        while part := opened.read(MAX_READ_BYTES):
            content += part
    return content


def _open_legacy(file: FileIO, num_bytes: int) -> tuple[object, ReadStorage]:
    """Read five pickles (magic number, protocol, machine, content, keys); storages follow in the order of keys."""
    file.seek(0)
    head = BytesIO(file.read(MAX_PICKLE_BYTES))
    if read_pickle(head).content != LEGACY_MAGIC or read_pickle(head).content != LEGACY_PROTOCOL:
        raise UnreadableError("another kind of file")
    machine = read_pickle(head).content
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise UnreadableError("numbers in the byte order of another machine")
    pickled, keys = read_pickle(head), read_pickle(head).content
    storages = {s.key: s for s in map(storage_of, pickled.persistent_ids) if s is not None}
    start, start_of_key = head.tell(), {}
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in storages:
            raise UnreadableError("a storage that no tensor uses")
        file.seek(start)
        num_elements = int.from_bytes(file.read(8), "little")
        if num_elements != storages[key].num_elements:
            raise UnreadableError("a storage of another size than its tensors say")
        start_of_key[key] = start + 8
        start += 8 + storages[key].num_bytes
        if start > num_bytes:
            raise UnreadableError("an end before the last tensor's")

    def read(storage: Storage) -> bytearray:
        if storage != storages[storage.key]:
            raise UnreadableError("a storage with two sizes")
        file.seek(start_of_key[storage.key])
        content = bytearray()
        while len(content) < storage.num_bytes:
            part = file.read(min(MAX_READ_BYTES, storage.num_bytes - len(content)))
            if not part:
                raise UnreadableError("an end before the last tensor's")
            content += part
        return content

    return pickled.content, read
