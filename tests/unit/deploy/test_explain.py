"""Maps of where a network looks: against closed forms, on the right image, and never for a label nobody taught."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cxr_hvd.deploy.combine import ensemble_networks
from cxr_hvd.deploy.explain.choice import choose_studies
from cxr_hvd.deploy.explain.explain import StudyMaps, check_question, explain_studies
from cxr_hvd.deploy.explain.maps import MIN_SIDE, grad_cam, layer_of_grad_cam, occlusion
from cxr_hvd.deploy.explain.page import NUMBERS, PAGE, check_folder, write_explanation
from cxr_hvd.deploy.explain.pictures import overlay_png
from cxr_hvd.deploy.explain.sanity import correlation, fresh_model
from cxr_hvd.deploy.predict import opened_studies
from cxr_hvd.errors import CxrHvdError, UsageError
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from lab.study_files import write_study_file
from preprocess.pixels.pipelines import RASTER
from tests.helpers.networks import noise, tiny_network


class Linear(nn.Module):
    """One convolution, a ReLU in place, the mean over pixels, one linear layer: Grad-CAM of it is known."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 1, bias=False)
        self.last = nn.Linear(3, 4, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.relu_(self.first(images)).mean((2, 3)))


class OneSquare(nn.Module):
    """Its one logit is the mean of the second image's upper left quarter."""

    def forward(self, images: Tensor) -> Tensor:
        half = images.shape[2] // 2
        return images[:, 1, :half, :half].mean((1, 2))[:, None]


def test_grad_cam_is_what_its_definition_says() -> None:
    torch.manual_seed(1)
    model, images = Linear().eval(), torch.rand(1, 2, 8, 8)
    layer = layer_of_grad_cam(model, images)
    assert layer == "first"
    features = model.first(images)[0].detach()
    is_active = features > 0
    for column, map_HW in zip((0, 3), grad_cam(model, images, layer, (0, 3)), strict=True):
        gradients = model.last.weight[column, :, None, None] * is_active / 64
        weights = gradients.mean((1, 2), keepdim=True)
        expected = torch.relu((weights * features).sum(0)).detach()
        assert np.allclose(map_HW, expected, atol=1e-6) and map_HW.max() > 0
    # The network is as it was: hooks are gone, and its answer is the same.
    assert not model.first._forward_hooks


@pytest.mark.parametrize("size", [32, 37])
def test_occlusion_finds_the_image_and_the_place(size: int) -> None:
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    falls = occlusion(OneSquare(), images, batch_size=5)
    assert falls.shape == (3, 1, size, size) and np.isfinite(falls).all()
    assert not falls[[0, 2]].any()
    half = size // 2
    assert falls[1, 0, :half, :half].any()
    assert not falls[1, 0, half + size // 8 :, :].any()
    # A covered square changes the logit by its own share: the first square, by hand.
    side = size // 8
    covered = images.clone()
    covered[0, 1, :side, :side] = images[0, 1].mean()
    model = OneSquare()
    expected = torch.sigmoid(model(images)) - torch.sigmoid(model(covered))
    assert falls[1, 0, 0, 0] == pytest.approx(float(expected), abs=1e-6)


def test_grad_cam_takes_the_last_layer_that_shows_places() -> None:
    """At 32 pixels the last stages have fewer than seven pixels a side; a network without places is refused."""
    network = tiny_network()
    layer = layer_of_grad_cam(network.model, noise(1))
    shapes = []
    network.model.get_submodule(layer).register_forward_hook(lambda *call: shapes.append(call[2].shape))
    network.model(noise(1))
    assert min(shapes[0][2:]) >= MIN_SIDE
    with pytest.raises(UsageError, match=r"--method occlusion"):
        layer_of_grad_cam(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 14)), noise(1))


def test_a_fresh_network_has_other_maps() -> None:
    network = tiny_network()
    fresh = fresh_model(network)
    layer = layer_of_grad_cam(network.model, noise(1))
    maps = [grad_cam(model, noise(1), layer, (0,))[0] for model in (network.model, fresh)]
    value = correlation(*maps)
    assert value is not None and abs(value) < 0.9
    assert correlation(maps[0], maps[0]) == pytest.approx(1)
    assert correlation(maps[0], -maps[0]) == pytest.approx(-1)
    assert correlation(maps[0], np.zeros_like(maps[0])) is None


