"""Files of `torch.save` read as data: what torch.load gives, nothing run, and one line for what is damaged."""

import collections
import contextlib
import io
import os
import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cxr_hvd.errors import WeightsError
from cxr_hvd.models import pickle_data
from cxr_hvd.models.pickle_data import UnreadableError, read_pickle
from cxr_hvd.models.torch_archive import read_torch_archive

FORMATS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])


class Odd(nn.Module):
    """A module with all that a state dict may hold, and some that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.arange(12.0).reshape(3, 4).t())  # not contiguous
        self.tied = self.table
        self.layers = nn.ModuleList(
            [nn.Conv2d(1, 2, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(2, 2, bias=False)]
        )
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("none", None)
        self.register_buffer("scratch", torch.ones(5), persistent=False)
        self.register_parameter("nothing", None)
        self.in_float16 = nn.Parameter(torch.linspace(-2, 2, 5).half())
        self.in_bfloat16 = nn.Parameter(torch.linspace(-2, 2, 6).bfloat16())
        self.in_float64 = nn.Parameter(torch.linspace(-2, 2, 6).double())
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("small", torch.tensor([-3, 4], dtype=torch.int8))
        self.note = {"not": torch.ones(2)}


def saved(path: Path, content: object, is_zip: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return path


def as_read(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().float() if t.is_floating_point() else t for name, t in tensors.items()}


def assert_equal(read: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(read) == list(expected)
    for name, tensor in as_read(expected).items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape, name
        assert torch.equal(read[name], tensor), name
        assert read[name].is_contiguous()


@FORMATS
@pytest.mark.parametrize("build", [Odd, torchvision.models.squeezenet1_1, lambda: nn.DataParallel(Odd())])
def test_it_gives_what_torch_load_gives(build: Any, is_zip: bool, tmp_path: Path) -> None:
    model = build()
    for content in (model, model.state_dict(), {"epoch": 3, "state_dict": model.state_dict(), "optimizer": {}}):
        read = read_torch_archive(saved(tmp_path / "file.pt", content, is_zip))
        loaded = torch.load(tmp_path / "file.pt", weights_only=False)  # our own file, as the reference
        loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded.state_dict()
        assert_equal(read, loaded)


@FORMATS
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_checkpoint_holds_the_state_dict_or_the_module_under_a_key(
    key: str, is_zip: bool, tmp_path: Path
) -> None:
    model, other = nn.Linear(2, 3), nn.Linear(5, 5)
    for content in (model, model.state_dict()):
        whole = {"step": 4, "ema": other.state_dict(), key: content, "momentum": {0: torch.ones(3)}}
        assert_equal(read_torch_archive(saved(tmp_path / "file.pt", whole, is_zip)), model.state_dict())


@FORMATS
def test_views_of_one_storage(is_zip: bool, tmp_path: Path) -> None:
    base = torch.arange(24.0)
    views = {
        "all": base,
        "part": base[3:9],
        "step": base[1::5],
        "grid": base.view(4, 6).t()[1:, ::2],
        "one": base[5],
    }
    views["spread"] = base[:3, None].expand(3, 4)
    assert_equal(read_torch_archive(saved(tmp_path / "file.pt", views, is_zip)), views)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    dtype=st.sampled_from([torch.float64, torch.float16, torch.bfloat16, torch.int16, torch.uint8, torch.bool]),
    is_zip=st.booleans(),
    is_reversed=st.booleans(),
)
def test_any_shape_and_type(
    shape: list[int], dtype: torch.dtype, is_zip: bool, is_reversed: bool, tmp_path: Path
) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    tensors = {"x": tensor.permute(*reversed(range(len(shape)))) if is_reversed and shape else tensor}
    assert_equal(read_torch_archive(saved(tmp_path / "file.pt", tensors, is_zip)), tensors)


# ---- nothing is run


class Evil:
    """An object whose pickle runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@FORMATS
def test_a_program_in_the_file_is_not_run(is_zip: bool, tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    model = nn.Linear(2, 2)
    read = read_torch_archive(saved(tmp_path / "a.pt", {"a": Evil(mark), **model.state_dict()}, is_zip))
    assert_equal(read, model.state_dict())
    with pytest.raises(WeightsError, match=r"no state dict in it; nothing in it was run"):
        read_torch_archive(saved(tmp_path / "b.pt", Evil(mark), is_zip))
    (tmp_path / "c.pt").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(WeightsError, match="another kind of file"):
        read_torch_archive(tmp_path / "c.pt")
    assert not mark.exists()
    torch.load(tmp_path / "b.pt", weights_only=False)  # our own file: the danger is real
    assert mark.exists()


@FORMATS
def test_a_module_of_a_class_that_is_not_here(is_zip: bool, tmp_path: Path) -> None:
    """As files of a program that is not installed are."""
    gone = type("Gone", (Odd,), {"__module__": __name__})
    globals()["Gone"] = gone
    try:
        model = gone()
        saved(tmp_path / "file.pt", model, is_zip)
    finally:
        del globals()["Gone"]
    with pytest.raises(AttributeError):
        torch.load(tmp_path / "file.pt", weights_only=False)
    assert_equal(read_torch_archive(tmp_path / "file.pt"), model.state_dict())


# ---- what is damaged or hostile is refused in one line


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, bytes]]:
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(1)
    tensors = {"a": torch.rand(3, 2), "b": torch.ones(2, dtype=torch.int64), "c": nn.Linear(2, 2).state_dict()}
    yield {is_zip: saved(folder / "file.pt", tensors, is_zip).read_bytes() for is_zip in (True, False)}


