"""Read the tensors of a file that `torch.save` wrote, without running any of it.

`torch.load` of a stranger's file can run the stranger's program: torchxrayvision's files, for example, hold
whole modules, which load only that way. Here a file is data (`pickle_data`), and a tensor is what a few names say
of bytes that lie in the file (`torch_storages`). Owns where in a file its state dict is, and what a tensor is.
"""

import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from cxr_hvd.errors import WeightsError
from cxr_hvd.files import open_plain
from cxr_hvd.models.pickle_data import Call, Name, UnreadableError
from cxr_hvd.models.torch_storages import MAX_SIZE, ReadStorage, Storage, open_archive, storage_of

STATE_KEYS = ("state_dict", "model_state_dict", "model")
"""Where training programs put the state dict in what they save; else the file is the state dict."""

MAX_MODULES = 20_000
MAX_DEPTH = 64
MAX_DIMS = 32
MAX_WRAPPERS = 4
MAX_SPARE_ELEMENTS = 1 << 20

PARAMETERS = ("torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state")
TENSORS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
DAMAGES = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, OverflowError, RuntimeError, NotImplementedError),
    *(struct.error, zipfile.BadZipFile),
)


@dataclass(frozen=True)
class TensorNote:
    """A tensor as its file describes it: a view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


def read_torch_archive(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a file that `torch.save` wrote: of a state dict, a checkpoint or a whole module.

    Nothing in the file is run. Tensors are contiguous copies on the CPU; floating-point ones become float32.

    Raises:
        WeightsError: the file is no such file, is damaged, or holds no state dict.
    """
    try:
        with open_plain(path, follows_links=True) as file:
            num_bytes = file.seek(0, 2)
            content, read = open_archive(file, num_bytes)
            notes = dict(_find_state(content))
            _check_memory(notes, num_bytes)
            return _build_tensors(notes, read)
    except UnreadableError as error:
        raise _unreadable(path, str(error)) from error
    except DAMAGES as error:
        raise _unreadable(path, getattr(error, "strerror", None) or type(error).__name__) from error


def _unreadable(path: Path, why: str) -> WeightsError:
    return WeightsError(
        f"{path}: expected a state dict or a module as torch.save writes it, found {why}; nothing in it was run"
    )


def _find_state(content: object) -> Iterator[tuple[str, TensorNote]]:
    """Yield the names and tensors of the state dict that the content is, or holds under one of `STATE_KEYS`."""
    nested = [content[key] for key in STATE_KEYS if key in content] if isinstance(content, dict) else []
    for candidate in (*nested, content):
        notes = list(_named_tensors(candidate))
        if notes:
            yield from notes
            return
    raise UnreadableError("no state dict in it")


def _named_tensors(content: object) -> Iterator[tuple[str, TensorNote]]:
    if isinstance(content, dict):
        yield from _tensors_in(content, "")
    modules, num_modules = [("", content, 0)], 0
    while modules:
        prefix, module, depth = modules.pop()
        num_modules += 1
        state = module.state if isinstance(module, Call) else None
        state = state[0] if isinstance(state, tuple) and state else state
        if not isinstance(state, dict):
            continue
        if depth > MAX_DEPTH or num_modules > MAX_MODULES:
            raise UnreadableError("a module with modules in it without end")
        left_out = state.get("_non_persistent_buffers_set")
        for group in ("_parameters", "_buffers"):
            for name, note in _tensors_in(state.get(group), ""):
                if group == "_parameters" or not isinstance(left_out, list) or name not in left_out:
                    yield prefix + name, note
        children = state.get("_modules")
        if isinstance(children, dict):
            named = [(name, child) for name, child in children.items() if isinstance(name, str)]
            modules += [(f"{prefix}{name}.", child, depth + 1) for name, child in reversed(named)]


def _tensors_in(tensors: object, prefix: str) -> Iterator[tuple[str, TensorNote]]:
    for name, value in tensors.items() if isinstance(tensors, dict) else ():
        note = _note_of(value)
        if note is not None and isinstance(name, str):
            yield prefix + name, note


def _note_of(value: object) -> TensorNote | None:
    """Return the tensor that a description is of; None where it is of something else."""
    for _ in range(MAX_WRAPPERS):
        if not isinstance(value, Call) or not isinstance(value.arguments, tuple):
            return None
        name, arguments = value.callee.text if isinstance(value.callee, Name) else "", value.arguments
        if name in TENSORS:
            return _checked_note(arguments)
        if name in PARAMETERS:
            value = arguments[0]
        elif name == "torch._tensor _rebuild_from_type_v2":  # a tensor with attributes of its own
            value = Call(arguments[0], arguments[2])
        else:
            return None
    return None


def _checked_note(arguments: tuple[object, ...]) -> TensorNote:
    storage, offset, shape, strides = storage_of(arguments[0]), *arguments[1:4]
    if storage is None or not isinstance(offset, int) or not 0 <= offset <= storage.num_elements:
        raise UnreadableError("a tensor outside of its storage")
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) != len(strides):
        raise UnreadableError("a tensor without a shape")
    if len(shape) > MAX_DIMS or not all(isinstance(n, int) and 0 <= n <= MAX_SIZE for n in (*shape, *strides)):
        raise UnreadableError("a tensor of an impossible shape")
    if len(arguments) > 6 and arguments[6]:
        raise UnreadableError("a tensor whose numbers are to be conjugated or negated")
    note = TensorNote(storage, offset, shape, strides)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if note.num_elements and last >= storage.num_elements:
        raise UnreadableError("a tensor outside of its storage")
    return note


def _check_memory(notes: dict[str, TensorNote], num_bytes: int) -> None:
    """Raise where tensors take more memory than a file of this length has a use for: views and members overlap."""
    num_stored = sum(storage.num_bytes for storage in {note.storage for note in notes.values()})
    num_elements = sum(note.num_elements for note in notes.values())
    if num_stored > num_bytes or num_elements > num_bytes + MAX_SPARE_ELEMENTS:
        raise UnreadableError("tensors that are larger than the file by far")


def _build_tensors(notes: dict[str, TensorNote], read: ReadStorage) -> dict[str, Tensor]:
    storages: dict[Storage, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for name, note in notes.items():
        if note.storage not in storages:
            storages[note.storage] = _as_tensor(read(note.storage), note.storage.dtype)
        if not note.num_elements:
            tensor = torch.empty(note.shape, dtype=note.storage.dtype)
        else:
            tensor = storages[note.storage].as_strided(note.shape, note.strides, note.offset)
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
    return tensors


def _as_tensor(content: bytearray, dtype: torch.dtype) -> Tensor:
    if not content:
        return torch.empty(0, dtype=dtype)
    if dtype == torch.bool:
        return torch.frombuffer(content, dtype=torch.uint8) != 0
    return torch.frombuffer(content, dtype=dtype)
