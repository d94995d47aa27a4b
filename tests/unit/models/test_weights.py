"""Weights from a file: what becomes of each tensor of published networks, and what is refused."""

from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import pytest
import torch
import torchvision
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

from cxr_hvd.config.sections import Model
from cxr_hvd.errors import WeightsError
from cxr_hvd.models.build import build_model
from cxr_hvd.models.weights import Weights, fit_weights, read_weights
from cxr_hvd.study.labels import LABELS


def densenet() -> nn.Module:
    return build_model(Model(), len(LABELS), seed=3)


def tiny() -> nn.Module:
    return build_model(Model(name="tiny"), len(LABELS), seed=3)


def trained(model: nn.Module) -> nn.Module:
    """Give BatchNorms of a fresh network statistics and weights that differ, as training does."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "conv" not in name:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def first_activations(model: nn.Module, images: Tensor) -> Tensor:
    """Return what comes out of the first convolution and norm, with running statistics."""
    features = model.eval().get_submodule("features")
    with torch.no_grad():
        return features.get_submodule("norm0")(features.get_submodule("conv0")(images))


def test_torchvision_densenet121_by_name_and_shape(tmp_path: Path) -> None:
    original = trained(torchvision.models.densenet121(weights=None))
    torch.save(original.state_dict(), tmp_path / "densenet121.pth")
    model = densenet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table = fit_weights(model, read_weights(tmp_path / "densenet121.pth"), LABELS)

    after, file = model.state_dict(), original.state_dict()
    assert table.widened == ("features.conv0.weight",)
    assert table.fresh == dict.fromkeys(
        ("classifier.weight", "classifier.bias"), "the file does not name its labels"
    )
    assert table.not_used == ("classifier.weight", "classifier.bias")
    assert len(table.loaded) == len(after) - 3
    assert all(torch.equal(after[name], file[name]) for name in table.loaded)
    assert all(torch.equal(after[name], before[name]) for name in table.fresh)

    # A study of one image, in whichever channel, gives what the gray image in all channels gave.
    image = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = first_activations(original, image.expand(2, 3, 64, 64))
    torch.testing.assert_close(first_activations(model, image), expected, rtol=0, atol=2e-5)
    for channel in (1, 19):
        study = torch.zeros(2, 20, 64, 64)
        study[:, channel] = image[:, 0]
        torch.testing.assert_close(first_activations(model, study), expected, rtol=0, atol=2e-5)
    # The convolution of a study of two images is the sum of theirs.
    conv = model.get_submodule("features.conv0")
    two = torch.rand(1, 2, 64, 64)
    torch.testing.assert_close(conv(two), conv(two[:, :1]) + conv(two[:, 1:]), rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_torchxrayvision_whole_module_with_one_channel(is_zip: bool, tmp_path: Path) -> None:
    xrv = pytest.importorskip("torchxrayvision")
    original = trained(xrv.models.DenseNet(num_classes=18, in_channels=1, weights=None))
    torch.save(original, tmp_path / "xrv.pt", _use_new_zipfile_serialization=is_zip)
    model = densenet()
    table = fit_weights(model, read_weights(tmp_path / "xrv.pt"), LABELS)
    assert table.widened == ("features.conv0.weight",)
    assert set(table.fresh) == {"classifier.weight", "classifier.bias"} <= set(table.not_used)
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = first_activations(original, image)
    torch.testing.assert_close(first_activations(model, image), expected, rtol=0, atol=2e-5)
    blocks, theirs = model.get_submodule("features")[4:], original.get_submodule("features")[4:]
    with torch.no_grad():  # and so on to the last norm
        torch.testing.assert_close(blocks(expected.relu()), theirs(expected.relu()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "torchvision/squeezenet1_1", "timm/convnext_atto"])
def test_other_networks_give_for_one_image_what_the_original_gave(name: str) -> None:
    library, _, network = name.partition("/")
    if library == "timm":
        original = pytest.importorskip("timm").create_model(network, num_classes=len(LABELS))
    else:
        original = torchvision.models.get_model(network, weights=None, num_classes=len(LABELS))
    model = build_model(Model(name=name, image_size=64), len(LABELS), seed=3)
    table = fit_weights(model, Weights("file", original.state_dict(), LABELS), LABELS)
    assert len(table.widened) == 1 and not table.fresh and not table.not_used
    image = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, expected = model.eval()(image), original.eval()(image.expand(2, 3, 64, 64))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def with_names(tensors: Mapping[str, Tensor], prefix: str, is_old: bool = False) -> dict[str, Tensor]:
    names = {name: name for name in tensors}
    if is_old:
        names = {
            name: name.replace("norm1", "norm.1").replace("norm2", "norm.2").replace("conv1.", "conv.1.")
            for name in names
        }
    return {f"{prefix}{names[name]}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "model._orig_mod.module."])
@pytest.mark.parametrize("is_old", [False, True])
def test_names_with_what_wrappers_put_before_them(prefix: str, is_old: bool) -> None:
    source, model = trained(tiny()).state_dict(), tiny()
    weights = Weights("file", with_names(source, prefix, is_old), LABELS)
    table = fit_weights(model, weights, LABELS)
    assert not table.fresh and not table.not_used and not table.widened
    assert table.num_loaded == table.num_parameters
    assert all(torch.equal(tensor, source[name]) for name, tensor in model.state_dict().items())


def test_a_network_whose_names_begin_like_a_wrapper() -> None:
    model = nn.ModuleDict({"model": nn.Linear(3, 2), "module": nn.Linear(2, 2)})
    source = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    assert not fit_weights(model, Weights("file", source), ("a",)).fresh


@pytest.mark.parametrize("labels", [None, LABELS[::-1], LABELS[:5]])
def test_outputs_are_never_bound_by_position(labels: tuple[str, ...] | None) -> None:
    source, model = trained(tiny()).state_dict(), tiny()
    table = fit_weights(model, Weights("file", source, labels), LABELS)
    assert set(table.fresh) == {"classifier.weight", "classifier.bias"}


def test_safetensors_may_name_their_labels(tmp_path: Path) -> None:
    source = trained(tiny()).state_dict()
    halves = {name: t.half() if t.is_floating_point() else t for name, t in source.items()}
    save_file(halves, tmp_path / "net.safetensors", {"label_names": '["a", "b"]'})
    weights = read_weights(tmp_path / "net.safetensors")
    assert weights.label_names == ("a", "b")
    assert all(torch.equal(weights.tensors[name], halves[name].to(source[name].dtype)) for name in source)
    save_file(halves, tmp_path / "net.safetensors")
    assert read_weights(tmp_path / "net.safetensors").label_names is None


def test_the_digest_is_of_what_is_in_the_file(tmp_path: Path) -> None:
    source = tiny().state_dict()
    torch.save(source, tmp_path / "a.pt")
    torch.save(dict(reversed(source.items())), tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    save_file(source, tmp_path / "c.safetensors")
    digests = {read_weights(tmp_path / name).digest for name in ("a.pt", "b.pth", "c.safetensors")}
    assert len(digests) == 1
    for change in ({"more": torch.ones(1)}, {"classifier.bias": torch.ones(14)}):
        assert Weights("", source | change).digest not in digests
    reshaped = source | {"classifier.bias": source["classifier.bias"].reshape(2, 7)}
    assert Weights("", reshaped).digest not in digests


def test_what_is_refused(tmp_path: Path) -> None:
    source = tiny().state_dict()
    with pytest.raises(WeightsError, match=r"none that fit by name and shape \(for example classifier.weight"):
        fit_weights(tiny(), Weights("file", {"classifier.weight": torch.ones(9, 9)}), LABELS)
    with pytest.raises(WeightsError, match="none that fit"):
        fit_weights(tiny(), Weights("file", {}), LABELS)
    with pytest.raises(WeightsError, match=r"expected one tensor for features.conv0.weight, found two"):
        fit_weights(tiny(), Weights("file", source | with_names(source, "module.")), LABELS)
    for bad in (torch.tensor([float("nan")]), torch.tensor([1e300], dtype=torch.float64)):
        torch.save({"x": bad}, tmp_path / "bad.pt")
        with pytest.raises(WeightsError, match="tensor x: expected finite numbers"):
            read_weights(tmp_path / "bad.pt")
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"expected a file that ends in .safetensors, .pt"):
        read_weights(tmp_path / "net.onnx")
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 100)
    for name in ("bad.safetensors", "missing.safetensors"):
        with pytest.raises(WeightsError, match="expected a file of safetensors"):
            read_weights(tmp_path / name)


def test_the_table_says_what_became_of_each_tensor() -> None:
    source = {name: tensor for name, tensor in tiny().state_dict().items() if "norm0" not in name}
    source["features.conv0.weight"] = torch.rand(12, 3, 7, 7)
    source["features.norm5.weight"] = torch.rand(3)
    table = fit_weights(tiny(), Weights("net.pt", source | {"step\x1b[2J": torch.ones(1)}), LABELS)
    console = Console(file=StringIO(), width=240)
    console.print(table.as_table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for line in (
        "Weights from net.pt",
        "features.denseblock1",
        "features.conv0.weight",
        "features.norm0.weight (not in the file)",
        "features.norm5.weight ([3] in the file, [16] here)",
        "classifier.weight (the file does not name its labels)",
        table.digest,
    ):
        assert line in text
    assert "\x1b" not in text and "warning" not in text
    few = {"features.norm0.weight": torch.ones(12)}
    console.print(fit_weights(tiny(), Weights("net.pt", few), LABELS).as_table())
    assert "warning: less than half of the network" in console.file.getvalue()  # type: ignore[attr-defined]
