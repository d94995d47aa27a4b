"""The data set for own loaders: what evaluation sees, study by study, in any process."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torchvision.transforms import v2

from cxr_hvd.config.sections import Labels
from cxr_hvd.data.dataset import StudyDataset
from cxr_hvd.data.loader import plain_batches
from cxr_hvd.data.studies import StudySet
from cxr_hvd.errors import ConfigError, CxrHvdError, StudyFileError, UsageError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import MAX_IMAGES, Split
from cxr_hvd.study.study_file import StudyFile
from lab.study_files import SIZE, write_study_file

SPLITS = (Split.TRAIN, Split.TRAIN, Split.VALIDATE, Split.TEST)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study_file(tmp_path_factory.mktemp("study") / "north.h5", num_studies=24, splits=SPLITS)


def are_equal(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    """Return whether two items are the same, bit for bit."""
    return all(
        one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(some, others, strict=True)
    )


@pytest.mark.parametrize("split", Split)
@pytest.mark.parametrize("image_size", [None, 33])
@pytest.mark.parametrize(
    "labels",
    [
        Labels(),
        Labels(uncertain="ignore", blank="ignore"),
        Labels(uncertain={"Edema": "ones", "default": "ignore"}, blank={"Fracture": "ignore"}),
    ],
    ids=["zeros", "ignore", "by-label"],
)
def test_items_are_what_evaluation_sees(path: Path, split: Split, image_size: int | None, labels: Labels) -> None:
    dataset = StudyDataset(
        path, split.name.lower(), uncertain=labels.uncertain, blank=labels.blank, image_size=image_size
    )
    studies = StudySet([StudyFile(path)], split, labels.policy(LABELS))
    row = 0
    for batch in plain_batches(studies, range(len(studies)), 5, image_size or SIZE, threads=2):
        num_channels = batch.images.shape[1]
        for seen in zip(batch.images, batch.targets, batch.known, strict=True):
            images, *marks = dataset[row]
            assert images.shape == (MAX_IMAGES, image_size or SIZE, image_size or SIZE)
            assert are_equal((images[:num_channels], *marks), seen)
            assert not images[num_channels:].any()
            row += 1
    assert row == len(dataset) == len(studies)
    assert torch.equal(dataset.targets, torch.stack([targets for _, targets, _ in dataset]))
    assert torch.equal(dataset.known, torch.stack([known for _, _, known in dataset]))


def test_path_file_and_names_of_splits_are_alike(path: Path) -> None:
    with StudyFile(path) as file:
        expected = StudyDataset(file, Split.TEST)
        for other in (StudyDataset(str(path), "test"), StudyDataset(path, "TEST"), StudyDataset(file, "test")):
            assert len(other) == 6 and are_equal(other[3], expected[3])
        assert StudyDataset(path).split is Split.TRAIN


def test_indices_are_those_of_a_list(path: Path) -> None:
    dataset = StudyDataset(path)
    assert are_equal(dataset[-1], dataset[11])
    assert are_equal(dataset[torch.tensor(4)], dataset[4])  # type: ignore[index]
    for outside in (12, -13):
        with pytest.raises(IndexError):
            dataset[outside]
    assert len(list(dataset)) == 12
    assert are_equal(Subset(dataset, [5, 2])[1], dataset[2])
    both = ConcatDataset([dataset, StudyDataset(path, "test")])
    assert len(both) == 18 and are_equal(both[12], StudyDataset(path, "test")[0])


def test_what_a_caller_writes_into_an_item_stays_there(path: Path) -> None:
    dataset = StudyDataset(path)
    before = tuple(tensor.clone() for tensor in dataset[1])
    for tensor in dataset[1]:
        tensor.fill_(1)
    assert are_equal(dataset[1], before)


# ---- transforms


def test_a_transform_is_given_each_image_by_itself(path: Path) -> None:
    images_given: list[Tensor] = []

    def brighter(image: Tensor) -> Tensor:
        images_given.append(image.clone())
        return image + 1

    plain, changed = StudyDataset(path), StudyDataset(path, transform=brighter)
    for index in range(len(plain)):
        images_given.clear()
        images, changed_images = plain[index][0], changed[index][0]
        num = len(images_given)
        assert torch.equal(torch.cat(images_given), images[:num]) and not images[num:].any()
        assert torch.equal(changed_images[:num], images[:num] + 1)
        assert not changed_images[num:].any()  # padding comes after the transform


def test_transforms_of_torchvision_draw_anew_for_each_image(path: Path) -> None:
    ops = [v2.RandomRotation(20), v2.ColorJitter(0.2), v2.Normalize([0.5], [0.25]), v2.Resize(40)]
    dataset = StudyDataset(path, transform=v2.Compose(ops))
    assert dataset[0][0].shape == (MAX_IMAGES, 40, 40)
    flips = StudyDataset(path, transform=v2.RandomHorizontalFlip())
    plain = StudyDataset(path)
    index = int(torch.tensor([plain[i][0].flatten(1).any(1).sum() for i in range(12)]).argmax())
    num = int(plain[index][0].flatten(1).any(1).sum())
    drawn = set()
    for _ in range(40):
        images = flips[index][0]
        drawn.add(tuple(torch.equal(images[image], plain[index][0][image]) for image in range(num)))
    assert num > 1 and len(drawn) > 2  # one draw for all images of a study would give two


@pytest.mark.parametrize(
    "transform",
    [
        lambda image: image.expand(3, -1, -1),
        lambda image: image[0],
        lambda image: image.half(),
        lambda image: image.numpy(),
        lambda image: None,
    ],
    ids=["three-channels", "no-channel", "half", "array", "none"],
)
def test_a_transform_that_returns_no_image_is_refused(path: Path, transform: Callable[[Tensor], Any]) -> None:
    with pytest.raises(UsageError, match=r"transform: expected an image \(1, H, W\) of torch.float32"):
        StudyDataset(path, transform=transform)[0]


# ---- other processes


@pytest.mark.parametrize("way", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_give_the_same(path: Path, way: str) -> None:
    dataset = Subset(StudyDataset(path, transform=v2.Normalize([0.5], [0.5])), range(1, 12))
    here = list(DataLoader(dataset, batch_size=4))
    workers: Any = {"num_workers": 2, "multiprocessing_context": way, "persistent_workers": True}
    loader = DataLoader(dataset, batch_size=4, **workers)
    for _ in range(2):
        there = list(loader)
        assert len(there) == len(here) == 3
        assert all(are_equal(one, other) for one, other in zip(here, there, strict=True))


def test_a_pickled_data_set_opens_its_file_again(path: Path) -> None:
    dataset = StudyDataset(path, "validate", uncertain="ignore", image_size=48)
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301, our own bytes
    dataset.file.close()
    assert repr(again) == repr(dataset) and len(again) == 6
    assert are_equal(again[2], StudyDataset(path, "validate", uncertain="ignore", image_size=48)[2])


def test_items_need_no_hdf5(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = StudyDataset(path)
    monkeypatch.delattr(dataset.file, "_images")  # what a fork leaves of HDF5 is not to be relied on
    assert dataset[0][0].any()


# ---- refusals and what is shown


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"split": "tests"},
            UsageError,
            "split: expected train, validate, test, found 'tests'; did you mean 'test'?",
        ),
        ({"image_size": 65}, UsageError, "image_size: expected 1 to 64 px, which north.h5 has, found 65"),
        ({"image_size": 0}, UsageError, "image_size: expected 1 to 64 px"),
        ({"uncertain": "zero"}, ConfigError, "uncertain: expected 'zeros', 'ones' or 'ignore', found \"zero\""),
        ({"blank": "ones"}, ConfigError, "blank: expected 'zeros' or 'ignore', found \"ones\""),
        ({"blank": {"Edma": "ignore"}}, ConfigError, "no label is called 'Edma'; did you mean 'Edema'?"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    path: Path, options: dict[str, Any], kind: type[CxrHvdError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        StudyDataset(path, **options)
    assert message in str(caught.value) and str(caught.value).startswith("StudyDataset: ")


def test_a_split_without_studies_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path = write_study_file(tmp_path / "south.h5", num_studies=4, splits=(Split.TRAIN,))
    with pytest.raises(StudyFileError, match="expected VALIDATE studies, found none; draw some with --validate N"):
        StudyDataset(path, "validate")
    with pytest.raises(StudyFileError, match="no study file here"):
        StudyDataset(tmp_path / "none.h5")


def test_a_damaged_image_is_refused(tmp_path: Path) -> None:
    path = write_study_file(tmp_path / "south.h5", num_studies=4, splits=(Split.TRAIN,))
    with StudyFile(path) as file:
        page = file.images(2)[0].tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(page)] ^= 1
    path.write_bytes(content)
    dataset = StudyDataset(path)
    assert dataset[1][0].any()
    with pytest.raises(StudyFileError, match="image 0 of study 2 differs from its digest"):
        dataset[2]


def test_one_line_says_what_it_holds(path: Path) -> None:
    assert repr(StudyDataset(path, "validate", image_size=32)) == (
        "StudyDataset('north.h5', VALIDATE: 6 studies, images (20, 32, 32), 14 labels, transform=None)"
    )
    composed = repr(StudyDataset(path, transform=v2.Compose([v2.Resize(32), v2.Normalize([0.5], [0.5])])))
    assert "Compose" in composed and "\n" not in composed