def test_what_nobody_taught_is_not_explained() -> None:
    network = tiny_network(trained_labels=["Pneumonia"])
    for label, line in (("Fracture", "choose of Pneumonia"), ("Pneumnia", "did you mean 'Pneumonia'")):
        with pytest.raises(UsageError, match=line):
            check_question(network, [label], ["occlusion"])
    with pytest.raises(UsageError, match="looks into one network"):
        check_question(ensemble_networks([tiny_network()]), [], ["grad-cam", "occlusion"])


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study_file(tmp_path_factory.mktemp("explain") / "<b>north.h5", 6)


def maps_of(studies: Path, **question: object) -> list[StudyMaps]:
    with opened_studies(tiny_network(), [studies]) as opened:
        chosen = choose_studies(opened, (), 2)
        return list(explain_studies(tiny_network(), chosen, **question))  # type: ignore[arg-type]


def test_a_page_shows_every_image_and_label(studies: Path, tmp_path: Path) -> None:
    maps = maps_of(studies, labels=("Pneumonia", "Fracture"))
    out = tmp_path / "maps"
    explanation = write_explanation(out, tiny_network(), iter(maps))
    page = (out / PAGE).read_text()
    assert "<b>north" not in page and "&lt;b&gt;north.h5" in page
    with StudyFile(studies) as file:
        tested = [int(index) for index in file.indices(Split.TEST)[:2]]
        num_images = [int(file.num_images[index]) for index in tested]
        assert [study.study for study in maps] == [str(file.study_ids[index]) for index in tested]
    pictures = sorted((out / "pictures").iterdir())
    assert len(pictures) == sum(num_images) * (1 + 2 * 2)
    assert all(f'src="pictures/{picture.name}"' in page for picture in pictures)
    assert {path.stat().st_mode & 0o777 for path in (out, out / "pictures")} == {0o700}
    numbers = json.loads((out / NUMBERS).read_text())
    assert numbers == explanation.model_dump() and len(numbers["maps"]) == 2 * 2 * 2
    assert set(numbers["mean_correlation"]) == {"grad-cam", "occlusion"}
    check_folder(out, overwrite=True)
    with pytest.raises(UsageError, match="expected a new folder"):
        check_folder(out, overwrite=False)
    with pytest.raises(UsageError, match="expected a new folder"):
        check_folder(tmp_path, overwrite=True)


def test_nothing_is_left_of_an_explanation_that_fails(studies: Path, tmp_path: Path) -> None:
    def failing() -> object:
        yield maps_of(studies, labels=("Pneumonia",), methods=("grad-cam",))[0]
        raise CxrHvdError("an image cannot be read")

    with pytest.raises(CxrHvdError, match="cannot be read"):
        write_explanation(tmp_path / "maps", tiny_network(), failing())  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_without_labels_the_most_probable_trained_ones_are_shown(studies: Path) -> None:
    for study in maps_of(studies, methods=("grad-cam",)):
        probabilities = [one.probability for one in study.maps]
        assert len(study.maps) == 3 and probabilities == sorted(probabilities, reverse=True)


def test_a_flat_map_leaves_the_image_alone() -> None:
    image = np.arange(400, dtype=np.uint8).reshape(20, 20)
    png = overlay_png(image, np.zeros((20, 20), np.float32), is_signed=True)
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (320, 320, 3) and np.ptp(picture.astype(int), axis=2).max() == 0


def test_a_study_that_is_not_there_is_one_line(studies: Path) -> None:
    with opened_studies(tiny_network(), [studies]) as opened:
        chosen = choose_studies(opened, ["study3", "study1"], 4)
        assert [(study.name, study.index) for study in chosen] == [("study1", 1), ("study3", 3)]
        with pytest.raises(UsageError, match="expected the name of a study of these PATHS"):
            choose_studies(opened, ["study1", "study99"], 4)


def test_images_are_explained_by_where_they_lie(tmp_path: Path) -> None:
    shades = np.random.default_rng(0).integers(0, 255, (3, 64, 64), dtype=np.uint8)
    for name, image in zip(("one/a.png", "one/b.png", "two/c.png"), shades, strict=True):
        (tmp_path / "scans" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "scans" / name), image)
    network = tiny_network(pixels=RASTER)
    with opened_studies(network, [tmp_path / "scans"]) as opened:
        chosen = choose_studies(opened, ["one"], 4)
        [study] = explain_studies(network, chosen, ("Pneumonia",), ("grad-cam",))
    assert (study.file, study.study, len(study.images_MHW)) == (str(tmp_path / "scans"), "one", 2)