def read_or_refuse(content: bytes, path: Path) -> dict[str, Tensor]:
    path.write_bytes(content)
    try:
        return read_torch_archive(path)
    except WeightsError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return {}


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), is_zip=st.booleans())
def test_changed_bytes_raise_nothing_else(
    data: st.DataObject, is_zip: bool, whole_files: dict[bool, bytes], tmp_path: Path
) -> None:
    content = bytearray(whole_files[is_zip])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(0, 8))
        content[at : at + length] = data.draw(st.binary(max_size=8))
    read_or_refuse(bytes(content), tmp_path / "file.pt")


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=64))
@example(b"\x80\x02]q\x00h\x00a.")  # a list in itself
@example(b"(((((tttt")
@example(b"J\xff\xff\xff\xff.")
@example(b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.")
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with contextlib.suppress(UnreadableError):
        read_pickle(io.BytesIO(content))


def test_every_cut_is_refused(whole_files: dict[bool, bytes], tmp_path: Path) -> None:
    for content in whole_files.values():
        for length in range(0, len(content), 7):
            assert not read_or_refuse(content[:length], tmp_path / "file.pt")


def rewritten(path: Path, is_stored: bool = True, **replaced: bytes) -> Path:
    """Write an archive anew with other members, as a stranger would."""
    content = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(content) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            member = replaced.get(Path(name).stem, old.read(name))
            new.writestr(name, member, zipfile.ZIP_STORED if is_stored else zipfile.ZIP_DEFLATED)
    return path


def test_archives_that_are_refused(tmp_path: Path) -> None:
    def archive(**replaced: Any) -> Path:
        return rewritten(saved(tmp_path / "file.pt", {"x": torch.ones(6)}, True), **replaced)

    assert len(read_torch_archive(archive())) == 1
    for said, path in {
        "a compressed archive": lambda: archive(is_stored=False),
        "byte order of another machine": lambda: archive(byteorder=b"big"),
        r"file/data/0 of 20 bytes": lambda: archive(**{"0": bytes(20)}),
    }.items():
        with pytest.raises(WeightsError, match=said):
            read_torch_archive(path())


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        *[
            ((7,), (1,), 0),
            ((6,), (1,), 1),
            ((2, 2), (5, 1), 0),
            ((2,), (-1,), 3),
            ((-1,), (1,), 0),
            ((2,), (1,), -1),
        ],
        *[((1 << 62,), (0,), 0), ((1 << 40,), (0,), 0), ((2,), (1 << 63,), 0), ((2,), (1, 1), 0), ("2", "1", 0)],
        *[((0, 1 << 40, 1 << 40), (1, 1, 1), 0), ((1,) * 65, (1,) * 65, 0), ((1 << 20,) * 3, (0, 0, 0), 0)],
    ],
)
def test_a_tensor_that_reaches_beyond_its_bytes(shape: Any, strides: Any, offset: int, tmp_path: Path) -> None:
    class Reaching:
        def __reduce__(self) -> tuple[Any, ...]:
            storage = torch.ones(6).storage()
            arguments = (storage, offset, shape, strides, False, collections.OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    for is_zip in (True, False):
        with pytest.raises(WeightsError):
            read_torch_archive(saved(tmp_path / "file.pt", {"x": Reaching()}, is_zip))


def test_pickles_without_end_or_bottom(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = read_pickle(io.BytesIO(b"\x80\x02)" + b"\x85" * 50_000 + b"."))  # tuples in tuples
    del deep  # is freed without a deep recursion
    as_key = read_pickle(io.BytesIO(b"\x80\x02}(" + b")" + b"\x85" * 50_000 + b"Nu."))
    assert as_key.content == {}
    monkeypatch.setattr(pickle_data, "MAX_INSTRUCTIONS", 1000)
    with pytest.raises(UnreadableError, match="more than 1,000"):
        read_pickle(io.BytesIO(b"\x80\x02" + b"N0" * 1000 + b"N."))


def test_modules_in_themselves_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential()
    model._modules["again"] = model
    with pytest.raises(WeightsError, match="without end"):
        read_torch_archive(saved(tmp_path / "file.pt", model, True))
    model = nn.Sequential(nn.Linear(1, 1))
    for _ in range(40):  # 2 ** 40 names
        model = nn.Sequential(model, model)
    with pytest.raises(WeightsError, match="without end"):
        read_torch_archive(saved(tmp_path / "file.pt", model, True))


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    for name in ("pipe.pt", "missing.pt", "."):
        with pytest.raises(WeightsError):
            read_torch_archive(tmp_path / name)


def test_every_instruction_of_pickle_is_known_or_refused() -> None:
    for opcode in pickletools.opcodes:
        with contextlib.suppress(UnreadableError):
            read_pickle(io.BytesIO(opcode.code.encode("latin-1") + bytes(9) + b"."))
