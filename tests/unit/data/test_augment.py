"""What is drawn for an image, what it does to the image, and that a GPU would do the same."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cxr_hvd.config.sections import Augmentation
from cxr_hvd.data.augment import (
    CLEAN,
    Blemish,
    apply_blemish,
    apply_change,
    apply_motion,
    draw_blemish,
    draw_changes,
    draw_motion,
    fill_augmented,
    fill_plain,
    noise_table,
)
from cxr_hvd.data.augment_gpu import move_images, place_images, stack_changes

SIZE = 64
NONE = Augmentation(flip=0, rotation_deg=0, scale=0, shift=0, brightness=0, contrast=0)
CPU = torch.device("cpu")
STRONG = Augmentation(rotation_deg=60, scale=0.4, shift=0.3, brightness=0.4, contrast=0.4, noise=0.2, cutout=0.5)
SEEDS = st.integers(0, 2**32 - 1)


def images(num: int, size: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return white noise (n, size, size), on which no wrong pixel goes unseen."""
    return np.random.default_rng(seed).integers(0, 256, (num, size, size), dtype=np.uint8)


def moved_by_the_book(images_NHW: NDArray[np.uint8], strength: Augmentation, seed: int) -> NDArray[np.float32]:
    """Return a study as the formulas of flip, rotation, scale, shift and exposure say it, step by step."""
    rng, size = np.random.default_rng(seed), images_NHW.shape[-1]
    out_NHW = np.empty(images_NHW.shape, dtype=np.float32)
    for out_HW, position in zip(out_NHW, rng.permutation(len(images_NHW)), strict=True):
        flip, turn, zoom, right, down, bright, steep = rng.random(7)
        angle = np.deg2rad(strength.rotation_deg * (2 * turn - 1))
        mirror = -1.0 if flip < strength.flip else 1.0
        linear = np.array([[mirror * np.cos(angle), -np.sin(angle)], [mirror * np.sin(angle), np.cos(angle)]])
        linear /= 1 + strength.scale * (2 * zoom - 1)
        centre = np.full(2, (size - 1) / 2)
        start = centre + size * strength.shift * (2 * np.array([right, down]) - 1) - linear @ centre
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        moved = cv2.warpAffine(images_NHW[position], np.column_stack([linear, start]), (size, size), flags=flags)
        gain = 1 + strength.contrast * (2 * steep - 1)
        out_HW[:] = moved * np.float32(gain / 255)
        out_HW += np.float32(strength.brightness * (2 * bright - 1) + 0.5 * (1 - gain))
    return np.clip(out_NHW, 0.0, 1.0)


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, num_images=st.integers(1, 5), size=st.sampled_from((32, 50, 64)))
def test_without_noise_and_cutout_a_study_is_its_motions_bit_for_bit(
    seed: int, num_images: int, size: int
) -> None:
    strength = STRONG.model_copy(update={"noise": 0.0, "cutout": 0.0})
    stored, out = images(num_images, size, seed % 7), np.empty((num_images, size, size), dtype=np.float32)
    changes = draw_changes(len(stored), strength, size, np.random.default_rng(seed))
    fill_augmented(stored, changes, out)
    assert np.array_equal(out, moved_by_the_book(stored, strength, seed))


@given(seed=SEEDS, num_images=st.integers(1, 5))
def test_noise_and_cutout_change_nothing_of_order_and_motion(seed: int, num_images: int) -> None:
    without, both, other = (
        draw_changes(num_images, STRONG.model_copy(update=update), 64, np.random.default_rng(seed))
        for update in ({"noise": 0.0, "cutout": 0.0}, {}, {"noise": 0.1, "cutout": 0.0})
    )
    for one, two in ((without, both), (without, other)):
        for a, b in zip(one, two, strict=True):
            assert a.position == b.position
            assert np.array_equal(a.motion.inverse_map, b.motion.inverse_map)
            assert (a.motion.gain, a.motion.offset) == (b.motion.gain, b.motion.offset)
    assert all(change.blemish is CLEAN for change in without)
    # One strength does not change what another draws.
    for a, b in zip(both, other, strict=True):
        assert a.blemish.noise_start == b.blemish.noise_start
        assert a.blemish.noise == pytest.approx(2 * b.blemish.noise)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_an_image_changes_as_if_it_were_alone(seed: int) -> None:
    stored, out = images(4, 64), np.empty((6, 64, 64), dtype=np.float32)
    changes = draw_changes(len(stored), STRONG, 64, np.random.default_rng(seed))
    fill_augmented(stored, changes, out)
    for channel, change in enumerate(draw_changes(4, STRONG, 64, np.random.default_rng(seed))):
        alone = np.empty((64, 64), dtype=np.float32)
        apply_change(stored[change.position], change, alone)
        assert np.array_equal(out[channel], alone)
    assert not out[4:].any()


@settings(deadline=None)
@given(seed=SEEDS, cutout=st.floats(0, 1), size=st.integers(32, 100))
def test_a_cutout_blackens_one_square_and_nothing_else(seed: int, cutout: float, size: int) -> None:
    blemish = draw_blemish(Augmentation(cutout=cutout), size, np.random.default_rng(seed))
    image = np.random.default_rng(0).uniform(0.1, 1, (size, size)).astype(np.float32)
    spoiled = image.copy()
    apply_blemish(spoiled, blemish)
    top, bottom, left, right = blemish.square
    height, width = bottom - top, right - left
    assert 0 <= top <= bottom <= size and 0 <= left <= right <= size
    assert max(height, width) <= cutout * size + 1
    # A square, but where the border cuts it off.
    assert height == width or {top, left} & {0} or {bottom, right} & {size}
    is_black = np.zeros((size, size), dtype=bool)
    is_black[top:bottom, left:right] = True
    assert np.array_equal(spoiled == 0, is_black)
    assert np.array_equal(spoiled[~is_black], image[~is_black])


