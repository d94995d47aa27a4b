"""Model, augmentation, loader, loss and schedules on one rank."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_hvd.comm.communicator import LocalComm
from cxr_hvd.config.file import parse_config
from cxr_hvd.config.schema import Augmentation, Config
from cxr_hvd.data.augment import apply_motion, draw_motion, fill_augmented, fill_plain
from cxr_hvd.data.loader import Shuffle, StudySet, plain_batches, train_batches
from cxr_hvd.errors import CheckpointError, StudyFileError
from cxr_hvd.models.build import build_model
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.checkpoint.checkpoint import load_judged_weights
from cxr_hvd.training.loss import MultiLabelLoss
from cxr_hvd.training.run_folder import RunFolder
from cxr_hvd.training.schedule import SCHEDULES
from cxr_hvd.training.train import train
from cxr_hvd.training.validation import predict
from lab.study_files import SIZE, write_study_file

NONE = Augmentation(flip=0, rotation_deg=0, scale=0, shift=0, brightness=0, contrast=0)
bce = MultiLabelLoss()
POLICY = parse_config({"experiment": "A", "sites": {"north": {"data": "x"}}}, "test").labels.policy(LABELS)


def a_config(data: Path | str = "x", **training: object) -> Config:
    """Experiment A at one site, 32 pixels."""
    model = {"name": "tiny", "image_size": 32}
    tree = {"experiment": "A", "sites": {"north": {"data": str(data)}}, "model": model}
    return parse_config({**tree, "training": training}, "test")


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> StudySet:
    path = write_study_file(tmp_path_factory.mktemp("study") / "north.h5", num_studies=23, splits=(Split.TRAIN,))
    return StudySet([StudyFile(path)], Split.TRAIN, POLICY)


# ---- augmentation


def test_no_augmentation_is_the_image_itself() -> None:
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    out = np.empty((SIZE, SIZE), dtype=np.float32)
    apply_motion(image, draw_motion(NONE, SIZE, np.random.default_rng(1)), out)
    np.testing.assert_allclose(out, image / np.float32(255), atol=1e-6)


def test_a_sure_flip_mirrors_left_and_right() -> None:
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    out = np.empty((SIZE, SIZE), dtype=np.float32)
    apply_motion(image, draw_motion(NONE.model_copy(update={"flip": 1.0}), SIZE, np.random.default_rng(1)), out)
    np.testing.assert_allclose(out, image[:, ::-1] / np.float32(255), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_images=st.integers(1, 6))
def test_images_move_each_on_their_own_and_the_rest_stays_zero(seed: int, num_images: int) -> None:
    images = np.full((num_images, SIZE, SIZE), 128, dtype=np.uint8)
    out = np.full((8, 32, 32), np.nan, dtype=np.float32)
    fill_augmented(images, Augmentation(), np.random.default_rng(seed), out)
    assert not np.isnan(out).any()
    assert out.min() >= 0 and out.max() <= 1
    assert not out[num_images:].any()
    assert len({channel.tobytes() for channel in out[:num_images]}) == num_images


def test_without_motion_only_the_order_of_the_images_is_drawn() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE), dtype=np.uint8)
    plain, orders = np.empty((5, SIZE, SIZE), dtype=np.float32), set()
    fill_plain(images, plain)
    for seed in range(20):
        out = np.empty_like(plain)
        fill_augmented(images, NONE, np.random.default_rng(seed), out)
        places = [int(np.abs(plain - channel).sum(axis=(1, 2)).argmin()) for channel in out]
        assert sorted(places) == list(range(5))
        orders.add(tuple(places))
    assert len(orders) > 10


# ---- loader


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 4), st.integers(0, 5))
def test_every_pass_shows_every_study_once(num_studies: int, batch_size: int, num_ranks: int, seed: int) -> None:
    ranks = [Shuffle(num_studies, batch_size, num_ranks, rank, (seed, 1)) for rank in range(num_ranks)]
    num_steps = 3 * ranks[0].steps_per_epoch
    dealt = [pair for step in range(num_steps) for rank in ranks for pair in rank.batch_at(step)]
    for number in range(3):
        assert sorted(position for position, of in dealt if of == number) == list(range(num_studies))
    seen_in_an_epoch = {pair[0] for pair in dealt[: ranks[0].steps_per_epoch * batch_size * num_ranks]}
    assert seen_in_an_epoch == set(range(num_studies))


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 20))
def test_n_ranks_see_what_one_rank_with_an_n_fold_batch_sees(
    num_studies: int, batch_size: int, num_ranks: int, step: int
) -> None:
    one = Shuffle(num_studies, batch_size * num_ranks, 1, 0, (3,)).batch_at(step)
    many = [
        p
        for rank in range(num_ranks)
        for p in Shuffle(num_studies, batch_size, num_ranks, rank, (3,)).batch_at(step)
    ]
    assert one == many


def test_each_pass_site_and_seed_has_an_order_of_its_own() -> None:
    orders = {
        tuple(position for step in range(5 * number, 5 * number + 5) for position, _ in shuffle.batch_at(step))
        for key in ((1, 1), (1, 2), (2, 1))
        for shuffle in [Shuffle(20, 4, 1, 0, key)]
        for number in range(3)
    }
    assert len(orders) == 9


def test_batches_do_not_depend_on_where_one_starts(studies: StudySet) -> None:
    shuffle = Shuffle(len(studies), 4, 1, 0, (1, 2))
    whole = [b.images.clone() for b in train_batches(studies, shuffle, range(12), 32, Augmentation())]
    later = [b.images.clone() for b in train_batches(studies, shuffle, range(7, 12), 32, Augmentation())]
    assert all(torch.equal(one, other) for one, other in zip(whole[7:], later, strict=True))
    assert not torch.equal(whole[0], whole[1])


def test_a_batch_stays_whole_while_the_next_ones_are_made(studies: StudySet) -> None:
    shuffle = Shuffle(len(studies), 4, 1, 0, (1, 2))
    fresh = [b.images.clone() for b in train_batches(studies, shuffle, range(9), 32, Augmentation())]
    batches = train_batches(studies, shuffle, range(9), 32, Augmentation())
    for expected in fresh:
        images = next(batches).images
        time.sleep(0.05)  # let the thread run ahead as far as it may
        assert torch.equal(images, expected)


def test_plain_batches_are_the_file(studies: StudySet) -> None:
    positions = [4, 0, 22]
    [batch] = list(plain_batches(studies, positions, 8, SIZE))
    for row, position in enumerate(positions):
        stored = torch.from_numpy(studies.images(position)) / 255
        torch.testing.assert_close(batch.images[row, : len(stored)], stored)
        assert not batch.images[row, len(stored) :].any()


def test_a_damaged_image_stops_the_loader_with_its_place(tmp_path: Path) -> None:
    path = write_study_file(tmp_path / "north.h5", num_studies=6, splits=(Split.TRAIN,))
    with StudyFile(path) as file:
        pixels = file.images(3)[0].tobytes()
    content = path.read_bytes()
    assert content.count(pixels) == 1
    path.write_bytes(content.replace(pixels, pixels[:-1] + bytes([pixels[-1] ^ 1])))
    damaged = StudySet([StudyFile(path)], Split.TRAIN, POLICY)
    with pytest.raises(StudyFileError, match="image 0 of study 3 differs from its digest"):
        list(plain_batches(damaged, range(6), 2, SIZE))


# ---- loss, schedules


def test_unknown_labels_count_nowhere() -> None:
    logits = torch.randn(4, 14, requires_grad=True)
    targets, known = torch.randint(0, 2, (4, 14)).float(), torch.rand(4, 14) < 0.5
    bce(logits, targets, known).backward()
    assert logits.grad is not None
    assert not logits.grad[~known].any()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], targets[known])
    torch.testing.assert_close(bce(logits, targets, known), expected)


def test_a_batch_without_a_known_label_gives_zero_and_no_gradient() -> None:
    logits = torch.randn(2, 14, requires_grad=True)
    loss = bce(logits, torch.ones(2, 14), torch.zeros(2, 14, dtype=torch.bool))
    loss.backward()
    assert logits.grad is not None
    assert float(loss.detach()) == 0.0 and not logits.grad.any()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 1000])
def test_schedules_stay_between_zero_and_one(name: str, num_steps: int) -> None:
    factors = [SCHEDULES[name](step, num_steps) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert name == "constant" or factors[-1] <= max(factors)


# ---- scores


def test_scores_do_not_depend_on_the_batch_they_came_in(studies: StudySet) -> None:
    model = build_model("tiny", 14, seed=0)
    positions = np.arange(len(studies))
    one, many = (
        predict(model, studies, positions, a_config(batch_size=size, precision="fp32")) for size in (2, 8)
    )
    np.testing.assert_allclose(one, many, atol=1e-5)


# ---- run folder


def test_a_run_is_kept_whole_and_never_silently_replaced(tmp_path: Path) -> None:
    data = write_study_file(tmp_path / "north.h5", num_studies=12)
    config = a_config(data, epochs=3, batch_size=3, precision="fp32")
    train(config, tmp_path / "run", LocalComm())
    folder = RunFolder(tmp_path / "run", "north")
    assert {path.name for path in folder.path.iterdir()} == {
        "config.yaml", "environment.json", "plan.json", "metrics.jsonl", "tensorboard", "checkpoints",
        "ledger.jsonl", "validation.jsonl", "status-0.json",
    }  # fmt: skip
    assert folder.steps() == [6, 4]
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["latest", "step-4", "step-6"]
    latest = folder.checkpoints / "latest"
    assert load_judged_weights(latest, build_model("tiny", 14, seed=9)) == 6
    assert len((folder.path / "metrics.jsonl").read_text().splitlines()) == 6
    with pytest.raises(CheckpointError, match="holds a run already: go on with --resume auto"):
        train(config, tmp_path / "run", LocalComm())
    with pytest.raises(CheckpointError, match="another model"):
        load_judged_weights(latest, build_model("tiny", 3, seed=9))
    (folder.checkpoints / "latest" / "shared.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cannot read it"):
        load_judged_weights(latest, build_model("tiny", 14, seed=9))