def test_squares_lie_everywhere_and_have_every_size() -> None:
    rng, hits = np.random.default_rng(0), np.zeros((64, 64))
    sides = []
    for _ in range(4000):
        top, bottom, left, right = draw_blemish(Augmentation(cutout=0.5), 64, rng).square
        hits[top:bottom, left:right] += 1
        sides.append(bottom - top)
    assert hits.min() > 0
    assert 0 in sides and max(sides) == 32
    assert hits[16:48, 16:48].max() < 1.3 * hits[16:48, 16:48].min()


def test_noise_is_normal_with_the_strength_that_was_drawn() -> None:
    gray = np.full((256, 256), 0.5, dtype=np.float32)
    spoiled = gray.copy()
    apply_blemish(spoiled, Blemish(0.05, 1234, (0, 0, 0, 0)))
    noise = spoiled - gray
    assert noise.std() == pytest.approx(0.05, rel=0.02)
    assert abs(noise.mean()) < 0.001
    assert (np.abs(noise) < 0.05).mean() == pytest.approx(0.6827, abs=0.01)
    strengths = [draw_blemish(Augmentation(noise=0.2), 64, np.random.default_rng(seed)) for seed in range(500)]
    assert np.mean([blemish.noise for blemish in strengths]) == pytest.approx(0.1, abs=0.01)
    assert max(blemish.noise for blemish in strengths) <= 0.2
    assert len({blemish.noise_start for blemish in strengths}) > 490


def test_what_is_spoiled_stays_within_black_and_white() -> None:
    out = np.empty((5, 64, 64), dtype=np.float32)
    changes = draw_changes(5, STRONG.model_copy(update={"noise": 1.0}), 64, np.random.default_rng(0))
    fill_augmented(images(5, 64), changes, out)
    assert out.min() == 0 and out.max() == 1
    assert not noise_table(64).flags.writeable


# ---- on a device


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, num_images=st.integers(1, 5), size=st.sampled_from((32, 50, 64)))
def test_torch_moves_images_as_opencv_does(seed: int, num_images: int, size: int) -> None:
    stored, out = images(num_images, size, seed % 7), np.empty((num_images, size, size), dtype=np.float32)
    changes = draw_changes(num_images, STRONG, size, np.random.default_rng(seed))
    for change, out_HW in zip(changes, out, strict=True):
        apply_change(stored[change.position], change, out_HW)
    order = [change.position for change in changes]
    moved = move_images(torch.from_numpy(stored[order]), stack_changes(changes, CPU)).numpy()
    # OpenCV rounds to a gray, half a step; contrast stretches that by 1.4. The rest is float32 in coordinates.
    assert np.abs(moved - out).max() < (1.4 * 0.5 + 0.1) / 255


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_torch_moves_a_batch_as_it_moves_each_image(seed: int) -> None:
    stored = torch.from_numpy(images(5, 48))
    changes = draw_changes(5, STRONG, 48, np.random.default_rng(seed))
    batched = move_images(stored, stack_changes(changes, CPU))
    for number, change in enumerate(changes):
        alone = move_images(stored[number : number + 1], stack_changes([change], CPU))
        torch.testing.assert_close(batched[number], alone[0], rtol=0, atol=1e-6)


def test_no_motion_leaves_every_pixel_where_it_was() -> None:
    none = Augmentation(flip=0, rotation_deg=0, scale=0, shift=0, brightness=0, contrast=0)
    stored = images(3, 61)
    changes = draw_changes(3, none, 61, np.random.default_rng(0))
    moved = move_images(torch.from_numpy(stored), stack_changes(changes, CPU)).numpy()
    np.testing.assert_allclose(moved, stored / np.float32(255), atol=1e-4)
    opencv = np.empty((61, 61), dtype=np.float32)
    apply_motion(stored[0], changes[0].motion, opencv)
    assert np.array_equal(opencv, stored[0] * np.float32(1 / 255))


def test_images_come_to_their_places_and_all_else_is_exactly_zero() -> None:
    moved = torch.rand(4, 8, 8) + 1
    out = place_images(moved, torch.tensor([0, 3, 4, 5]), (2, 3))
    assert torch.equal(out.view(6, 8, 8)[[0, 3, 4, 5]], moved)
    assert not out.view(6, 8, 8)[[1, 2]].any()


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
    stored = np.full((num_images, SIZE, SIZE), 128, dtype=np.uint8)
    out = np.full((8, 32, 32), np.nan, dtype=np.float32)
    fill_augmented(stored, draw_changes(num_images, Augmentation(), 32, np.random.default_rng(seed)), out)
    assert not np.isnan(out).any()
    assert out.min() >= 0 and out.max() <= 1
    assert not out[num_images:].any()
    assert len({channel.tobytes() for channel in out[:num_images]}) == num_images


def test_without_motion_only_the_order_of_the_images_is_drawn() -> None:
    stored = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE), dtype=np.uint8)
    plain, orders = np.empty((5, SIZE, SIZE), dtype=np.float32), set()
    fill_plain(stored, plain)
    for seed in range(20):
        out = np.empty_like(plain)
        fill_augmented(stored, draw_changes(5, NONE, SIZE, np.random.default_rng(seed)), out)
        places = [int(np.abs(plain - channel).sum(axis=(1, 2)).argmin()) for channel in out]
        assert sorted(places) == list(range(5))
        orders.add(tuple(places))
    assert len(orders) > 10
